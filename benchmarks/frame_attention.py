"""Frame attention against what PyTorch has: `python benchmarks/frame_attention.py --suite quick --out DIR`.

Everything is timed in one run on one machine, so that ratios mean something; PREDICTIONS were written before the first
run and are printed beside what was measured. Each method attends over the same arenas: ours by run table; SDPA over
keys gathered beforehand (the attention alone); cat + SDPA, as the original code does; scratch + SDPA, our way without
Triton; FlexAttention, compiled, with a block mask. Source: docs/kernels.md.

Suites: `tiny` runs anywhere in seconds and proves only that the script works; `quick` takes two to four minutes on a
GPU; `full` adds shapes and sweeps tile sizes as long as the budget lasts. JSON is written after every case. Several
arenas take turns so that the L2 cache does not flatter. The run ends with status 1 where our kernel is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count as forever
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longreel.kernels import backends, configs, ops, reference, runs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

Method = Callable[[], torch.Tensor]
ARENAS = 3

PREDICTIONS = {
    "ours / SDPA cuDNN, 1.3B dense 12": (1.35, "430 against 580 TFLOP/s on an H200: cuDNN wins dense attention"),
    "ours / SDPA flash, 1.3B dense 12": (0.77, "430 against 330 TFLOP/s on an H200; 1.07 on a 4090 (140 against 150)"),
    "ours / cat + SDPA, 1.3B dense 15": (0.73, "as above, and 288 MB of concatenation fall away"),
    "ours / Flex, 1.3B 3 of 6 + 6": (0.9, "the same arithmetic, but frames of 1,560 tokens make partial blocks"),
    "ours / scratch + SDPA, 1.3B 3 of 6 + 6": (0.8, "without cuDNN preferred; against scratch + cuDNN it would be 1.3"),
    "ours 3 of 24 + 6 / ours 3 of 6 + 6": (1.0, "a sparse call's cost does not depend on the bank's size"),
    "ours 3 of 6 + 6 / ours dense 12": (0.75, "9 of 12 frames"),
    "QK preparation: ours / PyTorch": (0.1, "87 MB once, against some 20 passes over fp32 copies"),
}
"""Time ratios expected on an H200, and why."""


@dataclass(frozen=True)
class Case:
    """One shape. frames of memory (sink and bank), of the window (the block included), picked of memory: 0 = all."""

    name: str
    memory: int
    window: int
    picked: int = 0
    heads: int = 12
    head_dim: int = 128
    rows: int = 30
    columns: int = 52
    block: int = 3

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.rows * self.columns

    @property
    def keys(self) -> int:
        """Tokens attended to."""
        return ((self.picked or self.memory) + self.window) * self.tokens

    @property
    def flop(self) -> int:
        """Useful floating-point operations of one call."""
        return 4 * self.block * self.tokens * self.keys * self.heads * self.head_dim


QUICK = [
    Case("1.3B dense 12", 6, 6),
    Case("1.3B dense 15", 6, 9),
    Case("1.3B 3 of 6 + 6", 6, 6, picked=3),
    Case("1.3B 3 of 24 + 6", 24, 6, picked=3),
]
SUITES = {
    "tiny": [
        Case("tiny dense 4", 2, 2, heads=2, head_dim=64, rows=4, columns=5, block=2),
        Case("tiny 1 of 2 + 2", 2, 2, picked=1, heads=2, head_dim=64, rows=4, columns=5, block=2),
    ],
    "quick": QUICK,
    "full": [
        *QUICK,
        Case("1.3B dense 9", 3, 6),
        Case("1.3B dense 21", 0, 21),
        Case("320x576 dense 12", 6, 6, rows=20, columns=36),
        Case("14B dense 12", 6, 6, heads=40),
        Case("odd frames 12", 6, 6, rows=29, columns=51),
    ],
}


class Stage:
    """Arenas, queries and tables of one case; the arenas take turns from call to call."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.case, self.turn = case, forever()
        slots = case.memory + case.window + case.picked
        shape = (1, case.heads, slots * case.tokens, case.head_dim)
        arenas = range(ARENAS)
        self.k = [torch.randn(shape, device=device, dtype=dtype) for _ in arenas]
        self.v = [torch.randn(shape, device=device, dtype=dtype) for _ in arenas]
        queries = (1, case.heads, case.block * case.tokens, case.head_dim)
        self.q = torch.randn(queries, device=device, dtype=dtype)
        window = torch.arange(case.memory, case.memory + case.window, device=device)
        if case.picked:
            scores = torch.rand((case.heads, case.memory), device=device)
            self.picks = scores.argsort(dim=1)[:, : case.picked].sort(dim=1).values
            self.slots = torch.cat((self.picks, window.expand(case.heads, -1)), dim=1)
            self.runs, self.count = runs.slot_runs(self.slots.reshape(1, case.heads, 1, -1), case.tokens)
        else:
            self.slots = torch.arange(case.memory + case.window, device=device).expand(case.heads, -1)
            self.runs, self.count = runs.table([(0, case.keys)], device)

    def arena(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next keys and values."""
        i = next(self.turn) % ARENAS
        return self.k[i], self.v[i]

    def gathered(self, arena: torch.Tensor) -> torch.Tensor:
        """Each head's own frames in one piece."""
        heads = torch.arange(self.case.heads, device=arena.device).unsqueeze(1)
        return arena[0].unflatten(1, (-1, self.case.tokens))[heads, self.slots].flatten(1, 2).unsqueeze(0)

    def ours(self) -> torch.Tensor:
        """Our operator."""
        return ops.frame_attention(self.q, *self.arena(), self.runs, self.count)

    def sdpa(self, *backend: SDPBackend) -> Method:
        """Attention alone, over keys that were gathered beforehand; a dense case reads the arena in place."""
        if self.case.picked:
            ready = [(self.gathered(k), self.gathered(v)) for k, v in zip(self.k, self.v)]
        else:
            ready = [(k[:, :, : self.case.keys], v[:, :, : self.case.keys]) for k, v in zip(self.k, self.v)]

        def call() -> torch.Tensor:
            k, v = ready[next(self.turn) % ARENAS]
            with sdpa_kernel(list(backend)) if backend else nullcontext():
                return F.scaled_dot_product_attention(self.q, k, v).transpose(1, 2)

        return call

    def cat_sdpa(self) -> torch.Tensor:
        """Memory and window joined anew for every call, as the original code does."""
        parts = [self.gathered(x) if self.case.picked else self._joined(x) for x in self.arena()]
        return F.scaled_dot_product_attention(self.q, *parts).transpose(1, 2)

    def _joined(self, arena: torch.Tensor) -> torch.Tensor:
        split = self.case.memory * self.case.tokens
        return torch.cat((arena[:, :, :split], arena[:, :, split : self.case.keys]), dim=2)

    def scratch_sdpa(self) -> torch.Tensor:
        """Picked frames copied behind the window, then attention in place over window and scratch."""
        case, arena = self.case, self.arena()
        heads = torch.arange(case.heads, device=self.q.device).unsqueeze(1)
        for part in arena:
            frames = part[0].unflatten(1, (-1, case.tokens))
            frames[:, case.memory + case.window :] = frames[heads, self.picks]
        k, v = (part[:, :, case.memory * case.tokens :] for part in arena)
        return F.scaled_dot_product_attention(self.q, k, v).transpose(1, 2)

    def flex(self) -> Method:
        """FlexAttention over the arena with a block mask; only compiled does it skip what is masked."""
        case, device = self.case, self.q.device
        slots = self.k[0].shape[2] // case.tokens
        allowed = torch.zeros((case.heads, slots), dtype=torch.bool, device=device)
        allowed.scatter_(1, self.slots, True)

        def chosen(batch: Any, head: torch.Tensor, query: Any, key: torch.Tensor) -> torch.Tensor:
            return allowed[head, key // case.tokens]

        size = (case.block * case.tokens, slots * case.tokens)
        mask = create_block_mask(chosen, None, case.heads, *size, device=device)
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda: compiled(self.q, *self.arena(), block_mask=mask).transpose(1, 2)

    def methods(self, with_flex: bool) -> dict[str, Callable[[], Method]]:
        """How to make each method of this case ready."""
        found: dict[str, Callable[[], Method]] = {"ours": lambda: self.ours, "SDPA": self.sdpa}
        if self.q.device.type == "cuda":
            found["SDPA flash"] = lambda: self.sdpa(SDPBackend.FLASH_ATTENTION)
            found["SDPA cuDNN"] = lambda: self.sdpa(SDPBackend.CUDNN_ATTENTION)
        found["cat + SDPA"] = lambda: self.cat_sdpa
        if self.case.picked:
            found["scratch + SDPA"] = lambda: self.scratch_sdpa
        if with_flex:
            found["Flex"] = self.flex
        return found

    def error(self, method: Method) -> float:
        """Relative error of the first head against float64, of the arena that comes first."""
        self.turn = forever()
        got = method()[:, :, :1].double()
        one = slice(0, 1)
        k, v = (arena[:, one].double() for arena in (self.k[0], self.v[0]))
        table, count = self.runs[:, one], self.count[:, one]
        q = self.q[:, one].double()
        want = reference.attend(q, k, v, table, count, q.shape[2], self.case.head_dim**-0.5)[0]
        return float((got - want).norm() / want.norm())


def timed(call: Callable[[], object], device: torch.device, seconds: float) -> dict[str, float]:
    """Median, 20th and 80th percentile of one call in milliseconds, measured for about `seconds`."""
    cuda = device.type == "cuda"
    for _ in range(3):
        call()
    spent: list[float] = []
    stop = time.perf_counter() + seconds
    while len(spent) < 10 or (time.perf_counter() < stop and len(spent) < 300):
        if cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            begin.record()
            call()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end))
        else:
            begun = time.perf_counter()
            call()
            spent.append(1000 * (time.perf_counter() - begun))
    deciles = statistics.quantiles(spent, n=10)
    return {"ms": statistics.median(spent), "p20": deciles[1], "p80": deciles[7]}


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """What this machine can do at best: TFLOP/s of a large product, GB/s of a large copy (read and written)."""
    size, elements = (8192, 2**31) if device.type == "cuda" else (128, 2**18)
    a, b = (torch.randn((size, size), device=device, dtype=dtype) for _ in range(2))
    product = timed(lambda: a @ b, device, seconds)["ms"]
    source = torch.empty(elements, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, seconds)["ms"]
    return {"TFLOP/s": 2 * size**3 / product / 1e9, "GB/s": 2 * elements / copy / 1e6}


def preparation(case: Case, device: torch.device, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
    """QK preparation: our operator against its PyTorch twin, with the error of what each stored."""
    width, length = case.heads * case.head_dim, case.block * case.tokens
    given = [torch.randn((1, length, width), device=device, dtype=dtype) for _ in range(3)]
    given += [torch.rand(width, device=device, dtype=dtype) for _ in range(2)]
    tables = reference.rope_tables(32, case.rows, case.columns, case.head_dim, device=device)
    at = torch.arange(case.block, device=device, dtype=torch.int32)

    def arenas(wide: torch.dtype | None = None) -> list[torch.Tensor]:
        shape = (1, case.heads, case.block * case.tokens, case.head_dim)
        made = [torch.zeros(shape, device=device, dtype=wide or dtype) for _ in range(2)]
        return [*made, torch.zeros((1, case.heads, case.block, case.head_dim), device=device, dtype=wide)]

    exact = arenas(torch.float64)
    reference.prepare(*(x.double() for x in given), tables, at, 1e-6, *exact, at)
    found: dict[str, Any] = {}
    for name in ("ours", "PyTorch"):
        stored = arenas()

        def call(name: str = name, stored: list[torch.Tensor] = stored) -> object:
            if name == "ours":
                return ops.qk_prep(*given, tables, at, *stored, at)
            return reference.prepare(*given, tables, at, 1e-6, *stored, at)

        call()
        error = float((stored[0].double() - exact[0]).norm() / exact[0].norm())
        found[name] = {**timed(call, device, seconds), "error": error}
        found[name]["GB/s"] = 6 * length * width * dtype.itemsize / found[name]["ms"] / 1e6
    return found


def sweep(case: Case, device: torch.device, seconds: float, deadline: float) -> dict[str, float]:
    """Milliseconds of our kernel with other tiles, until the deadline."""
    from longreel.kernels import attention_triton

    stage, found = Stage(case, device, torch.bfloat16), {}
    for tiles in [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3)]:
        if time.perf_counter() > deadline:
            break
        config = configs.AttentionConfig(*tiles)

        def call(config: configs.AttentionConfig = config) -> torch.Tensor:
            arguments = (stage.runs, stage.count, stage.q.shape[2], case.head_dim**-0.5, False, config)
            return attention_triton.attend(stage.q, *stage.arena(), *arguments)[0]

        try:
            found[str(tiles)] = timed(call, device, seconds)["ms"]
        except Exception as error:
            print(f"tiles {tiles}: {error}")
    return found


def run_case(case: Case, device: torch.device, dtype: torch.dtype, seconds: float, flex: bool) -> dict[str, Any]:
    """Time every method of a case; a method that cannot run leaves its reason. Ends the run if ours is wrong."""
    stage, found = Stage(case, device, dtype), {}
    for name, make in stage.methods(flex).items():
        try:
            method = make()
            error = stage.error(method)
            found[name] = {**timed(method, device, seconds), "error": error}
            found[name]["TFLOP/s"] = case.flop / found[name]["ms"] / 1e9
        except Exception as failure:
            if name == "ours":
                raise
            found[name] = {"failed": f"{type(failure).__name__}: {str(failure).splitlines()[:1]}"}
        if name == "SDPA" and found["ours"]["error"] > 1.5 * found["SDPA"].get("error", 1) + 1e-4:
            raise SystemExit(f"{case.name}: our error {found['ours']['error']:.1e} is beyond SDPA's")
    return found


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Every ratio that PREDICTIONS names and both of whose times are there."""
    times = {(case, name): entry["ms"] for case, of in results.items() for name, entry in of.items() if "ms" in entry}
    pairs = {
        f"ours / {name}, {case}": ((case, "ours"), (case, name))
        for case, name in times
        if name not in ("ours", "PyTorch")
    } | {
        "ours 3 of 24 + 6 / ours 3 of 6 + 6": (("1.3B 3 of 24 + 6", "ours"), ("1.3B 3 of 6 + 6", "ours")),
        "ours 3 of 6 + 6 / ours dense 12": (("1.3B 3 of 6 + 6", "ours"), ("1.3B dense 12", "ours")),
        "QK preparation: ours / PyTorch": (("QK preparation", "ours"), ("QK preparation", "PyTorch")),
    }
    return {name: times[a] / times[b] for name, (a, b) in pairs.items() if a in times and b in times}


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table, then predictions beside what was measured."""
    lines = ["| case | method | ms | p20-p80 | TFLOP/s | GB/s | error |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for case, methods in report["results"].items():
        for name, entry in methods.items():
            if "failed" in entry:
                lines.append(f"| {case} | {name} | {entry['failed']} | | | | |")
                continue
            rates = " | ".join(f"{entry[unit]:.1f}" if unit in entry else "" for unit in ("TFLOP/s", "GB/s"))
            spread = f"{entry['p20']:.3f}-{entry['p80']:.3f}"
            lines.append(f"| {case} | {name} | {entry['ms']:.3f} | {spread} | {rates} | {entry['error']:.1e} |")
    lines += ["", "| time ratio | predicted (H200) | measured | why predicted |", "| --- | --- | --- | --- |"]
    measured = report["ratios"]
    for name in [*PREDICTIONS, *(name for name in measured if name not in PREDICTIONS)]:
        predicted, why = PREDICTIONS.get(name, ("", ""))
        lines.append(f"| {name} | {predicted} | {f'{measured[name]:.3f}' if name in measured else '-'} | {why} |")
    best = report["ceilings"]
    return "\n".join([*lines, "", f"Ceilings: {best['TFLOP/s']:.2f} TFLOP/s, {best['GB/s']:.1f} GB/s."])


def main() -> int:
    """Run a suite. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for frame_attention.json and .md")
    parser.add_argument("--budget-s", type=float, default=480, help="start no further case after so many seconds")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out (it needs a compiler)")
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seconds = 0.01 if chosen.suite == "tiny" else 1.5
    deadline = time.perf_counter() + chosen.budget_s
    torch.manual_seed(0)
    chosen.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    cases = SUITES[chosen.suite]
    report: dict[str, Any] = {
        "device": name,
        "suite": chosen.suite,
        "kernels": backends.kernel_report(backends.Problem(device, dtype, cases[0].head_dim)),
        "predictions": PREDICTIONS,
        "cases": {case.name: asdict(case) for case in cases},
        "ceilings": ceilings(device, dtype, seconds),
        "results": {},
    }

    def note(case: str, result: dict[str, Any]) -> None:
        report["results"][case] = result
        report["ratios"] = ratios(report["results"])
        (chosen.out / "frame_attention.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        print(f"{case}: done", flush=True)

    with torch.inference_mode():
        for case in cases:
            if time.perf_counter() > deadline:
                print(f"{case.name}: left out, the budget is spent")
                continue
            note(case.name, run_case(case, device, dtype, seconds, not chosen.no_flex))
        if chosen.suite == "full" and report["kernels"]["backend"] == "triton":
            report["tiles"] = sweep(cases[0], device, seconds, deadline)
        note("QK preparation", preparation(cases[0], device, dtype, seconds))
    shown = table(report)
    (chosen.out / "frame_attention.md").write_text(shown + "\n", encoding="utf-8")
    print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
