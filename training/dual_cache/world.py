"""Scenes of the small world for FilmWeaver: a few shots that share people and, mostly, a place, with exact captions.

In two scenes of three one character is in every shot, and after the first shot captions often say only "the same
character": only the keyframes identify it. In the others two characters take turns under their full descriptions, so
that many keyframes show another one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...film.dual_cache import spread_frames
from ...miniature.batch import World
from ...miniature.stories import describe, is_held_out, random_character
from ...miniature.text import pad, tokenize
from ...miniature.world import (
    ACTIONS,
    BODIES,
    CAMERAS,
    COLOURS,
    PLACES,
    POSITIONS,
    Actor,
    Beat,
    Character,
    Scene,
)
from ..core.precision import mixed_precision
from ..miniature.latent_classifier import multi_hot_labels
from ..miniature.takes import latent_coverage, times
from ..miniature.vae import encode
from .samples import SceneShot, TrainingScene, save_scene

SHOTS = 3
LENGTHS = (12, 12, 18)
"""Latent frames of a shot: two or three chunks."""
_KEYFRAMES = 3


@dataclass(frozen=True)
class WorldShot:
    """A take and what is said of it."""

    scene: Scene
    caption: str
    latents: int


def is_new(character: Character) -> bool:
    """An eighth of the pairs of colour and body is in no scene that FilmWeaver learns from."""
    return (COLOURS.index(character.colour) + 3 * BODIES.index(character.body)) % 8 == 5


def draw_world_scene(rng: random.Random, shots: int = SHOTS) -> tuple[WorldShot, ...]:
    """A scene to learn from: no combination of character and place that is held out, no pair that is new."""
    leads = [_known(rng)] if rng.random() < 0.67 else [_known(rng), _known(rng)]
    place, drawn = rng.choice(PLACES), []
    for number in range(shots):
        if number and rng.random() < 0.4:
            place = rng.choice(PLACES)
        cast = leads if len(leads) == 2 and rng.random() < 0.3 else [rng.choice(leads)]
        while any(is_held_out(character, place) for character in cast):
            place = rng.choice(PLACES)
            if all(any(is_held_out(one, other) for one in cast) for other in PLACES):
                cast = cast[:1]
        says_same = len(leads) == 1 and number > 0 and rng.random() < 0.9
        scene = one_beat(rng, place, cast, still=rng.random() < 0.7)
        same = frozenset({0}) if says_same else frozenset()
        drawn.append(WorldShot(scene, describe(scene, same=same, place_first=rng.random() < 0.25), rng.choice(LENGTHS)))
    return tuple(drawn)


def one_beat(rng: random.Random, place: str, cast: Sequence[Character], *, still: bool = True) -> Scene:
    """One take of one action each, at random positions."""
    positions = ("left", "right") if len(cast) == 2 else (rng.choice(POSITIONS),)
    actors = tuple(
        Actor(character, position, round(rng.uniform(-0.05, 0.05), 3))
        for character, position in zip(cast, positions, strict=True)
    )
    camera = "still" if still else rng.choice(CAMERAS)
    return Scene(place, actors, (Beat(0.0, tuple(rng.choice(ACTIONS) for _ in cast), camera),))


def _known(rng: random.Random) -> Character:
    while is_new(character := random_character(rng)):
        pass
    return character


@dataclass(frozen=True, eq=False)
class WorldModels:
    """What encodes: the miniature's VAE as its trainer has it, text encoder and keyframe CLIP; and what draws."""

    vae: nn.Module
    clip: Any
    embedder: Any
    world: World


def encode_world(
    models: WorldModels, count: int, folder: Path, *, seed: int = 0, part: int = 0, parts: int = 1
) -> None:
    """Write `count` scenes under `folder`, one file each; those already there are kept. part, parts: number, from 0, of
    this one of the processes that share the work, and how many they are.
    """
    for index in range(part, count, parts):
        path = folder / f"scene-{index:04}.safetensors"
        if not path.exists():
            shots = draw_world_scene(random.Random(f"weaver {seed} {index}"))
            encoded = tuple(encode_shot(models, shot) for shot in shots)
            save_scene(TrainingScene("longreel-miniature-vae", "longreel-miniature-text", encoded), path)


@torch.no_grad()
def encode_shot(models: WorldModels, shot: WorldShot) -> SceneShot:
    """A take as the trainer reads it; its keyframes are spread from first to last."""
    drawn = models.world.render([shot.scene], times(1, shot.latents))
    frames = drawn.frames[0].cpu()
    chosen = frames[[4 * place for place in spread_frames(shot.latents, _KEYFRAMES)]]
    embedded = models.embedder.images(chosen.movedim(1, -1))
    tokens = models.clip.tokenize(shot.caption)
    text = models.clip.encode_from_tokens(tokens)[0]
    return SceneShot(
        latents=encode_clips(models.vae, frames[None])[0],
        text=text.float().cpu(),
        caption=F.normalize(models.embedder.text(shot.caption).mean(dim=0), dim=0),
        keyframes=encode_clips(models.vae, chosen[:, None]),
        embeddings=embedded,
        subject=latent_coverage(drawn.masks)[0].cpu(),
        shown=multi_hot_labels(pad(tokenize(describe(shot.scene)))),
    )


def encode_frames(vae: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """Latents [16, F, h, w] in the model's space of frames [T, 3, H, W] in 0..1, T = 4 F - 3."""
    return encode_clips(vae, frames[None])[0]


def encode_clips(vae: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Latents [S, 16, F, h, w] in the model's space of clips [S, T, 3, H, W]; on the CPU."""
    device = next(vae.parameters()).device
    clip = (clips.transpose(1, 2) * 2 - 1).to(device, memory_format=torch.channels_last_3d)
    with torch.no_grad(), mixed_precision(device):
        return encode(vae, clip).float().cpu()
