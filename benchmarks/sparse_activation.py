"""Sparse activation of one layer call, Wan 1.3B at 832x480: our kernels against PyTorch's operators.

    python benchmarks/sparse_activation.py [--candidates 6] [--active 3] [--out FILE]

On a GPU: milliseconds and kernel launches of both, and whether picks and copies are equal. On a CPU: how many operators
each runs that do more than make a view, on a small shape; that says how many launches a GPU would get at least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from longreel.kernels import sparse
from longreel.kernels.backends import VARIABLE, Problem, kernel_report
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

PREDICTED = {
    "launches, ours": 3,
    "launches, PyTorch": 17,
    "ms, ours / PyTorch": 0.15,
    "ms a block of 150 calls, ours": 4,
}
"""For an H100, written before anything was measured there."""
HEADS, HEAD_DIM, WINDOW = 12, 128, 9


class Computing(TorchDispatchMode):
    """Counts operators that are not views of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Compare both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--active", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    gpu = torch.cuda.is_available()
    device, dtype, tokens = ("cuda", torch.bfloat16, 1560) if gpu else ("cpu", torch.float32, 8)
    candidates, active = chosen.candidates, chosen.active
    to = 1 + candidates + WINDOW
    q = torch.randn(1, HEADS, 3 * tokens, HEAD_DIM, device=device, dtype=dtype)
    means = torch.randn(candidates, HEADS, HEAD_DIM, device=device)
    k, v = torch.randn(2, 1, HEADS, (to + active) * tokens, HEAD_DIM, device=device, dtype=dtype)
    picked: dict[str, torch.Tensor] = {}

    def ours() -> None:
        picked["ours"] = sparse.pick_frames(q, means, active)
        sparse.copy_frames(k, v, picked["ours"], 1, to, tokens)

    def theirs() -> None:
        scores = torch.einsum("hd,nhd->hn", q[0].mean(dim=1, dtype=torch.float32), means)
        picks = scores.argsort(dim=1, descending=True, stable=True)[:, :active].sort(dim=1).values
        picked["PyTorch"], heads = picks, torch.arange(HEADS, device=device).unsqueeze(1)
        for arena in (k, v):
            frames = arena[0].unflatten(1, (-1, tokens))
            frames[:, to : to + active].copy_(frames[heads, 1 + picks])

    found: dict[str, float | str] = {}
    with torch.inference_mode():
        for name, way in (("ours", ours), ("PyTorch", theirs)):
            way()  # compiles, and compares once
            found[f"launches, {name}" if gpu else f"operators, {name} (on a CPU)"] = launches(way, gpu)
            if gpu:
                found[f"ms, {name}"] = milliseconds(way)
    problem = Problem(q.device, dtype, HEAD_DIM)
    found |= {"picks equal": str(torch.equal(picked["ours"], picked["PyTorch"])), **kernel_report(problem)}
    if gpu:
        found["card"] = torch.cuda.get_device_name()
        found["ms, ours / PyTorch"] = found["ms, ours"] / found["ms, PyTorch"]
        found["ms a block of 150 calls, ours"] = 150 * found["ms, ours"]
    for name, value in found.items():
        predicted = f"   (predicted: {PREDICTED[name]})" if name in PREDICTED else ""
        print(f"{name}: {value if isinstance(value, (int, str)) else f'{value:.4f}'}{predicted}")
    if not gpu:
        print(f"No GPU: ours is the PyTorch twin here ({VARIABLE} and docs/kernels.md say when the kernels run).")
    if chosen.out:
        chosen.out.write_text(json.dumps({"predicted": PREDICTED, "found": found}, indent=1), encoding="utf-8")


def launches(way: Callable[[], None], gpu: bool) -> int:
    """Of one call: kernels of a GPU, or operators that compute."""
    if not gpu:
        with Computing() as mode:
            way()
        return mode.count
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as running:
        way()
        torch.cuda.synchronize()
    return sum(event.count for event in running.key_averages() if "LaunchKernel" in event.key)


def milliseconds(way: Callable[[], None]) -> float:
    """Median of 50 calls in a row of 10, one row's time divided."""
    rows = []
    for _ in range(50):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            way()
        torch.cuda.synchronize()
        rows.append(100 * (time.perf_counter() - start))
    return statistics.median(rows)


if __name__ == "__main__":
    main()
