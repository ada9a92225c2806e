"""What motion costs beside appearance: `python benchmarks/motion_cost.py`, with the miniature and its motion adapter.

Wrappers: the base against the same with an adapter whose layers are zero, at cfg 1, the motion layers' own products
included. Guidance: evaluations of the network and seconds, of plain guidance and of inner guidance in half of the
steps. Best of some runs each, taken in turn.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from longreel.training.core.command_line import start_comfyui
from longreel.training.miniature.evaluate import load, print_table

FRAMES = 21


def counted(model: Any) -> tuple[Any, list[int]]:
    """A clone of the model, and the batch sizes of its network's calls, filled as it samples."""
    from comfy.patcher_extension import WrappersMP

    clone, sizes = model.clone(), []

    def count(executor: Any, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        sizes.append(len(x))
        return executor(x, *rest, **named)

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return clone, sizes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=FRAMES, help="latent frames of 8 x 8")
    chosen = parser.parse_args()
    start_comfyui()
    logging.disable(logging.WARNING)
    import comfy.sample
    from longreel.host.adapters.motion import attach, read_adapter, zero_adapter
    from longreel.host.files.paths import MINIATURE_WEIGHTS
    from longreel.host.guidance import Window
    from longreel.host.inner_guidance import MotionGuidance, guide

    models = load(MINIATURE_WEIGHTS)
    adapter = read_adapter(MINIATURE_WEIGHTS / "loras/longreel-miniature-motion.safetensors")
    told, empty = (
        models.clip.encode_from_tokens_scheduled(models.clip.tokenize(text))
        for text in ("A red ball with a crown walks in the middle in the forest.", "")
    )
    latent = torch.zeros(1, 16, chosen.frames, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 0)
    joint = attach(models.model, adapter)
    rows: dict[str, tuple[Any, float]] = {
        "base, cfg 1": (models.model, 1.0),
        "layers of zero, cfg 1": (attach(models.model, zero_adapter(models.model, adapter.info)), 1.0),
        "adapter, cfg 5": (joint, 5.0),
        "inner guidance in half of the steps, cfg 5": (
            guide(joint, MotionGuidance(3.0, Window(0.0, 0.5))), 5.0,
        ),
    }  # fmt: skip

    def run(model: Any, cfg: float) -> None:
        comfy.sample.sample(
            model, noise, chosen.steps, cfg, "euler", "simple", told, empty, latent, disable_pbar=True, seed=0
        )

    def seconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in rows}
    evaluations = {}
    for name, (model, cfg) in rows.items():
        looked, sizes = counted(model)
        run(looked, cfg)
        evaluations[name] = float(sum(sizes))
    for _ in range(chosen.runs):
        for name, (model, cfg) in rows.items():
            times[name].append(seconds(lambda model=model, cfg=cfg: run(model, cfg)))  # type: ignore[misc]
    best = {name: min(values) for name, values in times.items()}
    print_table(
        f"{chosen.steps} steps of {chosen.frames} latent frames, best of {chosen.runs}",
        {name: {"evaluations": evaluations[name], "s": best[name]} for name in rows},
    )
    base, zero, plain, guided = best.values()
    print(f"\nWrappers and motion layers: {100 * (zero / base - 1):.1f} %. Inner guidance: {guided / plain:.2f} x.")


if __name__ == "__main__":
    main()
