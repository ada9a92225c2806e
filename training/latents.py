"""Latents of rendered stories, encoded once and kept as shards on disk: what the DiT is trained on.

A story here is two takes of 21 latent frames (81 frames, 5 s) with the same lead: the second is what happens after a
cut.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ..miniature.stories import describe, is_held_out, random_scene
from ..miniature.text import pad, tokenize
from ..miniature.world import FPS, Actor, Scene, render
from .vae import encode

LATENTS = 21
FRAMES = 1 + 4 * (LATENTS - 1)
SHARD = 32


@dataclass(frozen=True)
class Stories:
    """S stories of two takes.

    latents: normalised, [S, 2, 16, 21, 8, 8]. weights: where characters are, [S, 2, 21, 8, 8]. tokens: [S, 2, 3, 48],
    the prompt before and after the take's change of action, and the one that says "the same character". change: the
    latent frame [S, 2] from which the second prompt holds (21: never).
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


@torch.no_grad()
def _encode_story(
    vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, rng: random.Random
) -> dict[str, torch.Tensor]:
    latents, weights, tokens, change = [], [], [], []
    for scene in _scene_pair(rng):
        drawn = render(scene, torch.arange(FRAMES) / FPS)
        clip = (drawn.frames.transpose(0, 1)[None] * 2 - 1).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = encode(vae, clip).float()
        latents.append(((z - shift) / scale)[0])
        mask = F.max_pool2d(drawn.masks.amax(dim=1), 8)
        weights.append(torch.cat([mask[:1], F.max_pool1d(mask[1:].flatten(1).T, 4).T.unflatten(1, mask.shape[1:])]))
        later = scene.beats[1].at if len(scene.beats) > 1 else 0.0
        place_first = rng.random() < 0.25
        prompts = [
            describe(scene, 0.0, place_first=place_first),
            describe(scene, later),
            describe(scene, 0.0, same=frozenset({0}), place_first=place_first),
        ]
        tokens.append(torch.stack([pad(tokenize(prompt)) for prompt in prompts]))
        change.append(round((scene.beats[1].at * FPS + 3) / 4) if len(scene.beats) > 1 else LATENTS)
    return {
        "latents": torch.stack(latents).bfloat16(),
        "weights": torch.stack(weights).bfloat16(),
        "tokens": torch.stack(tokens).to(torch.uint8),
        "change": torch.tensor(change),
    }


def encode_stories(
    vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, shards: int, folder: Path, seed: int
) -> None:
    """Write shards of 32 stories under ``folder``; shards already there are kept, so a killed run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"stories-{shard:03}.safetensors"
        if path.exists():
            continue
        stories = [_encode_story(vae, shift, scale, random.Random(f"{seed}/{shard}/{i}")) for i in range(SHARD)]
        part = path.with_suffix(".part")
        save_file({key: torch.stack([story[key] for story in stories]) for key in stories[0]}, part)
        part.replace(path)


def load_stories(folder: Path) -> Stories:
    """All shards found under ``folder``, in float32."""
    shards = [load_file(path) for path in sorted(folder.glob("stories-*.safetensors"))]
    joined = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return Stories(joined["latents"], joined["weights"], joined["tokens"].long(), joined["change"])
