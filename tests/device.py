"""On which device the tests run: `--device cpu` (the default), `cuda` or `mps`, for children LONGREEL_TEST_DEVICE.

What a test may ask of a GPU. ComfyUI loads fp32 weights there as fp16, so the tests' own process runs with its
`--force-fp32` and without TF32: bounds that were written for fp32 hold for fp32. Bounds for a dtype are in `close`.
*Bitwise* is a promise about one device, one shape and one order of calls, and holds on a GPU with PyTorch's
deterministic algorithms; where a test compares two shapes or two ways to load, another kernel may run, and `same` asks
for the bits on a CPU only. torch is imported where it is needed: the linters' tests do without.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps")
VARIABLE = "LONGREEL_TEST_DEVICE"
BOUNDS = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative error of a small network's output against the same in more precision, by the dtype that it runs in."""


def wanted(arguments: Sequence[str], environment: MutableMapping[str, str]) -> str:
    """The device that pytest's `arguments` name, else LONGREEL_TEST_DEVICE, else the CPU; kept for child processes.

    ComfyUI reads its command line before pytest has parsed its own, so this looks ahead. An unknown device is the CPU
    until pytest refuses it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default=environment.get(VARIABLE) or "cpu")
    device: str = parser.parse_known_args(list(arguments))[0].device
    if device not in DEVICES:
        return "cpu"
    environment[VARIABLE] = device
    return device


def absent(device: str) -> str | None:
    """One sentence where this machine does not have the device; None where it does."""
    if device == "cpu":
        return None
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "--device cuda needs an NVIDIA GPU that PyTorch can use, and there is none here: leave the option out."
    if device == "mps" and not torch.backends.mps.is_available():
        return "--device mps needs a Mac with Metal, and this is none: leave the option out."
    return None


def comfyui_flags(device: str) -> list[str]:
    """What ComfyUI's command line gets in the tests' own process."""
    return ["--cpu"] if device == "cpu" else ["--force-fp32"]


def server_flags(device: str) -> list[str]:
    """What it gets in a test's server: on a GPU nothing, so that dtypes are ComfyUI's own choice, as for a user."""
    return ["--cpu"] if device == "cpu" else []


def make_exact(device: str) -> None:
    """On a GPU: fp32 is fp32, and the same call twice gives the same bits."""
    if device == "cpu":
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def close(got: torch.Tensor, want: torch.Tensor, dtype: str = "float32") -> None:
    """Assert that the error's norm is within the bound of the dtype that the network ran in."""
    a, b = got.detach().cpu().double(), want.detach().cpu().double()
    assert a.shape == b.shape, f"{tuple(a.shape)} instead of {tuple(b.shape)}"
    error = float((a - b).norm() / b.norm().clamp_min(1e-12))
    assert error <= BOUNDS[dtype], f"off by {error:.1e} where {dtype} may be by {BOUNDS[dtype]:.0e}"


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Assert equal bits where the tests run on the CPU, and `close` in fp32 on a GPU."""
    if os.environ.get(VARIABLE, "cpu") != "cpu":
        close(got, want)
        return
    import torch

    assert torch.equal(got, want)
