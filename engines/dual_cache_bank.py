"""The shot cache on a reel, and a user's edits of it: list keyframes, mark them, add pictures.

Every shot and every edit adds its own keyframes, and the sum is the bank. A reel that is cut, forked or filmed again
therefore has exactly the keyframes of its shots. Shots of engines that keep no keyframes get theirs when a cache-guided
engine first retrieves from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ..film.dual_cache import (
    CacheError,
    Keyframe,
    Retrieval,
    StoryCache,
    ban,
    inject,
    pack,
    pin,
    remove,
    swap,
    unpack,
)
from ..film.reel.edit import Edit
from ..film.reel.groups import GroupTensors, KeyframeGroup, ShownKeyframesGroup
from ..film.reel.reel import Reel
from ..host.files.paths import spill_folder
from ..host.files.pictures import cover
from ..host.sampling import Conditioned
from .engine import Engine, EngineError

__all__ = [
    "KeyframeEngine",
    "StoryCaches",
    "add_references",
    "contact_sheet",
    "describe_bank",
    "describe_ranking",
    "edit_bank",
    "edited",
    "keyframe_engine",
    "new_group",
    "story_caches",
]

MakeKeyframes = Callable[[int], tuple[Keyframe, ...]]

# A batch of all keyframes must not outweigh what they weigh in the bank.
_SHEET_BYTES = 512 * 1024**2


class KeyframeEngine(Engine, Protocol):
    """An engine with a shot cache of keyframes; see CacheGuidedEngine."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def remembered(self, reel: Reel) -> StoryCache: ...
    def rank(self, cache: StoryCache, prompt: str, before: int) -> Retrieval: ...
    def user_keyframes(
        self, pictures: Tensor, names: Sequence[Sequence[str]], pinned: bool
    ) -> tuple[Keyframe, ...]: ...
    def latent_shape(self, frames: int) -> tuple[int, int, int, int, int]: ...
    def conditioning_for(
        self,
        reel: Reel,
        positive: list[Any],
        negative: list[Any],
        prompt: str,
        frames: int,
        goes_on: bool,
        seed: int,
    ) -> Conditioned: ...


def keyframe_engine(engine: Engine) -> KeyframeEngine:
    """The engine, if it says that it has keyframes. Raises EngineError otherwise."""
    if "keyframes" not in engine.capabilities.edits:
        raise EngineError("This node works on keyframes, which the connected engine has not: use Cache-Guided Engine.")
    return cast(KeyframeEngine, engine)


class StoryCaches(NamedTuple):
    """The shot cache of a reel.

    own: what lies on the reel itself. whole: with the keyframes that were made for shots that brought none.
    """

    own: StoryCache
    whole: StoryCache


def story_caches(reel: Reel, empty: StoryCache, make: MakeKeyframes) -> StoryCaches:
    """The caches of a reel, every group read once. empty: of the story's VAE, CLIP and size.

    make: the keyframes of a shot, by its index, for shots that brought none. Raises CacheError for another VAE or CLIP.
    """
    groups = [KeyframeGroup.of(shot) for shot in reel.shots]
    covered = {index - back for index, group in enumerate(groups) if group for back in group.covers}
    own = whole = empty
    for index in range(len(reel.shots) + 1):
        if index and (group := groups[index - 1]):
            whole = _moved(unpack(group.tensors(), group.meta, whole), group, index - 1)
            own = _restated(own, group.meta, whole)
        elif index and index - 1 not in covered:
            whole = inject(whole, make(index - 1))
        for edit in reel.edits_after(index):
            if change := KeyframeGroup.of(edit):
                whole = unpack(change.tensors(), change.meta, whole)
                own = _restated(own, change.meta, whole)
    # what a group says of chunks and motion is of the moment it was packed
    own, whole = (replace(cache, shot=len(reel.shots), chunk=0, latents=0, temporal=()) for cache in (own, whole))
    return StoryCaches(own, whole)


def new_group(reel: Reel, before: StoryCache, after: StoryCache) -> tuple[GroupTensors, dict[str, Any]]:
    """Tensors and metadata for FilmedShot.store of the shot that follows on the reel.

    before: what the reel itself has, StoryCaches.own; after: with the new shot's keyframes, and those that were made
    for shots that brought none.
    """
    tensors, meta = pack(after, since=before)
    number = len(reel.shots)
    covers = [number - index for index, shot in enumerate(reel.shots) if KeyframeGroup.of(shot) is None]
    return {KeyframeGroup.NAME: tensors}, {KeyframeGroup.NAME: {**meta, "shot": number, "covers": covers}}


def edited(reel: Reel, before: StoryCache, after: StoryCache) -> Reel:
    """The reel with the cache `after` in place of `before`; the same reel if that is no change."""
    tensors, meta = pack(after, since=before)
    if not meta["bank"] and not meta["removed"]:
        return reel
    name = KeyframeGroup.NAME
    return reel.edited(Edit.store(len(reel.shots), {name: tensors}, {name: meta}, spill_folder()))


def _moved(cache: StoryCache, group: KeyframeGroup, index: int) -> StoryCache:
    """Keyframes that a shot brought of itself, numbered by where the shot is now: another may have come before it."""
    if group.shot == index:
        return cache
    bank = tuple(replace(keyframe, shot=index) if keyframe.uid in group.own else keyframe for keyframe in cache.bank)
    return replace(cache, bank=bank)


def _restated(cache: StoryCache, meta: Mapping[str, Any], changed: StoryCache) -> StoryCache:
    """`cache` after the change that `meta` describes. changed: a cache to which it was made, to take keyframes from."""
    made = {keyframe.uid: keyframe for keyframe in changed.bank}
    kept = tuple(keyframe for keyframe in cache.bank if keyframe.uid not in meta["removed"])
    return inject(replace(cache, bank=kept), [made[entry["uid"]] for entry in meta["bank"]])


def describe_bank(cache: StoryCache, reel: Reel) -> str:
    """A listing of a reel's shot cache: keyframes, numbered from 1, and those that conditioned each shot."""
    if not cache.bank:
        return "The shot cache is empty."
    lines = [f"{number}. {_describe(cache, number - 1)}" for number in range(1, len(cache.bank) + 1)]
    numbers = {keyframe.uid: number for number, keyframe in enumerate(cache.bank, start=1)}
    for number, shot in enumerate(reel.shots, start=1):
        shown = ShownKeyframesGroup.of(shot)
        if shown and shown.uids:
            said = ", ".join(str(numbers.get(uid, "a removed one")) for uid in shown.uids)
            lines.append(f"Shot {number} was shown {said}.")
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
    engine: KeyframeEngine,
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
    engine: KeyframeEngine, reel: Reel, pictures: Tensor, names: Sequence[Sequence[str]], pinned: bool
) -> Reel:
    """The reel with pictures [n, H, W, 3] in its shot cache. names: of who is on each, or none at all."""
    if len(names) not in (0, len(pictures)):
        raise CacheError(f"{len(pictures)} pictures came with {len(names)} lines of names: write one line for each.")
    before = engine.remembered(reel)
    made = engine.user_keyframes(pictures, names or [()] * len(pictures), pinned)
    return edited(reel, before, inject(before, made))


def _describe(cache: StoryCache, index: int) -> str:
    keyframe = cache.bank[index]
    where = "your picture" if keyframe.source == "user" else f"shot {keyframe.shot + 1}, latent {keyframe.frame + 1}"
    marks = [name for name, on in (("pinned", keyframe.pinned), ("banned", keyframe.banned)) if on]
    return ", ".join([where, *keyframe.characters, *marks])
