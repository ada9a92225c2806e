"""What a person does to a story between shots: mark keyframes, begin with a clip, extend a shot, go back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..film.dual_cache import CacheError, Retrieval, StoryCache, ban, inject, pin, remove, swap
from ..film.reel.reel import FilmedShot, Reel, ReelError, check_layout
from ..film.reel.takes import FrameGrid, takes
from ..film.storyboard.shot import Shot, TimedPrompt
from ..host.families import encode_clip
from ..host.files.paths import spill_folder
from ..host.files.pictures import cover
from ..host.model_fingerprint import fingerprint_image
from .dual_cache import CacheGuidedEngine
from .dual_cache_bank import GROUP, edited, insert_shot
from .engine import Engine, EngineError
from .filming import film_shot, prepare

__all__ = [
    "add_references",
    "as_cache_guided",
    "begin_with_clip",
    "contact_sheet",
    "describe_bank",
    "describe_ranking",
    "edit_bank",
    "extend_shot",
    "fork",
]

# A batch of all keyframes must not outweigh what they weigh in the bank.
_SHEET_BYTES = 512 * 1024**2


def as_cache_guided(engine: Engine) -> CacheGuidedEngine:
    """The engine, if it is one that has keyframes. Raises EngineError otherwise."""
    if not isinstance(engine, CacheGuidedEngine):
        raise EngineError("This node works on keyframes, which the connected engine has not: use Cache-Guided Engine.")
    return engine


def describe_bank(cache: StoryCache, reel: Reel) -> str:
    """The shot cache of a reel as a person reads it: keyframes, numbered from 1, and what each shot was shown."""
    if not cache.bank:
        return "The shot cache is empty."
    lines = [f"{number}. {_describe(cache, number - 1)}" for number in range(1, len(cache.bank) + 1)]
    numbers = {keyframe.uid: number for number, keyframe in enumerate(cache.bank, start=1)}
    for number, shot in enumerate(reel.shots, start=1):
        shown = dict.fromkeys(uid for chunk in shot.meta.get("told", ()) for uid in chunk)
        if shown:
            lines.append(
                f"Shot {number} was shown {', '.join(str(numbers.get(uid, 'a removed one')) for uid in shown)}."
            )
    return "\n".join(lines)


def describe_ranking(cache: StoryCache, ranking: Retrieval) -> str:
    """Scores and verdicts, best first, with the numbers that describe_bank gives."""
    number = {keyframe.uid: i for i, keyframe in enumerate(cache.bank)}
    lines = [
        f"{ranked.score:+.3f} {ranked.verdict}: {number[ranked.keyframe.uid] + 1}. "
        f"{_describe(cache, number[ranked.keyframe.uid])}"
        for ranked in ranking.ranking
    ]
    return "\n".join(lines) if lines else "There is nothing to retrieve yet."


def contact_sheet(pictures: Sequence[Tensor], width: int, height: int) -> Tensor:
    """Pictures [H, W, 3] as one IMAGE batch of that size, or smaller where they are many; a black one for none."""
    if not pictures:
        return torch.zeros(1, height, width, 3)
    scale = min(1.0, math.sqrt(_SHEET_BYTES / (len(pictures) * height * width * 12)))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    return torch.cat([cover(picture[None], width, height) for picture in pictures])


def edit_bank(
    engine: CacheGuidedEngine,
    reel: Reel,
    *,
    pinned: Sequence[int] = (),
    banned: Sequence[int] = (),
    freed: Sequence[int] = (),
    removed: Sequence[int] = (),
    replaced: int = 0,
    picture: Tensor | None = None,
    clear: bool = False,
) -> Reel:
    """The reel with marks set on keyframes, numbered from 1 as describe_bank does.

    freed: lose both marks. replaced: the number whose place `picture` [1, H, W, 3] takes, 0 for none. clear: all go.
    Raises CacheError for a number that is not there.
    """
    before = after = engine.remembered(reel)
    uids = {i: keyframe.uid for i, keyframe in enumerate(before.bank, start=1)}
    named = {*pinned, *banned, *freed, *removed, *([replaced] if replaced else [])}
    if missing := sorted(named - set(uids)):
        raise CacheError(f"There is no keyframe {missing[0]}: the shot cache has {len(uids)}, numbered from 1.")
    for number in pinned:
        after = pin(after, uids[number])
    for number in banned:
        after = ban(after, uids[number])
    for number in freed:
        after = ban(pin(after, uids[number], False), uids[number], False)
    if replaced:
        if picture is None:
            raise CacheError(f"Connect the picture that takes the place of keyframe {replaced}, or set 0.")
        old = before.bank[replaced - 1]
        (new,) = engine.user_keyframes(picture[:1], [old.characters], pinned=old.pinned)
        after = swap(after, old.uid, new)
    for number in sorted(set(removed) - {replaced}):
        after = remove(after, uids[number])
    return edited(reel, before, replace(after, bank=()) if clear else after)


def add_references(
    engine: CacheGuidedEngine, reel: Reel, pictures: Tensor, names: Sequence[Sequence[str]], pinned: bool
) -> Reel:
    """The reel with pictures [n, H, W, 3] in its shot cache. names: who is seen on each, or none at all."""
    if len(names) not in (0, len(pictures)):
        raise CacheError(f"{len(pictures)} pictures came with {len(names)} lines of names: write one line for each.")
    before = engine.remembered(reel)
    made = engine.user_keyframes(pictures, names or [()] * len(pictures), pinned)
    return edited(reel, before, inject(before, made))


def begin_with_clip(engine: CacheGuidedEngine, reel: Reel, frames: Tensor, prompt: str) -> Reel:
    """The reel with a clip [n, H, W, 3] as a shot of its own, so that the next can continue it.

    Only whole latents are kept, 1 + 4 k frames, the last ones: the film goes on from the last.
    """
    check_layout(reel, engine.layout())
    clock = engine.clock
    latent_frames = 1 + (len(frames) - 1) // clock.compression
    kept = frames[len(frames) - clock.frames(latent_frames) :]
    filmed = FilmedShot.store(
        Shot((TimedPrompt(0, prompt),), len(kept) / engine.fps),
        encode_clip(engine.vae, kept, engine.width, engine.height),
        previous=reel.fingerprint,
        settings={"engine": "clip", "clip": fingerprint_image(kept)},
        take_start=True,
        frames=len(kept),
        folder=spill_folder(),
    )
    return reel.append(filmed)


def extend_shot(engine: CacheGuidedEngine, reel: Reel, number: int, shot: Shot, keep_rest: bool) -> Reel:
    """The reel with `shot`, which continues, put behind shot `number` (from 1). keep_rest: the later shots stay."""
    _check_number(reel, number)
    begun = reel.branch(number)
    story = prepare(engine, [shot], begun, None)
    longer = film_shot(engine, shot, begun, None, story.places[0])
    return insert_shot(reel, longer) if keep_rest else longer


def fork(reel: Reel, number: int, seconds: float = 0.0) -> Reel:
    """The reel as it was after shot `number` (from 1; 0 is the start), or after so many seconds of that shot."""
    _check_number(reel, number, least=0)
    if not seconds or not number:
        return reel.branch(number)
    filmed, before = reel.shots[number - 1], reel.branch(number - 1)
    clock = FrameGrid(reel.layout.fps, reel.layout.temporal_compression, 1)
    frames = max(1, round(seconds * reel.layout.fps))
    if frames >= filmed.frames:
        return reel.branch(number)
    take = takes(before.shots)[-1] if not filmed.take_start else None
    past, latents = (take.frames, take.latent_frames) if take is not None else (0, 0)
    kept = max(1, clock.latent_frames(past + frames) - latents)
    shorter = frames / reel.layout.fps
    prompts = tuple(prompt for prompt in filmed.shot.prompts if prompt.at < shorter)
    tensors, meta = _group_until(filmed, kept)
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
    )
    return before.append(cut)


def _group_until(filmed: FilmedShot, kept: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """A shot's keyframes without those of latent frames from `kept` on; what the causal engine remembers is past it."""
    group = filmed.meta.get(GROUP)
    if group is None:
        return {}, {}
    stays = [i for i, entry in enumerate(group["bank"]) if entry["shot"] != group["shot"] or entry["frame"] < kept]
    tensors = filmed.file.group(GROUP)
    parts = ("luma", "chroma", "latent", "embedding")
    renumbered = {f"{new}.{part}": tensors[f"{old}.{part}"] for new, old in enumerate(stays) for part in parts}
    return {GROUP: renumbered}, {GROUP: {**group, "bank": [group["bank"][i] for i in stays]}}


def _check_number(reel: Reel, number: int, least: int = 1) -> None:
    if not least <= number <= len(reel.shots):
        raise ReelError(f"The reel has {len(reel.shots)} shots and no shot {number}: choose one of them.")


def _describe(cache: StoryCache, index: int) -> str:
    keyframe = cache.bank[index]
    where = "your picture" if keyframe.source == "user" else f"shot {keyframe.shot + 1}, latent {keyframe.frame + 1}"
    marks = [name for name, on in (("pinned", keyframe.pinned), ("banned", keyframe.banned)) if on]
    return ", ".join([where, *keyframe.characters, *marks])
