"""Our Triton kernels in Triton's interpreter against float64, on any machine.

Runs where the tests run. LONGREEL_KERNEL_PYTHON names another Python, one with its own torch, triton and numpy and
`longreel` importable (PYTHONPATH=.comfy/package does), to try another version of Triton.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its interpreter cannot run the kernels")

BOUNDS = {"fp32": 2e-6, "fp16": 1e-3, "bf16": 5e-3}
LSE_BOUND = 1e-5
ATTENTION = ["dense, odd sizes", "per head, wrapped"]
IN_FP32 = [
    "two of a batch",
    "a head of 128",
    "the head's list is empty",
    "a run of no tokens",
    "a slot twice",
    "one token",
    "a list per query block",
    "slots in another order",
    "preparation of two",
    "one of two frames",
]
CASES = [f"{dtype} {case}" for dtype in BOUNDS for case in (*ATTENTION, "preparation", "sparse activation")] + [
    f"fp32 {c}" for c in IN_FP32
]


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    script = Path(__file__).with_name("interpreter_cases.py")
    seed = str(random.randrange(2**31))
    done = subprocess.run(
        [os.environ.get("LONGREEL_KERNEL_PYTHON", sys.executable), str(script), seed],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_against_float64(errors: dict[str, dict[str, float]], case: str):
    for name, error in errors[case].items():
        bound = LSE_BOUND if name == "lse" else BOUNDS[case.split()[0]]
        assert error < bound, f"{name} is off by {error:.2e}"


def test_every_case_is_looked_at(errors: dict[str, dict[str, float]]):
    assert sorted(errors) == sorted(CASES)
