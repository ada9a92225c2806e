"""Cast clips of the small world, where cut-outs, plates and identities are exact: the dataset that runs as shipped.

A scene has two actors at most, so a cast of up to four counts everything that is pictured: characters, the place (as
the plate), and a headgear cut out by itself that a bareheaded character puts on (FFGo calls that element insertion).
One reference is a character; two are two characters, or one and its place; three are two and their place, or a
bareheaded character, its headgear and their place; four are two characters, one bareheaded, the headgear and the
place. On the canvas a headgear follows its wearer.

Captions name what each character is, a ball with a crown, and not its colour, which only the picture determines. They
do not describe the layout.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from ...film.first_frame import Reference
from ...miniature.drawing import sprite
from ...miniature.stories import character_phrase, describe, kind_phrase, random_scene
from ...miniature.world import BODIES, COLOURS, FPS, SIZE, Beat, Scene, render
from ..miniature.places import empty_place
from .dataset import CastClip, CastSettings, CastSource, canvas_of, fingerprint_of

MINIATURE_TRIGGER = "The place."
"""Words that the miniature knows, in an order that no caption of its training has. As long as "At night,", with which a
caption may begin: the small text encoder knows words by where they stand, and behind a longer or shorter sentence it
takes one character for the other (docs/cast-lora.md).
"""
SMALL_WORLD = CastSettings(SIZE, SIZE, 81, MINIATURE_TRIGGER)
"""Of datasets of the small world."""
MOST_REFERENCES = 4
LEARNED, HELD_OUT = "clip", "held-out"
"""Kinds of casts: those of datasets to learn from, and of datasets to judge by."""
_ENLARGED = 4
"""Pixels of a clip are stored so many times, so that the video codec's halved colour resolution loses nothing."""
_MARGIN = 8
_HEAD_ROWS = 0.4
"""Headgear ends above this share of a sprite's height."""


@dataclass(frozen=True)
class CastScene:
    """A take, and what of it is pictured: whether the place is, and which actors' headgear is pictured by itself."""

    scene: Scene
    plate: bool
    bareheaded: frozenset[int] = frozenset()

    @property
    def references(self) -> int:
        """How many things are pictured."""
        return len(self.scene.actors) + self.plate + len(self.bareheaded)


def draw_cast(rng: random.Random, references: int, *, held_out: bool = False) -> CastScene:
    """A one-beat scene with 1 to 4 things pictured; combinations of character and place as `random_scene` has it."""
    actors, bare = {1: [(1, 0)], 2: [(2, 0), (1, 0)], 3: [(2, 0), (1, 1)], 4: [(2, 1)]}[references][
        rng.randrange(1 if references in (1, 4) else 2)
    ]
    scene = random_scene(rng, 1.0, two=float(actors == 2), held_out=held_out)
    while len(scene.actors) != actors or len({actor.character for actor in scene.actors}) != actors:
        scene = random_scene(rng, 1.0, two=float(actors == 2), held_out=held_out)
    beat = Beat(0.0, scene.beats[0].actions, scene.beats[0].camera)
    bareheaded = frozenset(rng.sample(range(actors), bare))
    return CastScene(Scene(scene.place, scene.actors, (beat,)), actors + bare < references, bareheaded)


def draw_casts(kind: str, count: int, *, seed: int = 0, held_out: bool = False) -> list[CastScene]:
    """`count` casts with 1, 2, 3, 4, 1, ... references; those held out show no combination that the others may. Another
    `kind`, other draws.
    """
    draws = [random.Random(f"cast {kind} {seed} {index}") for index in range(count)]
    return [draw_cast(rng, index % MOST_REFERENCES + 1, held_out=held_out) for index, rng in enumerate(draws)]


def world_clips(count: int, settings: CastSettings, *, seed: int = 0, held_out: bool = False) -> list[CastSource]:
    """`count` clips of casts to learn from, or held out."""
    kind = HELD_OUT if held_out else LEARNED

    def source(index: int, cast: CastScene) -> CastSource:
        return CastSource(f"{kind}-{index:03}", fingerprint_of(repr(cast), []), lambda: film_cast(cast, settings))

    return [source(index, cast) for index, cast in enumerate(draw_casts(kind, count, seed=seed, held_out=held_out))]


def film_cast(cast: CastScene, settings: CastSettings) -> CastClip:
    """The clip, its cut-outs, its plate and where its cast is."""
    drawn = render(cast.scene, torch.arange(settings.frames) / FPS, SIZE)
    shown = torch.cat([drawn.frames, drawn.masks], dim=1)
    large = F.interpolate(shown, scale_factor=_ENLARGED, mode="nearest").movedim(1, -1)
    plate = empty_place(cast.scene) if cast.plate else None
    actors = range(len(cast.scene.actors))
    owners = tuple(index for index in actors for _ in range(1 + (index in cast.bareheaded)))
    return CastClip(large[..., :3], FPS, tuple(cut_outs(cast)), plate, caption_of(cast), large[..., 3:], owners)


def canvas_picture(cast: CastScene) -> torch.Tensor:
    """The miniature's first frame of the cast, [1, 64, 64, 3]."""
    settings = CastSettings(SIZE, SIZE, 9, MINIATURE_TRIGGER)
    return canvas_of(film_cast(cast, settings), settings).picture


def caption_of(cast: CastScene) -> str:
    """What is said of the clip."""
    return describe(cast.scene, phrase=kind_phrase)


def ordinary_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Prompts that say everything and picture nothing, of combinations of character and place that training shows."""
    rng = random.Random(f"ordinary {seed}")
    return [describe(random_scene(rng, 1.0)) for _ in range(count)]


def cut_outs(cast: CastScene) -> list[Reference]:
    """Every pictured thing but the place: each character standing, followed by its headgear where that is apart."""
    found = []
    for index, actor in enumerate(cast.scene.actors):
        who = actor.character
        picture = sprite(who.colour, who.body, who.headgear)
        if index not in cast.bareheaded:
            found.append(_reference(picture, "character", character_phrase(who)))
            continue
        body, _, headgear = character_phrase(who).partition(" with ")
        mask = headgear_mask(who.headgear)
        found += [_reference(picture * ~mask, "character", body), _reference(picture * mask, "headgear", headgear)]
    return found


@lru_cache(maxsize=8)
def headgear_mask(headgear: str) -> torch.Tensor:
    """[128, 128], the part of a sprite that is its headgear, which does not depend on the wearer."""
    sprites = torch.stack([sprite(colour, body, headgear) for colour, body in zip(COLOURS, BODIES, strict=False)])
    same = (sprites - sprites[:1]).abs().amax(dim=(0, 1)) < 1e-4
    same &= sprites[0, 3] > 0
    same[round(_HEAD_ROWS * len(same)) :] = False
    return same


def _reference(picture: torch.Tensor, name: str, description: str) -> Reference:
    """A premultiplied texture [4, h, w] as a cut-out."""
    picture = F.pad(picture, (_MARGIN, _MARGIN, _MARGIN, _MARGIN))
    alpha = picture[3]
    colour = torch.where(alpha > 0, picture[:3] / alpha.clamp(min=1e-6), 1.0)
    return Reference.from_image(colour.movedim(0, -1), alpha, name, description)
