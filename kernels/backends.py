"""Which implementation runs a kernel here: one capability check per problem, said once in the log.

The environment variable LONGREEL_ATTENTION forces one of BACKENDS; `auto`, the default, takes Triton where it runs and
PyTorch elsewhere. A forced backend that cannot run raises and says why.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch

__all__ = [
    "BACKENDS",
    "VARIABLE",
    "BackendError",
    "Choice",
    "Problem",
    "is_forced",
    "kernel_report",
    "run",
    "select_backend",
    "wanted_backend",
]

VARIABLE = "LONGREEL_ATTENTION"
BACKENDS = ("auto", "triton", "sdpa", "torch", "interpret")
"""triton: our kernels, compiled; sdpa: PyTorch with its own attention; torch: PyTorch with attention written out in
fp32; interpret: our kernels in Triton's interpreter, for tests (needs TRITON_INTERPRET=1 from the start)."""

_logger = logging.getLogger(__name__)
_broken: dict[Problem, str] = {}
_Result = TypeVar("_Result")


class BackendError(RuntimeError):
    """The backend that LONGREEL_ATTENTION forces is unknown or cannot run this problem."""


@dataclass(frozen=True)
class Problem:
    """What the choice depends on. aligned: channels contiguous and every row at a multiple of 16 bytes."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    aligned: bool = True

    @staticmethod
    def of(q: torch.Tensor, head_dim: int, *others: torch.Tensor) -> Problem:
        """The problem that tensors on q's device and of q's dtype pose."""
        tensors = (q, *others)
        aligned = all(
            x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(s * x.itemsize % 16 == 0 for s in x.stride()[:-1])
            for x in tensors
        )
        return Problem(q.device, q.dtype, head_dim, aligned)


@dataclass(frozen=True)
class Choice:
    """A backend's name and why it was taken."""

    backend: str
    reason: str


def wanted_backend() -> str:
    """The value of LONGREEL_ATTENTION. Raises BackendError for an unknown name."""
    wanted = os.environ.get(VARIABLE, "auto") or "auto"
    if wanted not in BACKENDS:
        raise BackendError(f"{VARIABLE}={wanted} is none of {', '.join(BACKENDS)}.")
    return wanted


def is_forced() -> bool:
    """Whether LONGREEL_ATTENTION selects a backend of ours. Raises BackendError for an unknown name."""
    return wanted_backend() not in ("auto", "sdpa")


def select_backend(problem: Problem) -> Choice:
    """The backend for a problem. Raises BackendError when LONGREEL_ATTENTION selects one that cannot run it."""
    wanted = os.environ.get(VARIABLE, "auto") or "auto"
    return _select(problem, wanted, _broken.get(problem))


@lru_cache(maxsize=256)
def _select(problem: Problem, wanted: str, broken: str | None) -> Choice:
    if wanted not in BACKENDS:
        raise BackendError(f"{VARIABLE}={wanted} is none of {', '.join(BACKENDS)}.")
    if wanted in ("sdpa", "torch"):
        choice = Choice(wanted, f"{VARIABLE} forces it")
    else:
        refusal = _interpreter_refusal(problem) if wanted == "interpret" else broken or _triton_refusal(problem)
        if refusal is None:
            choice = Choice(
                "interpret" if wanted == "interpret" else "triton",
                "the device can run it" if wanted == "auto" else f"{VARIABLE} forces it",
            )
        elif wanted == "auto":
            choice = Choice("sdpa", refusal)
        else:
            raise BackendError(f"{VARIABLE}={wanted} cannot run here: {refusal}.")
    _logger.info(
        "Longreel frame attention on %s, %s: %s (%s)", problem.device, problem.dtype, choice.backend, choice.reason
    )
    return choice


def _triton_refusal(problem: Problem) -> str | None:
    """Why Triton's compiled kernels cannot run a problem; None when they can."""
    if problem.device.type != "cuda":
        return f"Triton kernels need an NVIDIA GPU, not {problem.device.type}"
    if torch.version.hip is not None:
        return "the Triton kernels are not tuned for ROCm"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(problem.device)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"{problem.dtype} is neither fp16 nor bf16"
    if problem.head_dim not in (64, 128):
        return f"heads of {problem.head_dim} channels are neither 64 nor 128 wide"
    return None if problem.aligned else "rows are not contiguous or not at multiples of 16 bytes"


def _interpreter_refusal(problem: Problem) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "TRITON_INTERPRET=1 is not set"
    return None if problem.device.type == "cpu" else "the interpreter is for CPU tensors"


def run(
    problem: Problem,
    module: str,
    with_triton: Callable[[Any, tuple[int, int]], _Result],
    with_torch: Callable[[str], _Result],
) -> _Result:
    """Run a kernel by the backend a problem gets.

    module: the sibling file that holds the Triton kernel, imported here and not before; with_triton(module,
    capability) launches it, with_torch(backend) is its PyTorch twin. Where `auto` took Triton and it fails to compile
    or launch, that is logged, and the twin runs this problem from then on. Running out of memory is not caught: ComfyUI
    deals with it.
    """
    choice = select_backend(problem)
    if choice.backend == "interpret":
        return with_triton(importlib.import_module(f".{module}", __package__), (8, 0))
    if choice.backend != "triton":
        return with_torch(choice.backend)
    try:
        with torch.cuda.device(problem.device):
            kernel = importlib.import_module(f".{module}", __package__)
            return with_triton(kernel, torch.cuda.get_device_capability(problem.device))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if os.environ.get(VARIABLE) == "triton":
            raise
        _broken[problem] = f"Triton failed once: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        _logger.warning("Longreel frame attention goes on with PyTorch. %s", _broken[problem])
        return with_torch(select_backend(problem).backend)


def kernel_report(problem: Problem) -> dict[str, str]:
    """What would run a problem and why, with versions: for a log line or a node's text."""
    try:
        choice = select_backend(problem)
    except BackendError as error:
        choice = Choice("none", str(error))
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "not installed"
    return {
        "backend": choice.backend,
        "reason": choice.reason,
        "torch": str(torch.__version__),
        "triton": triton,
    }
