"""Films of the miniature with and without better motion, read by the probe and by the motion meter."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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
from ...miniature.world import FPS, Scene
from ..miniature.evaluate import expected
from ..miniature.export import read_probe
from .data import Encoders, moving_scene

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
    """Frames [T, H, W, 3] of a prompt, denoised all at once; few steps re-noise, as the miniature learned."""
    import comfy.sample

    positive, negative = (
        encoders.clip.encode_from_tokens_scheduled(encoders.clip.tokenize(text)) for text in (prompt, "")
    )
    empty = torch.zeros(1, model.model.latent_format.latent_channels, (frames - 1) // 4 + 1, 8, 8)
    noise = comfy.sample.prepare_noise(empty, seed)
    latents = comfy.sample.sample(
        model, noise, steps, cfg, "lcm" if steps <= 4 else "euler", "simple", positive, negative, empty,
        disable_pbar=True, seed=seed,
    )  # fmt: skip
    pictures: torch.Tensor = encoders.vae.decode(latents)[0]
    return pictures.float().cpu()


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
    end: float,
    fallbacks: bool,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """A row for the base, each fallback, and each adapter at each scale of inner guidance until `end` of the steps.

    "appearance": share of frames read as prompted, over colour, body, headgear and place; "action": of windows;
    "dynamic degree", "speed", "smoothness", "acceleration": of the motion report, by matched blocks.
    """
    probe = Probe().eval()
    read_probe(probe, weights)
    rows: dict[str, Any] = {"base": encoders.model}
    if fallbacks:
        window = Window(0.0, 0.6)
        rows["skip layer"] = guide_from_weak(encoders.model, WeakGuidance("skip", (), 1.0, window))
        rows["STG"] = guide_from_weak(encoders.model, WeakGuidance("values", (), 1.0, window))
    for name, adapter in adapters.items():
        joint = attach(encoders.model, adapter)
        for scale in scales:
            guidance = MotionGuidance(scale, Window(0.0, end), gate=adapter.info.gate)
            rows[f"{name}, w2 {scale:g}"] = guide(joint, guidance) if scale else joint
    return {name: _judged(model, encoders, probe, count, frames, steps, cfg, seed) for name, model in rows.items()}


def _judged(
    model: Any, encoders: Encoders, probe: Probe, count: int, length: int, steps: int, cfg: float, seed: int
) -> dict[str, float]:
    sums: dict[str, float] = {}
    for index, scene in enumerate(moving_prompts(count, seed)):
        frames = film_of(model, encoders, describe(scene), seed * 100_000 + index, frames=length, steps=steps, cfg=cfg)
        reading, wanted = probe.read(frames), expected(scene)
        report = measure_flow(frames, flow_between(frames), FPS)
        row = {
            "appearance": sum(reading.accuracy(name, wanted[name]) for name in _APPEARANCE) / len(_APPEARANCE),
            "action": reading.accuracy("action", wanted["action"]),
            "dynamic degree": report.dynamic_degree,
            "speed": report.speed,
            "smoothness": report.smoothness,
            "acceleration": report.acceleration,
        }
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value / count
    return sums
