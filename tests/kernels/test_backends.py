"""Who runs a kernel where: the capability check, forcing, and going on without Triton when it fails."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from longreel.kernels import backends, dense
from longreel.kernels.backends import BackendError, Problem, select_backend

CUDA = Problem(torch.device("cuda", 0), torch.bfloat16, 128)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Triton and a GPU of compute capability 8.9, nothing forced, nothing chosen or broken yet."""
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(backends, "_broken", {})
    backends._select.cache_clear()


def cuda(**other: Any) -> Problem:
    return Problem(**{**vars(CUDA), **other})


def test_triton_where_it_can(monkeypatch: pytest.MonkeyPatch):
    for capability in [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        backends._select.cache_clear()
        assert select_backend(CUDA).backend == "triton"


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (cuda(device=torch.device("cpu")), "not cpu"),
        (cuda(device=torch.device("mps")), "not mps"),
        (cuda(dtype=torch.float32), "neither fp16 nor bf16"),
        (cuda(head_dim=48), "48 channels"),
        (cuda(aligned=False), "16 bytes"),
    ],
)
def test_pytorch_elsewhere_and_the_log_says_why(caplog: pytest.LogCaptureFixture, problem: Problem, why: str):
    with caplog.at_level(logging.INFO):
        choices = [select_backend(problem) for _ in range(2)]
    assert choices[0].backend == "sdpa"
    assert why in choices[0].reason
    assert caplog.text.count(why) == 1, "said once"


@pytest.mark.parametrize(
    ("owner", "name", "value", "why"),
    [
        (torch.version, "hip", "6.4", "ROCm"),
        (importlib.util, "find_spec", lambda name: None, "not installed"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "7.5 is below 8.0"),
    ],
    ids=["ROCm", "no Triton", "Turing"],
)
def test_machines_without_our_kernels(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any, why: str):
    monkeypatch.setattr(owner, name, value)
    choice = select_backend(CUDA)
    assert choice.backend == "sdpa"
    assert why in choice.reason
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(BackendError, match=why):
        select_backend(CUDA)


@pytest.mark.parametrize("name", ["sdpa", "torch", "triton"])
def test_a_backend_is_forced(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(backends.VARIABLE, name)
    assert select_backend(CUDA).backend == name


def test_what_cannot_be_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(backends.VARIABLE, "fastest")
    with pytest.raises(BackendError, match="none of auto, triton"):
        select_backend(CUDA)
    monkeypatch.setenv(backends.VARIABLE, "interpret")
    with pytest.raises(BackendError, match="TRITON_INTERPRET"):
        select_backend(cuda(device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("capability", "dtype", "first"),
    [
        ((9, 0), torch.bfloat16, True),
        ((10, 3), torch.float16, True),
        ((8, 9), torch.bfloat16, False),
        ((12, 0), torch.bfloat16, False),
        ((9, 0), torch.float32, False),
    ],
)
def test_cudnn_first_on_data_center_cards(monkeypatch: pytest.MonkeyPatch, capability: Any, dtype: Any, first: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dense._is_data_center.cache_clear()
    q = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)
    assert dense.prefers_cudnn(q) is first
    assert not dense.prefers_cudnn(torch.zeros(1, dtype=torch.bfloat16))
    dense._is_data_center.cache_clear()


def test_alignment_is_read_from_the_tensors():
    x = torch.zeros(2, 3, 8, 64, dtype=torch.bfloat16)
    assert Problem.of(x, 64, x.transpose(1, 2)).aligned
    assert not Problem.of(x, 64, x.mT).aligned
    assert not Problem.of(x[..., 1:], 64).aligned


def run(kernel: Any) -> str:
    return backends.run(CUDA, "configs", kernel, lambda backend: backend)


def failing(error: Exception, calls: list[int]) -> Any:
    def kernel(module: Any, capability: tuple[int, int]) -> str:
        calls.append(1)
        raise error

    return kernel


def test_a_kernel_that_fails_once_is_not_tried_again(caplog: pytest.LogCaptureFixture):
    calls: list[int] = []
    kernel = failing(RuntimeError("no ptxas here"), calls)
    assert [run(kernel) for _ in range(3)] == ["sdpa"] * 3
    assert len(calls) == 1
    assert "no ptxas here" in caplog.text
    assert "no ptxas here" in backends.kernel_report(CUDA)["reason"]


def test_a_forced_kernel_that_fails_and_full_memory_are_the_callers_business(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(failing(torch.cuda.OutOfMemoryError("full"), []))
    assert select_backend(CUDA).backend == "triton"
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="no ptxas"):
        run(failing(RuntimeError("no ptxas here"), []))


def test_the_package_works_without_triton_and_does_not_import_it_unasked():
    program = """
import sys
sys.modules["triton"] = None
import torch
from longreel.kernels import backends, configs, ops, runs
assert backends.kernel_report(backends.Problem.of(torch.zeros(2, 16), 16))["backend"] == "sdpa"
assert not any(name.startswith("longreel") and name.endswith("triton") for name in sys.modules)
assert not any(name.split(".")[0] in ("comfy", "nodes", "folder_paths") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
