"""A film's rollout against ComfyUI's own autoregressive sampler, with the same weights, and what the memory costs.

    python benchmarks/rollout.py                       the miniature, 60 s, on the CPU
    python benchmarks/rollout.py --suite full          Wan 1.3B of random weights, 832x480, bf16: for a GPU
    python benchmarks/rollout.py --suite quick         the same network at 128x128, two blocks: fits a CPU

Each way runs in a process of its own, so that peak memory is its own; ratios compare within one run on one machine.
Ways: `core` is SamplerARVideo, which keeps every frame; `window` ours with window 12 and sink 3 (LongLive), `bank` with
a bank of 3 (MemFlow), `sparse` with 3 active frames of it. Rollout only: no VAE, no text encoder.

Predictions, written before the first run. Over 60 s core's last block costs about four times its tenth, because it
attends to 240 frames and not to 30; ours costs the same within 5 %. Core's cache is 240 frames, ours 12 or 16: 15 times
less. Over the film ours takes a third less time on the miniature, where attention is a small part of a block, and less
than a third at 1.3B and 832x480. The bank costs 3 % or less over the window alone in the arena's bookkeeping, plus 25 %
of attention's own time for 3 keys more on 12; sparse activation takes that back.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
MINIATURE = PACK / "miniature" / "weights" / "diffusion_models" / "longreel-miniature-dit.safetensors"
SIGMAS = (1.0, 0.9375, 0.8333, 0.625, 0.0)
SUITES = {
    "tiny": {"model": "miniature", "blocks": 80, "size": (8, 8)},
    "quick": {"model": "1.3B", "blocks": 2, "size": (16, 16)},
    "full": {"model": "1.3B", "blocks": 20, "size": (60, 104)},
}
"""Blocks of 3 latent frames and the latent size of each suite; 80 blocks are 60 s."""
WAYS = ("core", "window", "bank", "sparse")


def build(name: str) -> tuple[Any, int]:
    """A causal model and the width of the text it reads."""
    import comfy.sd

    if name == "miniature":
        return comfy.sd.load_diffusion_model(str(MINIATURE)), 128
    import comfy.ops
    from comfy.ldm.wan.ar_model import CausalWanModel

    torch.manual_seed(0)
    model = CausalWanModel(
        dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, freq_dim=256, text_dim=4096, dtype=torch.bfloat16,
        device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    state = {}
    for key, value in model.state_dict().items():
        if value.ndim == 1 and "norm" in key:
            state[key] = torch.ones_like(value)
        else:
            state[key] = torch.randn_like(value) * (value[0].numel() ** -0.5 if value.ndim > 1 else 0.02)
    del model
    metadata = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    return comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata), 4096


@torch.inference_mode()
def measure(way: str, suite: str) -> dict[str, Any]:
    """Roll one film out and report its times and this process's peak memory."""
    from longreel.training.miniature import start_comfyui

    start_comfyui()
    import comfy.sample
    import comfy.samplers
    from longreel.film.memory import LONGLIVE, MEMFLOW
    from longreel.host.rollout import Prompt, roll_out

    plan = SUITES[suite]
    model, width = build(plan["model"])
    torch.manual_seed(1)
    conditioning = [[torch.randn(1, 48 if width == 128 else 512, width), {}]]
    blocks, (height, breadth) = plan["blocks"], plan["size"]
    shape, sigmas = (1, 16, 3 * blocks, height, breadth), torch.tensor(SIGMAS)
    clock: list[float] = []
    before = _peak_mb()

    def tick() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock.append(time.perf_counter())

    if way == "core":
        sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 3})
        calls = len(SIGMAS) - 1
        seen = []

        def callback(*_: Any) -> None:
            seen.append(1)
            if len(seen) % calls == 0:
                tick()

        empty = torch.zeros(shape)
        noise = comfy.sample.prepare_noise(empty, 0)
        tick()
        comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, conditioning, conditioning, empty, callback=callback,
            disable_pbar=True, seed=0,
        )  # fmt: skip
        frames = 3 * blocks
    else:
        settings = LONGLIVE if way == "window" else replace(MEMFLOW, active=3 if way == "sparse" else 0)
        tick()
        roll_out(model, [Prompt(0, conditioning)], shape, sigmas, settings=settings, on_block=lambda *_: tick())
        frames = 12 + (4 if way != "window" else 0) + settings.active
    steps = [b - a for a, b in pairwise(clock)]
    dit = model.model.diffusion_model
    tokens = -(-height // 2) * -(-breadth // 2)
    cache = 2 * frames * tokens * dit.dim * dit.num_layers * model.model.get_dtype_inference().itemsize
    return {
        "way": way,
        "seconds": sum(steps),
        "block_ms_tenth": 1000 * statistics.median(steps[8:12] or steps),
        "block_ms_last": 1000 * statistics.median(steps[-4:]),
        "cache_mb": cache / 1e6,
        "peak_mb": _peak_mb(),
        "peak_over_model_mb": _peak_mb() - before,
        "frames_per_second": (12 * blocks - 3) / sum(steps),
    }


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every way of a suite, print a table and the ratios, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="tiny")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.suite)))
        return
    rows = {}
    for way in chosen.ways:
        child = [sys.executable, __file__, "--suite", chosen.suite, "--one", way]
        answer = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        rows[way] = json.loads(answer)
        print(json.dumps(rows[way]), flush=True)
    columns = [name for name in next(iter(rows.values())) if name != "way"]
    print(f"\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for way, row in rows.items():
        print(f"| {way} | {' | '.join(f'{row[name]:.1f}' for name in columns)} |")
    ratios = _ratios(rows)
    print("\n" + "\n".join(f"{name}: {value:.3f}" for name, value in ratios.items()))
    if chosen.out:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
        record = {"suite": chosen.suite, "machine": machine, "torch": torch.__version__, "rows": rows, "ratios": ratios}
        chosen.out.write_text(json.dumps(record, indent=1))


def _ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    ratios = {f"{way}: last block / tenth": row["block_ms_last"] / row["block_ms_tenth"] for way, row in rows.items()}
    for way in rows.keys() - {"core"}:
        if "core" in rows:
            ratios[f"time, {way} / core"] = rows[way]["seconds"] / rows["core"]["seconds"]
            ratios[f"cache, core / {way}"] = rows["core"]["cache_mb"] / rows[way]["cache_mb"]
    for way in rows.keys() & {"bank", "sparse"}:
        if "window" in rows:
            ratios[f"time per block, {way} / window"] = rows[way]["block_ms_last"] / rows["window"]["block_ms_last"]
    return dict(sorted(ratios.items()))


if __name__ == "__main__":
    main()
