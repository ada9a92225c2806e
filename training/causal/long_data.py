"""Data of long tuning: takes longer than any clip, with several prompts, and their true latents where there are any.

The miniature's are drawn; for another Wan model there are prompts (and, where somebody has long clips of their own,
their latents).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...film.reel.atomic import whole_file
from ...miniature.batch import World
from ...miniature.stories import describe, random_scene
from ...miniature.text import pad, tokenize
from ...miniature.world import ACTIONS, CAMERAS, FPS, Beat, Scene
from ..core.precision import mixed_precision
from ..miniature.latents import coverage
from ..miniature.sequences import BLOCK
from ..miniature.vae import encode

SHARD = 16
MOST_PROMPTS = 5


@dataclass(frozen=True)
class LongTakes:
    """N takes of F latent frames, F whole blocks of 3.

    latents: normalised, [N, C, F, h, w], or None without ground truth; coverage: where characters are, [N, F, h, w] in
    0..1, None where it is not known. tokens: what `encode` of a run takes, of every prompt, [N, K, L]. caption: which
    prompt is on at each frame, [N, F] in 0..K - 1, constant within a block.
    """

    latents: torch.Tensor | None
    coverage: torch.Tensor | None
    tokens: torch.Tensor
    caption: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def blocks(self) -> int:
        """Blocks of a take."""
        return self.caption.shape[1] // BLOCK

    def to(self, device: torch.device | str) -> LongTakes:
        """The same on another device; `caption` stays where it is, the host plans by it."""
        latents, coverage = (None if x is None else x.to(device) for x in (self.latents, self.coverage))
        return LongTakes(latents, coverage, self.tokens.to(device), self.caption.cpu())


def long_scene(rng: random.Random, latents: int, changes: int, *, held_out: bool = False, two: float = 0.2) -> Scene:
    """A scene with `changes` changes of action (and camera) at starts of blocks, at least four blocks apart, the last
    one at least four before the end.

    Raises ValueError where so many do not fit.
    """
    scene = random_scene(rng, 1.0, two=two, held_out=held_out)
    blocks, least = latents // BLOCK, 4
    spare = blocks - least * (changes + 1)
    if spare < 0:
        raise ValueError(f"{latents} latent frames have no room for {changes} changes; take fewer changes.")
    cuts = sorted(rng.randint(0, spare) for _ in range(changes))
    at = [0.0, *((12 * (cut + least * (index + 1)) - 3) / FPS for index, cut in enumerate(cuts))]
    beats: list[Beat] = []
    for time in at:
        while True:
            camera = rng.choice(CAMERAS) if rng.random() < 0.4 else "still"
            beat = Beat(time, tuple(rng.choice(ACTIONS) for _ in scene.actors), camera)
            if not beats or (beat.actions, beat.camera) != (beats[-1].actions, beats[-1].camera):
                break
        beats.append(beat)
    return replace(scene, beats=tuple(beats))


def captions(scene: Scene, latents: int) -> tuple[list[str], torch.Tensor]:
    """The prompts of a scene's beats, and which is on at each latent frame [latents]."""
    prompts = [describe(scene, beat.at) for beat in scene.beats]
    starts = torch.tensor([round((beat.at * FPS + 3) / 4) if beat.at else 0 for beat in scene.beats])
    return prompts, (torch.arange(latents)[:, None] >= starts[None]).sum(dim=1) - 1


@torch.no_grad()
def encode_take(vae: Any, world: World, scene: Scene, latents: int) -> dict[str, torch.Tensor]:
    """One take as `LongTakes` has it. vae: as of training.vae, with normalised latents as its raw ones (read_vae)."""
    device = next(vae.parameters()).device
    drawn = world.render([scene], torch.arange(1 + 4 * (latents - 1))[None] / FPS)
    clip = (drawn.frames.transpose(1, 2) * 2 - 1).contiguous(memory_format=torch.channels_last_3d)
    with mixed_precision(device):
        z = encode(vae, clip)
    prompts, caption = captions(scene, latents)
    tokens = torch.stack([pad(tokenize(prompt)) for prompt in prompts])
    filled = tokens[torch.arange(MOST_PROMPTS).clamp(max=len(prompts) - 1)]
    return {
        "latents": z[0].bfloat16().cpu(),
        "coverage": coverage(drawn.masks[0, :, None]).bfloat16().cpu(),
        "tokens": filled.byte(),
        "caption": caption.byte(),
    }


def encode_takes(vae: Any, shards: int, latents: int, folder: Path, seed: int) -> None:
    """Write `shards` shards of 16 takes of `latents` frames with none to four changes under `folder`; those already
    there are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = World(next(vae.parameters()).device)
    for shard in range(shards):
        path = folder / f"takes-{latents}-{shard:03}.safetensors"
        if path.exists():
            continue
        takes = []
        for index in range(SHARD):
            rng = random.Random(f"long takes {seed}/{shard}/{index}")
            most = min(MOST_PROMPTS - 1, latents // (4 * BLOCK) - 1)
            takes.append(encode_take(vae, world, long_scene(rng, latents, rng.randint(0, most)), latents))
        with whole_file(path) as part:
            save_file({key: torch.stack([take[key] for take in takes]) for key in takes[0]}, part)


def load_takes(folder: Path, latents: int) -> LongTakes:
    """All shards of takes of `latents` frames under `folder`."""
    shards = [load_file(path) for path in sorted(folder.glob(f"takes-{latents}-*.safetensors"))]
    joined = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return LongTakes(joined["latents"], joined["coverage"], joined["tokens"].long(), joined["caption"].long())


def prompt_takes(
    path: Path, blocks: int, encode_prompt: Callable[[str], torch.Tensor], seed: int
) -> tuple[LongTakes, torch.Tensor]:
    """Takes of prompts alone, for any model: each line of `path` is a take, its prompts parted by ` | `, which share
    the take's `blocks` blocks with changes at drawn places. Returns the takes and the table [P, L, D] that their tokens
    number.

    Raises ValueError for a file without prompts, or with more prompts in a line than blocks.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no prompts: write a take in each line, its prompts parted by ' | '.")
    told = [[prompt.strip() for prompt in line.split("|")] for line in lines]
    unique = list(dict.fromkeys(prompt for prompts in told for prompt in prompts))
    most = max(map(len, told))
    if most > blocks:
        raise ValueError(f"A line of {path} has {most} prompts for {blocks} blocks: film longer takes.")
    rng = random.Random(f"prompt takes {seed}")
    tokens, caption = [], []
    for prompts in told:
        at = sorted(rng.sample(range(1, blocks), len(prompts) - 1))
        numbers = [unique.index(prompt) for prompt in prompts]
        tokens.append(torch.tensor([[numbers[min(k, len(numbers) - 1)]] for k in range(most)]))
        starts = torch.tensor([0, *at]) * BLOCK
        caption.append((torch.arange(blocks * BLOCK)[:, None] >= starts[None]).sum(dim=1) - 1)
    table = torch.cat([encode_prompt(prompt) for prompt in unique])
    return LongTakes(None, None, torch.stack(tokens), torch.stack(caption)), table
