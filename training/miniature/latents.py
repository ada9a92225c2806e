"""Latents of rendered stories and openings, encoded once and kept as shards on disk: what the DiT is trained on.

A story here is two takes of 21 latent frames (81 frames, 5 s) with the same lead: the second is what happens after a
cut. An opening is the first block of a take: for the price of one story there are many of them, each with a prompt of
its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ...film.reel.atomic import whole_file
from ...miniature.stories import describe, is_held_out, random_scene
from ...miniature.text import pad, tokenize
from ...miniature.world import FPS, Actor, Scene, render
from ..core.precision import mixed_precision
from .vae import encode

LATENTS = 21
FRAMES = 1 + 4 * (LATENTS - 1)
OPENING = 3
SHARD = 32
OPENING_SHARD = 256


@dataclass(frozen=True)
class Stories:
    """S stories of T takes of F latent frames; openings are stories of one take of 3 frames.

    latents: normalised, [S, T, 16, F, 8, 8]. weights: where characters are, [S, T, F, 8, 8]. tokens: [S, T, 3, 48],
    the prompt before and after the take's change of action, and the one that says "the same character". change: the
    latent frame [S, T] from which the second prompt holds (21: never).
    """

    latents: torch.Tensor
    weights: torch.Tensor
    tokens: torch.Tensor
    change: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)


def _scene_pair(rng: random.Random) -> list[Scene]:
    """Two scenes whose first actor is the same character, both allowed in training."""
    seconds = FRAMES / FPS
    first = random_scene(rng, seconds)
    lead = first.actors[0].character
    while True:
        second = random_scene(rng, seconds)
        actor = second.actors[0]
        swapped = replace(second, actors=(Actor(lead, actor.position, actor.nudge), *second.actors[1:]))
        if not any(is_held_out(actor.character, swapped.place) for actor in swapped.actors):
            return [_on_blocks(first), _on_blocks(swapped)]


def _on_blocks(scene: Scene) -> Scene:
    """The scene with its second beat moved to the nearest start of a block of 3 latent frames, and no third: prompts
    change there.
    """
    beats = scene.beats[:2]
    if len(beats) == 2:
        block = max(round((beats[1].at * FPS + 3) / 12), 2)
        beats = (beats[0], replace(beats[1], at=(12 * block - 3) / FPS))
    return replace(scene, beats=beats)


def coverage(masks: torch.Tensor) -> torch.Tensor:
    """Where characters are in latent frames, [F, H / 8, W / 8] of 0..1, from masks [4 F - 3, N, H, W] of pictures."""
    cells = F.max_pool2d(masks.amax(dim=1), 8)
    return torch.cat([cells[:1], F.max_pool1d(cells[1:].flatten(1).T, 4).T.unflatten(1, cells.shape[1:])])


def _encode_take(
    vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, rng: random.Random, scene: Scene, latents: int
) -> dict[str, torch.Tensor]:
    """The first `latents` latent frames of `scene` with everything `Stories` says of a take."""
    drawn = render(scene, torch.arange(1 + 4 * (latents - 1)) / FPS)
    clip = (drawn.frames.transpose(0, 1)[None] * 2 - 1).to(shift.device, memory_format=torch.channels_last_3d)
    with torch.no_grad(), mixed_precision(shift.device):
        z = encode(vae, clip).float()
    later = scene.beats[1].at if len(scene.beats) > 1 else 0.0
    place_first = rng.random() < 0.25
    prompts = [
        describe(scene, 0.0, place_first=place_first),
        describe(scene, later),
        describe(scene, 0.0, same=frozenset({0}), place_first=place_first),
    ]
    return {
        "latents": ((z - shift) / scale)[0].bfloat16().cpu(),
        "weights": coverage(drawn.masks).bfloat16(),
        "tokens": torch.stack([pad(tokenize(prompt)) for prompt in prompts]).to(torch.uint8),
        "change": torch.tensor(round((scene.beats[1].at * FPS + 3) / 4) if len(scene.beats) > 1 else LATENTS),
    }


def _stacked(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]}


def story_scenes(seed: int, index: int) -> list[Scene]:
    """The two scenes of story `index` of those that `encode_stories` draws with `seed`."""
    return _scene_pair(random.Random(_name(seed, index, SHARD)))


def opening_scene(seed: int, index: int) -> Scene:
    """The scene of opening `index`, as above."""
    return random_scene(random.Random(f"opening {_name(seed, index, OPENING_SHARD)}"), 1.0)


def _name(seed: int, index: int, shard: int) -> str:
    return f"{seed}/{index // shard}/{index % shard}"


def encode_stories(
    vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, shards: int, folder: Path, seed: int
) -> None:
    """Write `shards` shards of 32 stories and as many of 256 openings under `folder`; those already there are kept, so
    a killed run goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def story(index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(_name(seed, index, SHARD))
        return _stacked([_encode_take(vae, shift, scale, rng, scene, LATENTS) for scene in _scene_pair(rng)])

    def opening(index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"opening {_name(seed, index, OPENING_SHARD)}")
        return _stacked([_encode_take(vae, shift, scale, rng, random_scene(rng, 1.0), OPENING)])

    for shard in range(shards):
        for kind, size, make in (("stories", SHARD, story), ("openings", OPENING_SHARD, opening)):
            path = folder / f"{kind}-{shard:03}.safetensors"
            if path.exists():
                continue
            with whole_file(path) as part:
                save_file(_stacked([make(shard * size + i) for i in range(size)]), part)


def load_stories(folder: Path, kind: str = "stories") -> Stories:
    """All shards of a `kind` ("stories" or "openings") found under `folder`."""
    shards = [load_file(path) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]
    joined = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return Stories(joined["latents"], joined["weights"], joined["tokens"].long(), joined["change"])
