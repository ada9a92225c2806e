"""A film's rollout against ComfyUI's own autoregressive sampler, with the same weights, and what the memory costs.

    python benchmarks/rollout.py                       the miniature, 60 s, on the CPU
    python benchmarks/rollout.py --suite full          Wan 1.3B of random weights, 832x480, bf16: for a GPU
    python benchmarks/rollout.py --suite quick         the same network at 128x128, two blocks: fits a CPU
    python benchmarks/rollout.py --suite full --upstream PATH    and an original MemFlow checkout with the same weights

Each way runs in a process of its own, so that peak memory is its own; ratios compare within one run on one machine.
Ways: `core` is SamplerARVideo, which keeps every frame; `window` ours with window 12 and sink 3 (LongLive), `bank` with
a bank of 3 (MemFlow), `sparse` with 3 active frames of it, `kernels` the same with LONGREEL_ATTENTION=triton,
`upstream` the original code (benchmarks/upstream.py). Rollout only: no VAE, no text encoder. On a GPU the share of a
large matrix product's rate is reported, and how far the kernels' latents are from PyTorch's; on a CPU times are
processor times.

Predictions, written before the first run. Over 60 s core's last block costs about four times its tenth, because it
attends to 240 frames and not to 30; ours costs the same within 5 %. Core's cache is 240 frames, ours 12 or 16: 15 times
less. Over the film ours takes a third less time on the miniature, where attention is a small part of a block, and less
than a third at 1.3B and 832x480. The bank costs 3 % or less over the window alone in the arena's bookkeeping, plus 25 %
of attention's own time for 3 keys more on 12; sparse activation takes that back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
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
_COMPARED = 6
"""Latent frames in which two implementations are compared: random weights drive any two films apart later."""
WAYS = ("core", "window", "bank", "sparse", "kernels", "upstream")
_USUAL = WAYS[:4]


def build(name: str) -> tuple[Any, int]:
    """A causal model and the width of the text it reads."""
    import comfy.sd

    if name == "miniature":
        return comfy.sd.load_diffusion_model(str(MINIATURE)), 128
    metadata = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    return comfy.sd.load_diffusion_model_state_dict(random_weights(), metadata=metadata), 4096


def random_weights() -> dict[str, torch.Tensor]:
    """Wan 1.3B of random weights, bf16, the same every time."""
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
    return state


@torch.inference_mode()
def measure(way: str, suite: str, checkout: Path, latents: Path | None) -> dict[str, Any]:
    """Roll one film out and report its times and this process's peak memory. checkout: of the original, for `upstream`;
    latents: folder that takes the film's beginning, to be compared.
    """
    from longreel.training.core.command_line import start_comfyui

    start_comfyui()
    import comfy.sample
    import comfy.samplers
    from longreel.film.kv_memory import LONGLIVE, MEMFLOW
    from longreel.host.wan.rollout import Prompt, roll_out

    plan = SUITES[suite]
    model, width = (None, 4096) if way == "upstream" else build(plan["model"])
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
        else:
            # of this process alone, so that other work on the machine does not count
            clock.append(time.process_time())

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
    elif way == "upstream":
        from upstream import film_upstream, open_upstream

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pipeline, replaced = open_upstream(checkout, random_weights(), conditioning[0][0], device, torch.bfloat16)
        print(f"upstream goes without {', '.join(replaced) or 'nothing'}", flush=True)
        noise = torch.randn(1, 3 * blocks, 16, height, breadth, device=device, dtype=torch.bfloat16)
        tick()
        film_upstream(pipeline, noise, tick)
        frames = 12 + 4
    else:
        settings = LONGLIVE if way == "window" else replace(MEMFLOW, active=3 if way in ("sparse", "kernels") else 0)
        if way == "kernels":
            os.environ["LONGREEL_ATTENTION"] = "triton"
        tick()
        prompts = [Prompt(0, conditioning)]
        rollout = roll_out(model, prompts, shape, sigmas, settings=settings, on_block=lambda *_: tick())
        frames = 12 + (4 if way != "window" else 0) + settings.active
        if latents is not None:
            torch.save(rollout.latents[:, :, :_COMPARED], latents / f"{way}.pt")
    steps = [b - a for a, b in pairwise(clock)]
    dim, layers, ffn = (192, 8, 576) if plan["model"] == "miniature" else (1536, 30, 8960)
    tokens = -(-height // 2) * -(-breadth // 2)
    size = 2 if model is None else model.model.get_dtype_inference().itemsize
    cache = 2 * frames * tokens * dim * layers * size
    keys = tokens * {"core": 3 * blocks, "window": 12, "bank": 15, "upstream": 15}.get(way, 12)
    linear = 2 * (6 * dim * dim + 2 * dim * ffn) + 4 * dim * conditioning[0][0].shape[1]
    flop = 5 * layers * 3 * tokens * (linear + 4 * dim * keys)
    return {
        "way": way,
        "last_block_tflops": flop / statistics.median(steps[-4:]) / 1e12,
        "seconds": sum(steps),
        "block_ms_tenth": 1000 * statistics.median(steps[7:12] or steps),
        "block_ms_last": 1000 * statistics.median(steps[-5:]),
        "block_ms": 1000 * statistics.median(steps[12:] or steps),
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all that this machine can run")
    parser.add_argument("--upstream", type=Path, help="checkout of KlingTeam/MemFlow to compare with (suite full)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--latents", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.suite, chosen.upstream, chosen.latents)))
        return
    if chosen.upstream and chosen.suite != "full":
        raise SystemExit("The original code films at 832x480 only: compare with it in --suite full.")
    ways = chosen.ways or [*_USUAL, *(["kernels"] if torch.cuda.is_available() else [])]
    ways += ["upstream"] if chosen.upstream and "upstream" not in ways else []
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            child = [sys.executable, __file__, "--suite", chosen.suite, "--one", way, "--latents", folder]
            child += ["--upstream", str(chosen.upstream)] if chosen.upstream else []
            answer = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            rows[way] = json.loads(answer)
            print(json.dumps(rows[way]), flush=True)
        apart = _apart(Path(folder))
    columns = [name for name in next(iter(rows.values())) if name != "way"]
    print(f"\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for way, row in rows.items():
        print(f"| {way} | {' | '.join(f'{row[name]:.1f}' for name in columns)} |")
    ratios = _ratios(rows) | apart | _shares(rows)
    print("\n" + "\n".join(f"{name}: {value:.3f}" for name, value in ratios.items()))
    if chosen.out:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
        record = {"suite": chosen.suite, "machine": machine, "torch": torch.__version__, "rows": rows, "ratios": ratios}
        chosen.out.write_text(json.dumps(record, indent=1))


def _apart(folder: Path) -> dict[str, float]:
    """How far the kernels' latents are from those of the same film by PyTorch, relative."""
    files = [folder / f"{way}.pt" for way in ("kernels", "sparse")]
    if not all(file.exists() for file in files):
        return {}
    ours, theirs = (torch.load(file, weights_only=True) for file in files)
    return {"latents, kernels against sparse": float((ours - theirs).norm() / theirs.norm())}


def _shares(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """On a GPU: each way's share of the rate of a large matrix product in bf16."""
    if not torch.cuda.is_available():
        return {}
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = 2 * 8192**3 / statistics.median(times) / 1e12
    return {f"share of a product's rate, {way}": row["last_block_tflops"] / rate for way, row in rows.items()}


def _ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    ratios = {f"{way}: last block / tenth": row["block_ms_last"] / row["block_ms_tenth"] for way, row in rows.items()}
    for way in rows.keys() - {"core"}:
        if "core" in rows:
            ratios[f"time, {way} / core"] = rows[way]["seconds"] / rows["core"]["seconds"]
            ratios[f"cache, core / {way}"] = rows["core"]["cache_mb"] / rows[way]["cache_mb"]
    for way in rows.keys() - {"upstream"}:
        if "upstream" in rows:
            ratios[f"speed, {way} / upstream"] = rows["upstream"]["block_ms"] / rows[way]["block_ms"]
    if {"sparse", "bank"} <= rows.keys():
        ratios["time per block, sparse / bank"] = rows["sparse"]["block_ms"] / rows["bank"]["block_ms"]
    for way in rows.keys() & {"bank", "sparse", "kernels"}:
        if "window" in rows:
            ratios[f"time per block, {way} / window"] = rows[way]["block_ms"] / rows["window"]["block_ms"]
    return dict(sorted(ratios.items()))


if __name__ == "__main__":
    main()
