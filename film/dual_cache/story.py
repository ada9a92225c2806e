"""The two caches of a story as an immutable value, and the operations on it. Each returns a new value sharing tensors.

    cache = StoryCache(vae="...", channels=16, height=60, width=104)
    for each shot:
        for each chunk:
            ranking = retrieve(cache.bank, prompt_embeddings)
            payload = build_payload(cache, ranking.keyframes)
            cache = push_chunk(cache, sample(payload))
        cache = end_shot(cache, candidates)

Latents are in the model's space (after the latent format's process_in). Source: FilmWeaver, arXiv 2512.11274;
docs/methods/filmweaver.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch

from .keyframe import ChoicePolicy, Keyframe, choose_keyframes
from .profile import FILMWEAVER, CacheError, LayoutProfile

__all__ = [
    "Mode",
    "StoryCache",
    "ban",
    "clear_shot",
    "clear_temporal",
    "end_shot",
    "fork",
    "inject",
    "merge",
    "pin",
    "push_chunk",
    "remove",
    "rollback",
    "set_temporal",
    "swap",
]


class Mode(IntEnum):
    """What the next chunk is conditioned on. It follows from which caches are empty."""

    NONE = 1
    """A new story."""
    TEMPORAL = 2
    """The first shot goes on; or a user's clip."""
    SHOT = 3
    """A new shot begins; or injected characters."""
    FULL = 4
    """A later shot goes on."""


@dataclass(frozen=True, eq=False)
class StoryCache:
    """Shot cache and temporal cache of a story at one moment.

    vae, clip: fingerprints of the VAE and of the CLIP model that embeds keyframes. channels, height, width: of a latent
    frame. profile: the layout. shot: number of the shot being filmed, chunk: chunks it has, latents: frames they have
    together. bank: the shot cache. temporal: the newest frames of the shot, [channels, n, height, width] fp32 on the
    CPU, in the pieces they came in, so that the values of a story share them. before: the value before the newest chunk
    or end of a shot, None at the start.
    """

    vae: str
    channels: int
    height: int
    width: int
    clip: str = ""
    profile: LayoutProfile = FILMWEAVER
    shot: int = 0
    chunk: int = 0
    latents: int = 0
    bank: tuple[Keyframe, ...] = ()
    temporal: tuple[torch.Tensor, ...] = ()
    before: StoryCache | None = field(default=None, repr=False)

    @property
    def mode(self) -> Mode:
        """1 to 4, from emptiness; a bank in which all are banned is empty."""
        remembers = any(not keyframe.banned for keyframe in self.bank)
        return Mode(1 + bool(self.temporal) + 2 * remembers)

    @property
    def history(self) -> torch.Tensor | None:
        """The temporal cache, [channels, T, height, width] fp32, oldest first, T at most the profile's history."""
        return torch.cat(self.temporal, dim=1)[:, -self.profile.history :] if self.temporal else None

    @property
    def nbytes(self) -> int:
        """Bytes of both caches, without the values before."""
        frames = sum(piece.numel() * piece.element_size() for piece in self.temporal)
        return frames + sum(keyframe.nbytes for keyframe in self.bank)


def push_chunk(cache: StoryCache, latents: torch.Tensor) -> StoryCache:
    """The shot is a chunk longer. latents: [channels, T, height, width], T >= 1. Raises CacheError on another size."""
    piece = _piece(cache, latents)
    return replace(
        cache,
        chunk=cache.chunk + 1,
        latents=cache.latents + piece.shape[1],
        temporal=_newest((*cache.temporal, piece), cache.profile.history),
        before=cache,
    )


def end_shot(
    cache: StoryCache,
    candidates: Sequence[Keyframe],
    policy: ChoicePolicy = ChoicePolicy(),  # noqa: B008 - immutable
) -> StoryCache:
    """A cut: the chosen candidates enter the bank, the temporal cache is cleared, the next shot begins.

    Raises CacheError if the shot has no chunk, or a candidate is of another latent size.
    """
    if not cache.chunk:
        raise CacheError(f"Shot {cache.shot + 1} has nothing filmed yet: film a chunk before ending it.")
    kept = inject(cache, choose_keyframes(candidates, policy))
    return replace(kept, shot=cache.shot + 1, chunk=0, latents=0, temporal=(), before=cache)


def inject(cache: StoryCache, keyframes: Sequence[Keyframe]) -> StoryCache:
    """Keyframes enter the bank, behind what it has; one that is there already takes its old place.

    Raises CacheError if one is of another latent size.
    """
    bank = {keyframe.uid: keyframe for keyframe in cache.bank}
    for keyframe in keyframes:
        _check_size(cache, keyframe.latent, "keyframe")
        bank[keyframe.uid] = keyframe
    return replace(cache, bank=tuple(bank.values()))


def set_temporal(cache: StoryCache, latents: torch.Tensor) -> StoryCache:
    """Frames to go on from, of a picture or clip encoded as a whole, instead of those filmed; the newest are kept.

    latents: [channels, T, height, width], T >= 1. Raises CacheError on another size.
    """
    return replace(cache, temporal=_newest((_piece(cache, latents),), cache.profile.history))


def clear_temporal(cache: StoryCache) -> StoryCache:
    """Clears the temporal cache: the next chunk has no history."""
    return replace(cache, temporal=())


def clear_shot(cache: StoryCache) -> StoryCache:
    """Clears the shot cache, pinned keyframes too."""
    return replace(cache, bank=())


def pin(cache: StoryCache, uid: str, on: bool = True) -> StoryCache:
    """A keyframe is always retrieved, or no longer. Raises CacheError if there is none of this uid."""
    return _with(cache, uid, _find(cache, uid).marked(pinned=on))


def ban(cache: StoryCache, uid: str, on: bool = True) -> StoryCache:
    """A keyframe is never retrieved, even if pinned; or again. Raises CacheError if there is none of this uid."""
    return _with(cache, uid, _find(cache, uid).marked(banned=on))


def swap(cache: StoryCache, uid: str, keyframe: Keyframe) -> StoryCache:
    """Another keyframe in the place of one. Raises CacheError if there is none of this uid, or sizes differ."""
    _find(cache, uid)
    _check_size(cache, keyframe.latent, "keyframe")
    if keyframe.uid != uid and any(other.uid == keyframe.uid for other in cache.bank):
        raise CacheError(f"Keyframe {keyframe.uid} is in the bank already: remove it first.")
    return _with(cache, uid, keyframe)


def remove(cache: StoryCache, uid: str) -> StoryCache:
    """A keyframe leaves the bank. Raises CacheError if there is none of this uid."""
    gone = _find(cache, uid)
    return replace(cache, bank=tuple(keyframe for keyframe in cache.bank if keyframe is not gone))


def rollback(cache: StoryCache) -> StoryCache:
    """The value before the newest chunk or end of a shot; what was edited since is undone too.

    Raises CacheError at the start of the story.
    """
    if cache.before is None:
        raise CacheError("Nothing is filmed yet, so nothing can be taken back: film a chunk first.")
    return cache.before


def fork(cache: StoryCache, shot: int, chunk: int | None = None) -> StoryCache:
    """The story as it was when that shot had `chunk` chunks; None: all it ever had, with its motion, to extend it.

    chunk 0 is the moment after the cut, to take the shot again. Raises CacheError if the story never was there.
    """
    past: StoryCache | None = cache
    while past is not None:
        if past.shot == shot and chunk in (None, past.chunk):
            return past
        past = past.before
    where = f"shot {shot + 1}" if chunk is None else f"chunk {chunk} of shot {shot + 1}"
    raise CacheError(f"The story has no {where}: choose one that was filmed.")


def merge(cache: StoryCache, other: StoryCache) -> StoryCache:
    """`cache` with the keyframes of `other` that it has not, behind its own; a keyframe in both keeps its marks here.

    Raises CacheError if the other's VAE, CLIP model or latent size differs.
    """
    if cache.clip != other.clip:
        raise CacheError("The banks are of different CLIP models: merge stories made with the same one.")
    if cache.vae != other.vae:
        raise CacheError(f"The banks are of VAEs {cache.vae} and {other.vae}: merge stories made with the same VAE.")
    known = {keyframe.uid for keyframe in cache.bank}
    return inject(cache, [keyframe for keyframe in other.bank if keyframe.uid not in known])


def _find(cache: StoryCache, uid: str) -> Keyframe:
    for keyframe in cache.bank:
        if keyframe.uid == uid:
            return keyframe
    raise CacheError(f"The bank has no keyframe {uid}: choose one it shows.")


def _with(cache: StoryCache, uid: str, keyframe: Keyframe) -> StoryCache:
    return replace(cache, bank=tuple(keyframe if old.uid == uid else old for old in cache.bank))


def _piece(cache: StoryCache, latents: torch.Tensor) -> torch.Tensor:
    _check_size(cache, latents, "chunk")
    return latents.detach().to("cpu", torch.float32, copy=True)


def _newest(pieces: tuple[torch.Tensor, ...], frames: int) -> tuple[torch.Tensor, ...]:
    kept: list[torch.Tensor] = []
    for piece in reversed(pieces):
        if frames <= 0:
            break
        kept.insert(0, piece)
        frames -= piece.shape[1]
    return tuple(kept)


def _check_size(cache: StoryCache, latent: torch.Tensor, what: str) -> None:
    wanted = [cache.channels, cache.height, cache.width]
    if latent.ndim != 4 or [latent.shape[0], *latent.shape[2:]] != wanted or not latent.shape[1]:
        raise CacheError(
            f"The latent of a {what} is {list(latent.shape)} and the story's are "
            f"[{cache.channels}, frames, {cache.height}, {cache.width}]: encode it at the story's size and VAE."
        )
