"""Long takes and openings of the small world, drawn and encoded on the device that trains: the training data for films
of a minute.

A take is one scene without a cut, with up to four changes of prompt at starts of blocks, each action followed by any
other, the camera moving or not. Takes 2 i and 2 i + 1 share their lead, so that the second is what comes after a cut.
A spliced clip cuts from one picture of a take to another take inside the VAE's pass, as a clip whose first frame shows
its cast does. A few takes show a place alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...miniature.batch import World
from ...miniature.stories import describe, is_held_out, random_scene
from ...miniature.text import pad, tokenize
from ...miniature.world import ACTIONS, CAMERAS, FPS, Beat, Scene
from ..core.loop import save_whole
from ..core.precision import mixed_precision
from .vae import encode

BLOCK = 3
PROMPTS = 5
"""Prompts of a take at most."""
WAYS = 3
"""How a prompt is worded: as stories word it, with positions after a change, too, and with "the same character"."""
_EMPTY = 0.06
_CHANGES = (0.1, 0.2, 0.25, 0.25, 0.2)
"""How often a take has no, one ... four changes of prompt."""
_SHORTEST, _LONGEST = 3, 13
"""Blocks from one change to the next: 2.25 s to 9.75 s."""


@dataclass(frozen=True)
class TakeRecipe:
    """How much is drawn: `takes` of `frames` latent frames (whole blocks), `openings` of one block, `spliced`
    clips of `clip` frames.
    """

    takes: int = 2048
    frames: int = 81
    openings: int = 16384
    spliced: int = 1024
    clip: int = 21
    seed: int = 0


@dataclass(frozen=True)
class Takes:
    """N takes of F latent frames on one device.

    latents: normalised, [N, 16, F, h, w] bfloat16. coverage: where characters are, 0..1, [N, F, h, w] bfloat16. words:
    token numbers of each prompt in each of `WAYS`, [N, PROMPTS, WAYS, 48]; a take's last prompt fills up. caption:
    which prompt is on, [N, F].
    """

    latents: torch.Tensor
    coverage: torch.Tensor
    words: torch.Tensor
    caption: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def frames(self) -> int:
        return self.latents.shape[2]

    @property
    def tokens(self) -> torch.Tensor:
        """[N, PROMPTS, 48], as stories word them."""
        return self.words[:, :, 0]


@dataclass(frozen=True)
class Footage:
    """Everything a DiT of the miniature learns from. scenes: of the takes, in order."""

    takes: Takes
    openings: Takes
    spliced: Takes
    scenes: tuple[Scene, ...]


def take_scene(rng: random.Random, frames: int, lead: Scene | None = None) -> Scene:
    """A scene for a take of `frames` latent frames whose prompts change at starts of blocks. lead: a scene whose first
    character is this one's, too. No combination of character and place is a held-out one.
    """
    scene = random_scene(rng, 1.0)
    if rng.random() < _EMPTY:
        scene = replace(scene, actors=(), beats=(Beat(0.0, ()),))
    while scene.actors and lead and lead.actors:
        actors = (replace(scene.actors[0], character=lead.actors[0].character), *scene.actors[1:])
        if not any(is_held_out(actor.character, scene.place) for actor in actors):
            scene = replace(scene, actors=actors)
            break
        scene = random_scene(rng, 1.0)
    beats, block = [], 0
    for _ in range(1 + rng.choices(range(PROMPTS), _CHANGES)[0]):
        camera = rng.choice(CAMERAS) if rng.random() < 0.5 else "still"
        at = (4 * BLOCK * block - 3) / FPS if block else 0.0
        beats.append(Beat(at, tuple(rng.choice(ACTIONS) for _ in scene.actors), camera))
        block += rng.randint(_SHORTEST, _LONGEST)
        if block >= frames // BLOCK - 1:
            break
    return replace(scene, beats=tuple(beats))


def take_words(rng: random.Random, scene: Scene) -> torch.Tensor:
    """The prompts of a scene in all their wordings, [PROMPTS, WAYS, 48]."""
    rows = []
    for beat in scene.beats:
        first = rng.random() < 0.25
        told = [
            describe(scene, beat.at, place_first=first),
            describe(scene, beat.at, place_first=first, positions=True),
            describe(scene, beat.at, place_first=first, same=frozenset({0})),
        ]
        rows.append(torch.stack([pad(tokenize(prompt)) for prompt in told]))
    rows += [rows[-1]] * (PROMPTS - len(rows))
    return torch.stack(rows)


def captions(scene: Scene, frames: int) -> torch.Tensor:
    """Which prompt is on in each latent frame, [frames]."""
    starts = torch.tensor([round((beat.at * FPS + 3) / 4) if beat.at else 0 for beat in scene.beats])
    return (torch.arange(frames)[:, None] >= starts).sum(dim=1) - 1


def latent_coverage(masks: torch.Tensor) -> torch.Tensor:
    """Where characters are in latent frames, [S, F, h / 8, w / 8], from masks [S, 4 F - 3, h, w] of pictures."""
    cells = F.max_pool2d(masks, 8)
    later = cells[:, 1:].unflatten(1, (-1, 4)).amax(dim=2)
    return torch.cat([cells[:, :1], later], dim=1)


def times(scenes: int, latents: int, start: float | Sequence[float] = 0.0) -> torch.Tensor:
    """Moments [scenes, 4 latents - 3] of the pictures of as many latent frames, from `start` seconds on."""
    first = torch.as_tensor(start, dtype=torch.float64).reshape(-1, 1)
    return (first + torch.arange(4 * latents - 3) / FPS).expand(scenes, -1)


@torch.no_grad()
def encode_clips(vae: Any, shift: torch.Tensor, scale: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Normalised latents [S, 16, F, h, w], bfloat16, of pictures [S, T, 3, H, W] in 0..1."""
    clip = (frames.transpose(1, 2) * 2 - 1).contiguous(memory_format=torch.channels_last_3d)
    with mixed_precision(clip.device):
        z = encode(vae, clip).float()
    return ((z - shift) / scale).bfloat16()


def film_world(
    recipe: TakeRecipe, world: World, vae: Any, shift: torch.Tensor, scale: torch.Tensor, *, pictures: int = 6000
) -> Footage:
    """Draw and encode all of `recipe` on the world's device. pictures: drawn and encoded in one go, at most."""
    device = world.device

    def encoded(scenes: list[Scene], latents: int) -> tuple[torch.Tensor, torch.Tensor]:
        most = max(pictures // (4 * latents - 3), 1)
        latent, covered = [], []
        for i in range(0, len(scenes), most):
            part = scenes[i : i + most]
            drawn = world.render(part, times(len(part), latents))
            latent.append(encode_clips(vae, shift, scale, drawn.frames))
            covered.append(latent_coverage(drawn.masks).bfloat16())
        return torch.cat(latent), torch.cat(covered)

    def takes(scenes: list[Scene], latents: int, rng: random.Random) -> Takes:
        z, covered = encoded(scenes, latents)
        words = torch.stack([take_words(rng, scene) for scene in scenes]).to(device)
        return Takes(z, covered, words, torch.stack([captions(scene, latents) for scene in scenes]).to(device))

    rng = random.Random(f"takes {recipe.seed}")
    scenes: list[Scene] = []
    for index in range(recipe.takes):
        scenes.append(take_scene(rng, recipe.frames, scenes[-1] if index % 2 else None))
    openings = [random_scene(rng, 1.0) for _ in range(recipe.openings)]
    return Footage(
        takes(scenes, recipe.frames, rng),
        takes([replace(scene, beats=scene.beats[:1]) for scene in openings], BLOCK, rng),
        _splice(recipe, rng, world, lambda frames: encode_clips(vae, shift, scale, frames), pictures),
        tuple(scenes),
    )


def _splice(
    recipe: TakeRecipe,
    rng: random.Random,
    world: World,
    encoded: Callable[[torch.Tensor], torch.Tensor],
    pictures: int,
) -> Takes:
    """Clips whose first picture is of one scene and whose others are of another with the same lead; the words are the
    second's.
    """
    most = max(pictures // (4 * recipe.clip - 3), 1)
    parts = []
    for start in range(0, recipe.spliced, most):
        count = min(most, recipe.spliced - start)
        before = [take_scene(rng, BLOCK) for _ in range(count)]
        after = [replace(scene, beats=scene.beats[:1]) for scene in (take_scene(rng, BLOCK, one) for one in before)]
        moments = torch.tensor([[0.0 if rng.random() < 0.6 else rng.uniform(0, 6)] for _ in before])
        first = world.render(before, moments)
        then = world.render(after, times(count, recipe.clip)[:, :-1])
        parts.append(
            Takes(
                encoded(torch.cat([first.frames, then.frames], dim=1)),
                latent_coverage(torch.cat([first.masks, then.masks], dim=1)).bfloat16(),
                torch.stack([take_words(rng, scene) for scene in after]).to(world.device),
                torch.zeros(count, recipe.clip, dtype=torch.long, device=world.device),
            )
        )
    return Takes(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Takes)))


def save_footage(footage: Footage, path: Path) -> None:
    """Keep it all in one file, replaced whole."""
    kinds = {"takes": footage.takes, "openings": footage.openings, "spliced": footage.spliced}
    save_whole(
        path, {kind: {f.name: getattr(part, f.name).cpu() for f in fields(Takes)} for kind, part in kinds.items()}
    )


def load_footage(path: Path, recipe: TakeRecipe, device: torch.device) -> Footage:
    """What `save_footage` wrote of a `recipe`."""
    kept = torch.load(path, weights_only=True)
    parts = {kind: Takes(**{key: value.to(device) for key, value in part.items()}) for kind, part in kept.items()}
    rng = random.Random(f"takes {recipe.seed}")
    scenes: list[Scene] = []
    for index in range(recipe.takes):
        scenes.append(take_scene(rng, recipe.frames, scenes[-1] if index % 2 else None))
    return Footage(**parts, scenes=tuple(scenes))
