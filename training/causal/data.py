"""Training data of the memory adapter: a character before a cut and after it, and places without characters.

Each item is encoded once and kept. How they become training sequences is `training.causal.train`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...film.reel.atomic import whole_file
from ...miniature.batch import World
from ...miniature.stories import describe, is_held_out, random_character
from ...miniature.text import pad, tokenize
from ...miniature.world import ACTIONS, CAMERAS, PLACES, POSITIONS, Actor, Beat, Character, Scene
from ..miniature.takes import encode_clips, latent_coverage, times

VIEWS = 3
"""Frames of a character that an item remembers."""
TARGET = 6
"""Latent frames of a take after a cut: two blocks."""
_SHARD = 64
_LONGEST = 8.0


@dataclass(frozen=True)
class Takes:
    """N takes that begin after a cut. Of places alone, `views` are frames of the same place later on.

    views: frames of earlier, for the memory, [N, VIEWS, 16, 8, 8]. told: the tokens of their prompt, [N, 48]. take: [N,
    TARGET, 16, 8, 8]. weights: where characters are in it, [N, TARGET, 8, 8]. tokens: its prompt, and the one that says
    "the same character" where there is one, [N, 2, 48].
    """

    views: torch.Tensor
    told: torch.Tensor
    take: torch.Tensor
    weights: torch.Tensor
    tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.take)


def scene_of(rng: random.Random, character: Character | None, *, held_out: bool = False) -> Scene:
    """A scene of one beat with that character alone, or none; `held_out` ones are never trained on."""
    places = [place for place in PLACES if character is None or is_held_out(character, place) == held_out]
    camera = rng.choice(CAMERAS) if rng.random() < 0.5 else "still"
    nudge = round(rng.uniform(-0.05, 0.05), 3)
    actors = () if character is None else (Actor(character, rng.choice(POSITIONS), nudge),)
    return Scene(rng.choice(places), actors, (Beat(0.0, tuple(rng.choice(ACTIONS) for _ in actors), camera),))


@dataclass(frozen=True)
class _Item:
    """Scenes before and after a cut, and a moment of the first from which frames are remembered."""

    before: Scene
    after: Scene
    moment: float
    tokens: torch.Tensor

    @classmethod
    def draw(cls, rng: random.Random, character: Character | None) -> _Item:
        """One with that character, or of a place alone."""
        before = scene_of(rng, character)
        after = scene_of(rng, character) if character else before
        same = frozenset({0}) if character else frozenset()
        prompts = [describe(before), describe(after), describe(after, same=same)]
        tokens = torch.stack([pad(tokenize(prompt)).to(torch.uint8) for prompt in prompts])
        return cls(before, after, rng.uniform(0.0, _LONGEST), tokens)


def encode_takes(
    vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, shards: int, folder: Path, seed: int
) -> None:
    """Write `shards` shards of 64 takes with a character and a quarter as many of places alone under `folder`; those
    already there are kept, so a killed run goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = World(shift.device)

    def see(scenes: list[Scene], start: Sequence[float], latents: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [S, F, 16, 8, 8] and where somebody is in them."""
        drawn = world.render(scenes, times(len(scenes), latents, start))
        z = encode_clips(vae, shift, scale, drawn.frames).transpose(1, 2)
        return z.cpu().contiguous(), latent_coverage(drawn.masks).bfloat16().cpu()

    def item(name: str, alone: bool) -> _Item:
        rng = random.Random(f"memory {name}")
        return _Item.draw(rng, None if alone else random_character(rng))

    kinds = [("places", -(-shards // 4), True), ("characters", shards, False)]
    for kind, count, alone in kinds:
        for shard in range(count):
            path = folder / f"{kind}-{shard:03}.safetensors"
            if not path.exists():
                items = [item(f"{kind} {seed}/{shard}/{index}", alone) for index in range(_SHARD)]
                views, _ = see([one.before for one in items], [one.moment for one in items], VIEWS + 1)
                take, shown = see([one.after for one in items], [0.0], TARGET)
                tokens = torch.stack([one.tokens for one in items])
                parts = {
                    "views": views[:, 1:].contiguous(), "told": tokens[:, 0].contiguous(), "take": take,
                    "weights": shown, "tokens": tokens[:, 1:].contiguous(),
                }  # fmt: skip
                with whole_file(path) as part:
                    save_file(parts, part)


def load_takes(folder: Path, kind: str) -> Takes:
    """All shards of a `kind` ("characters" or "places") found under `folder`."""
    shards = [load_file(path) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]
    return Takes(**{key: torch.cat([shard[key] for shard in shards]) for key in shards[0]})
