"""Edits of a film between shots, with any engine: begin with a clip, extend or retake a shot, go back."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..film.reel.choice import rebased
from ..film.reel.groups import KVPinsGroup, groups_until
from ..film.reel.reel import FilmedShot, Reel, ReelError, check_layout
from ..film.reel.takes import takes
from ..film.storyboard.shot import Shot, TimedPrompt
from ..host.files.paths import spill_folder
from ..host.model_fingerprint import fingerprint_image
from .engine import Engine, EngineError
from .filming import film_shot, prepare

__all__ = ["begin_with_clip", "extend_shot", "fork", "insert_shot", "retake_shot"]

_CLIP = "clip"
"""Stands for the engine in the settings of a shot that is a user's clip."""


def begin_with_clip(engine: Engine, reel: Reel, frames: Tensor, prompt: str) -> Reel:
    """The reel with a clip [n, H, W, 3] as a shot of its own, so that the next can continue it.

    Only whole latents are kept, 1 + k compression frames, the last ones: the film goes on from the last. Raises
    ReelError for a reel that the engine cannot go on with.
    """
    layout, clock = engine.layout(), engine.clock
    check_layout(reel, layout)
    latent_frames = 1 + (len(frames) - 1) // clock.compression
    kept = frames[len(frames) - clock.frames(latent_frames) :]
    filmed = FilmedShot.store(
        Shot((TimedPrompt(0, prompt),), len(kept) / clock.fps),
        engine.encode_frames(kept),
        previous=reel.fingerprint,
        settings={"engine": _CLIP, "clip": fingerprint_image(kept)},
        take_start=True,
        frames=len(kept),
        folder=spill_folder(),
        family=layout.family,
    )
    return replace(reel, layout=reel.layout.joined(layout)).append(filmed)


def extend_shot(engine: Engine, reel: Reel, number: int, shot: Shot, keep_rest: bool) -> Reel:
    """The reel with `shot`, which continues, put behind shot `number` (from 1). keep_rest: the later shots stay.

    Raises EngineError for an engine that continues nothing, and what filming raises.
    """
    _check_number(reel, number)
    if not engine.capabilities.continues:
        raise EngineError(
            "This engine remembers no motion, so it cannot go on from where a shot ends: connect a Causal Engine, or a "
            "Cache-Guided Engine with filmweaver, vace, storymem or svi."
        )
    longer = _film(engine, reel.branch(number), [shot])
    return insert_shot(reel, longer) if keep_rest else longer


def retake_shot(
    engine: Engine, reel: Reel, number: int, seed: int, keep_rest: bool, picture: Tensor | None = None
) -> Reel:
    """The reel with shot `number` (from 1) filmed again with another seed.

    Shots that continue it are filmed again behind it, each with its own seed, as they go on from its last frames.
    keep_rest: the shots from the next cut on stay as they are, even if they were conditioned on the old one. picture:
    what shot `number` starts from, where it was given one. Pins of the KV bank that were set after a shot that is
    filmed again are dropped, since they name frames of the old one.

    Raises ReelError for a clip, EngineError, and what filming raises.
    """
    _check_number(reel, number)
    if reel.shots[number - 1].settings.get("engine") == _CLIP:
        raise ReelError(f"Shot {number} is a clip of yours, which nobody filmed: choose another shot.")
    stop = number
    while stop < len(reel.shots) and not reel.shots[stop].take_start:
        stop += 1
    again = [replace(reel.shots[number - 1].shot, seed=seed), *(part.shot for part in reel.shots[number:stop])]
    longer = _film(engine, reel.branch(number - 1), again, picture, reel)
    return _behind(longer, reel, stop) if keep_rest else longer


def insert_shot(reel: Reel, longer: Reel) -> Reel:
    """The shots and edits of `reel` that come after those of `longer` but for its last, put behind it as they are."""
    return _behind(longer, reel, len(longer.shots) - 1)


def fork(reel: Reel, number: int, seconds: float = 0.0) -> Reel:
    """The reel as it was after shot `number` (from 1; 0 is the start), or after so many seconds of that shot.

    A KV memory is as it was after a whole shot, so of a shot that is cut short only the last frames condition what
    follows.
    """
    _check_number(reel, number, least=0)
    if not seconds or not number:
        return reel.branch(number)
    filmed, before = reel.shots[number - 1], reel.branch(number - 1)
    clock = reel.latent_space(number - 1).grid(reel.layout.fps)
    frames = max(1, round(seconds * reel.layout.fps))
    if frames >= filmed.frames:
        return reel.branch(number)
    take = takes(before.shots)[-1] if not filmed.take_start else None
    past, latents = (take.lead + take.frames, take.latent_frames) if take is not None else (filmed.lead, 0)
    kept = max(1, clock.latent_frames(past + frames) - latents)
    shorter = frames / reel.layout.fps
    prompts = tuple(prompt for prompt in filmed.shot.prompts if prompt.at < shorter)
    tensors, meta = groups_until(filmed, kept)
    cut = FilmedShot.store(
        replace(filmed.shot, seconds=shorter, prompts=prompts),
        filmed.latents(0, kept),
        previous=filmed.previous,
        settings={**filmed.settings, "cut": kept},
        take_start=filmed.take_start,
        frames=frames,
        tensors=tensors,
        meta=meta,
        folder=spill_folder(),
        family=filmed.family,
    )
    return before.append(cut)


def _film(
    engine: Engine, reel: Reel, shots: list[Shot], picture: Tensor | None = None, edits_of: Reel | None = None
) -> Reel:
    """The reel with these shots filmed. picture: for the first. edits_of: a reel whose edits after each are kept."""
    for number, job in enumerate(prepare(engine, shots, reel, None, picture).jobs):
        reel = film_shot(engine, job.shot, reel, None, job.place, picture=None if number else picture)
        for edit in edits_of.edits_after(len(reel.shots)) if edits_of else ():
            if KVPinsGroup.of(edit) is None:
                reel = reel.edited(edit)
    return reel


def _behind(longer: Reel, reel: Reel, first: int) -> Reel:
    """`longer`, and behind it the shots of `reel` from index `first` on with the edits after each."""
    for index in range(first, len(reel.shots)):
        longer = longer.append(rebased(reel.shots[index], longer.fingerprint))
        for edit in reel.edits_after(index + 1):
            longer = longer.edited(replace(edit, after=len(longer.shots)))
    return longer


def _check_number(reel: Reel, number: int, least: int = 1) -> None:
    if not least <= number <= len(reel.shots):
        raise ReelError(f"The reel has {len(reel.shots)} shots and no shot {number}: choose one of them.")
