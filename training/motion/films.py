"""Films of the miniature with and without better motion, read by the probe and by the motion meter."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ...film.motion import measure_flow
from ...host.adapters.motion import MotionAdapter, attach
from ...host.guidance import Window
from ...host.inner_guidance import MotionGuidance, guide
from ...host.media.optical_flow import flow_between
from ...host.wan.weak_guidance import WeakGuidance, guide_from_weak
from ...miniature.probe import Probe
from ...miniature.stories import describe
from ...miniature.world import FPS, Scene, render
from ..miniature.evaluate import expected, schedule
from ..miniature.export import read_probe
from .data import Encoders, moving_scene
from .trajectory import Tracker, fit_tracker, trajectory_error

__all__ = ["film_of", "judge_motion", "moving_prompts"]

_APPEARANCE = ("colour", "body", "headgear", "place")


def moving_prompts(count: int, seed: int = 0) -> list[Scene]:
    """Held-out scenes of one character that does something."""
    rng = random.Random(f"moving prompts {seed}")
    found: list[Scene] = []
    while len(found) < count:
        scene = moving_scene(rng, held_out=True)
        if len(scene.actors) == 1 and scene.beats[0].actions[0] != "stands":
            found.append(scene)
    return found


@torch.inference_mode()
def film_of(
    model: Any, encoders: Encoders, prompt: str, seed: int, *, frames: int, steps: int, cfg: float
) -> torch.Tensor:
    """Frames [T, H, W, 3] of a prompt, denoised all at once at the miniature's noise levels; few steps re-noise."""
    import comfy.sample

    positive, negative = (
        encoders.clip.encode_from_tokens_scheduled(encoders.clip.tokenize(text)) for text in (prompt, "")
    )
    empty = torch.zeros(1, model.model.latent_format.latent_channels, (frames - 1) // 4 + 1, 8, 8)
    noise = comfy.sample.prepare_noise(empty, seed)
    latents = comfy.sample.sample(
        model, noise, steps, cfg, "lcm" if steps <= 4 else "euler", "simple", positive, negative, empty,
        disable_pbar=True, seed=seed, sigmas=schedule(steps),
    )  # fmt: skip
    pictures: torch.Tensor = encoders.vae.decode(latents)[0]
    return pictures.float().cpu()


@torch.no_grad()
def judge_motion(
    encoders: Encoders,
    weights: Path,
    adapters: Mapping[str, MotionAdapter],
    count: int,
    *,
    frames: int,
    steps: int,
    cfg: float,
    scales: Sequence[float],
    ends: Sequence[float],
    fallbacks: bool,
    gate: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """A row for the base, each fallback, each adapter alone, and at each scale of inner guidance until each of `ends`
    (shares of the steps). gate: whether the scale is lowered where the adapter predicts motion badly. Of an adapter
    without motion, trained for comparison, guidance is left out.

    "appearance": share of frames read as prompted, over colour, body, headgear and place; "action": of windows;
    "trajectory": mean distance in pixels to the world's physics, see trajectory.py; "dynamic degree", "speed",
    "smoothness", "acceleration": of the motion report, by matched blocks. The row "rendered" is the world itself
    through the VAE.
    """
    probe = Probe().eval()
    read_probe(probe, weights)
    tracker = fit_tracker(probe)
    rows: dict[str, Any] = {"base": encoders.model}
    if fallbacks:
        window = Window(0.0, 0.6)
        rows["skip layer"] = guide_from_weak(encoders.model, WeakGuidance("skip", (), 1.0, window))
        rows["STG"] = guide_from_weak(encoders.model, WeakGuidance("values", (), 1.0, window))
    for name, adapter in adapters.items():
        joint = attach(encoders.model, adapter)
        rows[name] = joint
        if not any(bool(weight.any()) for weight in adapter.layers.values()):
            continue
        for scale, end in product(scales, ends):
            guidance = MotionGuidance(scale, Window(0.0, end), gate=adapter.info.gate if gate else None)
            rows[f"{name}, w2 {scale:g} to {end:g}"] = guide(joint, guidance)
    scenes = moving_prompts(count, seed)

    def film(model: Any, index: int) -> torch.Tensor:
        prompt, own = describe(scenes[index]), seed * 100_000 + index
        return film_of(model, encoders, prompt, own, frames=frames, steps=steps, cfg=cfg)

    def rendered(index: int) -> torch.Tensor:
        clip = render(scenes[index], torch.arange(frames) / FPS).frames.movedim(1, -1)
        pictures: torch.Tensor = encoders.vae.decode(encoders.vae.encode(clip))[0]
        return pictures.float().cpu()

    makers: dict[str, Callable[[int], torch.Tensor]] = {"rendered": rendered}
    makers |= {name: partial(film, model) for name, model in rows.items()}
    return {name: _judged(make, scenes, tracker) for name, make in makers.items()}


def _judged(make: Callable[[int], torch.Tensor], scenes: Sequence[Scene], tracker: Tracker) -> dict[str, float]:
    """Means over the films that `make` gives of the scenes' numbers."""
    sums: dict[str, float] = {}
    for index, scene in enumerate(scenes):
        frames = make(index)
        reading, wanted = tracker.probe.read(frames), expected(scene)
        report = measure_flow(frames, flow_between(frames), FPS)
        row = {
            "appearance": sum(reading.accuracy(name, wanted[name]) for name in _APPEARANCE) / len(_APPEARANCE),
            "action": reading.accuracy("action", wanted["action"]),
            "trajectory": trajectory_error(tracker.track(frames), scene),
            "dynamic degree": report.dynamic_degree,
            "speed": report.speed,
            "smoothness": report.smoothness,
            "acceleration": report.acceleration,
        }
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value / len(scenes)
    return sums
