"""A reel as frames: decoded take by take in a stream, trimmed where takes end, never more than a few alive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from comfy.sd import VAE
from torch import Tensor

from ...film.reel.reel import Reel, ReelError
from ...film.reel.takes import Take, stretches, takes
from ..families import Family, of_vae
from .keyframes import LEAD

__all__ = ["decoding_steps", "film_frames", "take_picture"]

# Latent frames read from disk at once.
_PIECE = 32


def film_frames(reel: Reel, vae: VAE | Sequence[VAE], start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """Frames start .. stop (exclusive; to the end if None) of the finished film.

    vae: the reel's, or those of all families that filmed it, in any order. Yields [t, H, W, 3] in 0..1, t up to 8, or
    32 where a family decodes at once, on the VAE's output device. A take is decoded from its first frame on, also where
    only its end is needed, as the VAE's feature cache depends on what came before.

    Raises UnsupportedVaeError, ReelError for a shot whose file is gone or whose VAE is not there, ValueError for
    latents of another VAE, and ComfyUI's InterruptProcessingException.
    """
    for stretch in stretches(takes(reel.shots), start, stop):
        decoder = _family(reel, stretch.take, vae).decoder()
        position = 0
        for latents in _latents(reel, stretch.take, _needed(reel, stretch.take, stretch.stop)):
            for frames in decoder.decode(latents):
                shown = frames[max(stretch.start - position, 0) : max(stretch.stop - position, 0)]
                position += frames.shape[0]
                if shown.shape[0]:
                    yield shown


def decoding_steps(reel: Reel, vae: VAE | Sequence[VAE], start: int = 0, stop: int | None = None) -> int:
    """About how many chunks `film_frames` decodes, for a progress bar."""
    return sum(
        _family(reel, stretch.take, vae).chunks(_needed(reel, stretch.take, stretch.stop))
        for stretch in stretches(takes(reel.shots), start, stop)
    )


def take_picture(reel: Reel, vae: VAE | Sequence[VAE], take: Take, frame: int) -> tuple[Tensor, int]:
    """A frame that a take shows, decoded with the few latent frames before it only, and the latent frame it is of.

    frame: from the first that is not trimmed. Returns [1, H, W, 3] in 0..1 on the CPU, and the latent frame of the
    take. Raises as film_frames.
    """
    compression, frame = reel.latent_space(take.shots.start).temporal, take.lead + frame
    latent = _needed(reel, take, frame + 1) - 1
    first, pieces = max(0, latent - LEAD), []
    for shot in take.shots:
        length = reel.shots[shot].latent_frames
        if max(first, 0) < min(latent + 1, length):
            pieces.append(reel.latents(shot, max(first, 0), min(latent + 1, length)))
        first, latent = first - length, latent - length
    latent += sum(reel.shots[shot].latent_frames for shot in take.shots)
    decoded = torch.cat(list(_family(reel, take, vae).decoder().decode(torch.cat(pieces, dim=2))))
    # the last latent frame's pictures, of which the take's first has one
    index = -1 if not latent else (frame - 1) % compression - compression
    return decoded[index].float().cpu().unsqueeze(0), latent


def _family(reel: Reel, take: Take, vae: VAE | Sequence[VAE]) -> Family:
    """Of a take's latents, with the VAE at hand that is of it."""
    wanted = reel.shots[take.shots.start].family
    for family in map(of_vae, vae if isinstance(vae, Sequence) else (vae,)):
        if family.latents.family == wanted:
            return family
    raise ReelError(
        f"Shot {take.shots.start + 1} was filmed by a model of the family {wanted}: connect its VAE "
        "(Reel To Video takes two)."
    )


def _needed(reel: Reel, take: Take, frames: int) -> int:
    """Latent frames that hold the first `frames` frames of a take."""
    return reel.latent_space(take.shots.start).grid(reel.layout.fps).latent_frames(frames)


def _latents(reel: Reel, take: Take, needed: int) -> Iterator[Tensor]:
    """The first `needed` latent frames of a take, piece by piece."""
    for shot in take.shots:
        length = min(reel.shots[shot].latent_frames, needed)
        for first in range(0, length, _PIECE):
            yield reel.latents(shot, first, min(first + _PIECE, length))
        needed -= length
        if not needed:
            return
