"""The shot cache as it rides on a reel: every shot and every edit brings what is new, and the sum is the bank.

A reel that is cut, forked or filmed again therefore remembers exactly what it shows. Shots of engines that keep no
keyframes get theirs when a cache-guided engine first looks back at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..film.dual_cache import Keyframe, StoryCache, inject, pack, unpack
from ..film.reel.edit import Edit
from ..film.reel.reel import FilmedShot, Reel
from ..host.files.paths import spill_folder

__all__ = ["GROUP", "edited", "insert_shot", "new_group", "story_cache"]

GROUP = "cache"

MakeKeyframes = Callable[[int], tuple[Keyframe, ...]]


def story_cache(reel: Reel, empty: StoryCache, make: MakeKeyframes) -> StoryCache:
    """What a reel remembers beyond its newest shot's motion. empty: of the story's VAE, CLIP and size.

    make: the keyframes of a shot, by its index, for shots that brought none. Raises CacheError for another VAE or CLIP.
    """
    covered = {index - back for index, shot in enumerate(reel.shots) for back in _group(shot).get("covers", ())}
    cache = empty
    for index in range(len(reel.shots) + 1):
        if index:
            shot = reel.shots[index - 1]
            if GROUP in shot.meta:
                cache = _moved(unpack(shot.file.group(GROUP), shot.meta[GROUP], cache), shot, index - 1)
            elif index - 1 not in covered:
                cache = inject(cache, make(index - 1))
        for edit in reel.edits:
            if edit.after == index and GROUP in edit.meta:
                cache = unpack(edit.file.group(GROUP), edit.meta[GROUP], cache)
    return replace(cache, shot=len(reel.shots), chunk=0, latents=0, temporal=())


def new_group(
    reel: Reel, before: StoryCache, after: StoryCache
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Tensors and metadata for FilmedShot.store of the shot that follows on the reel.

    before: what the reel itself has (story_cache with a `make` that makes nothing); after: with the new shot's
    keyframes, and those that were made for shots that brought none.
    """
    tensors, meta = pack(after, since=before)
    number = len(reel.shots)
    covers = [number - index for index, shot in enumerate(reel.shots) if GROUP not in shot.meta]
    return {GROUP: tensors}, {GROUP: {**meta, "shot": number, "covers": covers}}


def edited(reel: Reel, before: StoryCache, after: StoryCache) -> Reel:
    """The reel, remembering `after` where it remembered `before`; the same reel if that is no change."""
    tensors, meta = pack(after, since=before)
    if not meta["bank"] and not meta["removed"]:
        return reel
    return reel.edited(Edit.store(len(reel.shots), {GROUP: tensors}, {GROUP: meta}, spill_folder()))


def insert_shot(reel: Reel, longer: Reel) -> Reel:
    """The shots and edits of `reel` that come after those of `longer` but for its last, put behind it as they are."""
    place = len(longer.shots) - 1
    for index in range(place, len(reel.shots)):
        longer = longer.append(replace(reel.shots[index], previous=longer.fingerprint))
        for edit in reel.edits:
            if edit.after == index + 1:
                longer = longer.edited(replace(edit, after=index + 2))
    return longer


def _group(shot: FilmedShot) -> Mapping[str, Any]:
    group: Mapping[str, Any] = shot.meta.get(GROUP, {})
    return group


def _moved(cache: StoryCache, shot: FilmedShot, index: int) -> StoryCache:
    """Keyframes that a shot brought of itself, numbered by where the shot is now: another may have come before it."""
    filmed_as = shot.meta[GROUP]["shot"]
    if filmed_as == index:
        return cache
    own = {entry["uid"] for entry in shot.meta[GROUP]["bank"] if entry["shot"] == filmed_as}
    bank = tuple(replace(keyframe, shot=index) if keyframe.uid in own else keyframe for keyframe in cache.bank)
    return replace(cache, bank=bank)
