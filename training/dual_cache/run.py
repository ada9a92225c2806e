"""A FilmWeaver LoRA from a model and a folder of encoded scenes, with samples on the way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...film.pixels import to_pil
from ..core.auxiliary import AuxiliaryLoss
from ..core.contact_sheet import Row, draw_sheet
from ..core.run import on_its_device
from .samples import Curriculum, TrainingScene, draw_sample, load_scenes
from .train import WeaverMatcher, WeaverSettings, train_weaver

_LOOK_STEPS = 12
_PICTURES = 6
_MODES = ("new shot", "shot goes on", "cut to a new shot", "later shot goes on")


def train_scenes(
    model: Any,
    data: Path,
    settings: WeaverSettings,
    folder: Path,
    *,
    base: str,
    vae: Any = None,
    empty: torch.Tensor | None = None,
    start_from: Path | None = None,
    auxiliary: AuxiliaryLoss | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train in `folder` on the scenes in `data`; returns the LoRA's file. A run that was stopped goes on there.

    model: MODEL as its loader gives it; it stays as it is. base: its name, for the file's metadata. vae: shows what the
    LoRA films; None shows nothing. empty, start_from, auxiliary: as of `train_weaver`. Raises CacheError, LoraError:
    scenes, model and settings do not fit; raised before anything is trained.
    """
    scenes = load_scenes(data)
    check_modes(scenes, settings)
    model = on_its_device(model)
    told = {"base": base, "recipe": "filmweaver", "scenes": str(len(scenes)), "vae": scenes[0].vae}
    look = None if vae is None else _looker(scenes, settings, model, vae, folder / "samples")
    return train_weaver(
        model.model.diffusion_model, scenes, settings, folder, told,
        empty=empty, start_from=start_from, auxiliary=auxiliary, sample=look, say=say,
    )  # fmt: skip


def check_modes(scenes: Sequence[TrainingScene], settings: WeaverSettings) -> None:
    """Draw a sample of every mode that a stage of the run needs, so that it fails now and not after thousands of
    updates.

    Raises CacheError: no shot is long enough for one of them.
    """
    for mode, stage in _modes(settings).items():
        draw_sample(scenes, random.Random(0), _only(stage, mode), settings.profile)


def draw_keyframes(scenes: Sequence[TrainingScene], vae: Any, latent_format: Any, path: Path, most: int = 20) -> None:
    """A picture of scenes of which only the encoding is there: each shot's first keyframe, a row a scene."""
    rows = []
    for number, scene in enumerate(scenes[:most], start=1):
        shots = [shot.keyframes[0] for shot in scene.shots if len(shot.keyframes)]
        if shots:
            pictures = [to_pil(_decoded(vae, latent_format, latents[None])[0]) for latents in shots]
            rows.append(Row(f"scene {number}", f"{len(scene.shots)} shots", pictures))
    if rows:
        draw_sheet(rows, path)
    else:
        Image.new("RGB", (64, 64), "white").save(path)


def _modes(settings: WeaverSettings) -> dict[int, Curriculum]:
    """The modes, from 0, that the run's stages draw, each with the last stage that does."""
    stages = ((settings.first, settings.first_steps), (settings.second, settings.steps + settings.rollout_steps))
    return {mode: stage for stage, steps in stages if steps for mode, rate in enumerate(stage.modes) if rate}


def _only(curriculum: Curriculum, mode: int) -> Curriculum:
    rates = (float(mode == 0), float(mode == 1), float(mode == 2), float(mode == 3))
    return replace(curriculum, modes=rates, drop_text=0.0, drop_cache=0.0)


def _looker(
    scenes: Sequence[TrainingScene], settings: WeaverSettings, model: Any, vae: Any, folder: Path
) -> Callable[[int, WeaverMatcher], None]:
    """Draws one chunk of each mode as the LoRA films it so far, below the one of the film."""
    shown = {
        mode: draw_sample(scenes, random.Random("shown"), _only(stage, mode), settings.profile)
        for mode, stage in _modes(settings).items()
    }
    latent_format = model.model.latent_format
    true: dict[int, Row] = {}

    def row(name: str, latents: torch.Tensor) -> Row:
        film = _decoded(vae, latent_format, latents)
        return Row(name, "", [to_pil(frame) for frame in film[:: max(len(film) // _PICTURES, 1)]])

    def look(step: int, matcher: WeaverMatcher) -> None:
        rows = []
        for mode, sample in shown.items():
            noise = torch.randn(1, *sample.target.shape, generator=torch.Generator().manual_seed(settings.seed))
            payloads = [] if sample.payload is None else [sample.payload]
            made = matcher.sample([sample.text], payloads, noise, steps=_LOOK_STEPS, shift=settings.shift)
            if mode not in true:
                true[mode] = row(f"{_MODES[mode]}, the film's", sample.target[None])
            rows += [true[mode], row(f"{_MODES[mode]}, the LoRA's after {step} steps", made.cpu())]
        folder.mkdir(parents=True, exist_ok=True)
        draw_sheet(rows, folder / f"step-{step:06}.png")

    return look


@torch.inference_mode()
def _decoded(vae: Any, latent_format: Any, latents: torch.Tensor) -> torch.Tensor:
    """Frames [T, H, W, 3] of normalised latents [1, C, t, h, w]."""
    frames: torch.Tensor = vae.decode(latent_format.process_out(latents))
    return frames[0] if frames.ndim == 5 else frames
