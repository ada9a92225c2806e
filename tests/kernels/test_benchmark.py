"""The benchmark script runs and its methods agree, on shapes that prove nothing about speed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/frame_attention.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frame_attention_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_methods_agree_and_are_tabled(benchmark: ModuleType):
    results = {}
    for case in benchmark.SUITES["tiny"]:
        results[case.name] = benchmark.run_case(case, CPU, torch.float32, 0.0, False)
    results["QK preparation"] = benchmark.preparation(case, CPU, torch.float32, 0.0)
    for of in results.values():
        assert all(entry["error"] < 2e-6 for entry in of.values()), of
    assert "scratch + SDPA" in results["tiny 1 of 2 + 2"]
    report = {"results": results, "ratios": benchmark.ratios(results), "ceilings": {"TFLOP/s": 1.0, "GB/s": 1.0}}
    shown = benchmark.table(report)
    assert "| tiny dense 4 | cat + SDPA |" in shown
    assert "| QK preparation: ours / PyTorch | 0.1 |" in shown


def test_every_prediction_is_of_a_case_that_runs(benchmark: ModuleType):
    """A ratio nobody measures would stand in the table as a dash for ever."""
    names = [case.name for case in benchmark.SUITES["quick"]]
    entry = {"ms": 1.0}
    methods = ("ours", "SDPA", "SDPA flash", "SDPA cuDNN", "cat + SDPA", "scratch + SDPA", "Flex", "PyTorch")
    results = {name: dict.fromkeys(methods, entry) for name in (*names, "QK preparation")}
    assert set(benchmark.PREDICTIONS) <= set(benchmark.ratios(results))


def test_a_wrong_kernel_ends_the_run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    right = benchmark.ops.frame_attention
    monkeypatch.setattr(benchmark.ops, "frame_attention", lambda *given: 1.01 * right(*given))
    with pytest.raises(SystemExit, match="beyond SDPA's"):
        benchmark.run_case(benchmark.SUITES["tiny"][0], CPU, torch.float32, 0.0, False)
