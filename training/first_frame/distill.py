"""Films that the base makes of the small world's casts put together anew, for it to learn filming them off pictures.

Self-distillation: forty clips hold a few dozen of all pairs, and a LoRA overfits to them. But the base generates any
character from a caption. So characters of different clips are recombined in one scene, the base films it from a full
caption, and behind a canvas of their pictures, under a caption without colours, its film becomes one more example: the
LoRA learns to reach by pictures what the base reaches by text (context distillation: Askell et al., "A General Language
Assistant", 2021, section 2.1). Nothing is added to the clips but what the base has learned already.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ...film.first_frame import build_prompt
from ...film.kv_memory import MEMFLOW
from ...miniature.stories import describe, is_held_out
from ...miniature.world import ACTIONS, FPS, Actor, Beat, Scene, render
from ..miniature.evaluate import schedule
from .dataset import CastDataError, CastItem, fingerprint_of
from .encode import Encoders, cached_tensors, coverage_of, encode_video
from .matcher import Example
from .world import LEARNED, MINIATURE_TRIGGER, CastScene, canvas_picture, caption_of, draw_casts

_TOGETHER = 60
"""Casts that are filmed in one pass."""


def casts_of(items: Sequence[CastItem]) -> list[CastScene]:
    """What the clips of a dataset of the small world show.

    Raises CastDataError: they are other clips.
    """
    casts = draw_casts(LEARNED, len(items))
    if [_asked(cast) for cast in casts] != [item.text for item in items]:
        raise CastDataError("Only the small world's own clips can be put together anew: "
                            "build the dataset by cast-data --world, with its usual seed and trigger.")  # fmt: skip
    return casts


def recombine(casts: Sequence[CastScene], count: int, *, seed: int = 0) -> list[CastScene]:
    """`count` scenes like those of `casts`, one after the other, with characters out of all of them and other actions;
    no combination of character and place that training may not show.
    """
    characters = [actor.character for cast in casts for actor in cast.scene.actors]

    def drawn(rng: random.Random, like: CastScene) -> CastScene:
        place, places = like.scene.place, like.scene.actors
        who = rng.sample(characters, len(places))
        while len(set(who)) < len(who) or any(is_held_out(character, place) for character in who):
            who = rng.sample(characters, len(places))
        nudges = (round(rng.uniform(-0.05, 0.05), 3) for _ in who)
        actors = tuple(map(Actor, who, (actor.position for actor in places), nudges))
        beat = Beat(0.0, tuple(rng.choice(ACTIONS) for _ in who), like.scene.beats[0].camera)
        bareheaded = frozenset(rng.sample(range(len(who)), len(like.bareheaded)))
        return CastScene(Scene(place, actors, (beat,)), like.plate, bareheaded)

    anew: list[CastScene] = []
    for index in range(count):
        rng, like = random.Random(f"recast {seed} {index}"), casts[index % len(casts)]
        cast = drawn(rng, like)
        while cast in casts or cast in anew:  # by chance, one of some thousands
            cast = drawn(rng, like)
        anew.append(cast)
    return anew


def self_distill(
    casts: Sequence[CastScene], encoders: Encoders, frames: int, folder: Path, *, say: Callable[[str], None] = print
) -> list[Example]:
    """`frames` frames of each cast, filmed in four steps block by block by the base from full captions, behind its
    canvas. Films that `folder` has already are kept while cast, length and models stay the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for first in range(0, len(casts), _TOGETHER):
        part = casts[first : first + _TOGETHER]
        films: list[torch.Tensor] = []

        def film(index: int, part: Sequence[CastScene] = part, first: int = first, films: list = films) -> torch.Tensor:
            if not films:  # all of a part once one of it is missing
                films += _filmed(part, first, encoders, frames)
            return films[index - first]

        for index, cast in enumerate(part, start=first):
            path = folder / f"recast-{index:04}.safetensors"
            mark = fingerprint_of([repr(cast), frames, encoders.name + encoders.mark], [])
            tensors, _ = cached_tensors(path, mark, partial(_example, cast, index, encoders, frames, film))
            examples.append(Example(tensors["latents"], tensors["text"], subject=tensors["subject"]))
        if films:
            say(f"filmed {len(examples)}/{len(casts)} casts put together anew")
    return examples


@torch.inference_mode()
def _filmed(casts: Sequence[CastScene], first: int, encoders: Encoders, frames: int) -> list[torch.Tensor]:
    """Latents [16, F, h, w], in the model's space, of casts that are numbered from `first`."""
    import comfy.model_management

    from ...host.wan.causal_models import kv_layout
    from ..miniature.films import film_together

    comfy.model_management.load_models_gpu([encoders.model], force_full_load=True)
    clip = encoders.clip
    rows = [clip.encode_from_tokens(clip.tokenize(describe(cast.scene))) for cast in casts]
    seeds = [list(range(first, first + len(casts)))]
    made = film_together(
        encoders.model.model, kv_layout(encoders.model, 8, 8), [torch.cat(rows)], [1 + (frames - 1) // 4],
        schedule(4), seeds, settings=MEMFLOW,
    )  # fmt: skip
    return list(made[0])


@torch.inference_mode()
def _example(
    cast: CastScene, index: int, encoders: Encoders, frames: int, filmed: Callable[[int], torch.Tensor]
) -> dict[str, torch.Tensor]:
    clip = encoders.clip
    film = filmed(index)
    canvas = encode_video(encoders, canvas_picture(cast)).to(film)
    masks = render(cast.scene, torch.arange(frames) / FPS).masks.amax(dim=1)
    seen = coverage_of(masks, film.shape[1:])
    return {
        "latents": torch.cat([canvas, film], dim=1),
        "text": clip.encode_from_tokens(clip.tokenize(_asked(cast)))[0],
        "subject": torch.cat([torch.zeros_like(seen[:1]), seen]),
    }


def _asked(cast: CastScene) -> str:
    return build_prompt(caption_of(cast), [], trigger=MINIATURE_TRIGGER).text
