"""A reel as frames: decoded take by take in a stream, trimmed where takes end, never more than a few alive."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from comfy.sd import VAE
from torch import Tensor

from ...film.reel.reel import Reel
from ...film.reel.takes import Take, stretches, takes
from .keyframes import LEAD
from .streaming_vae import StreamingDecoder, chunks_in

# Latent frames read from disk at once.
_PIECE = 32


def film_frames(reel: Reel, vae: VAE, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """Frames start .. stop (exclusive; to the end if None) of the finished film.

    Yields [t, H, W, 3] in 0..1, t from 1 to 8, on the VAE's output device. A take is decoded from its first frame on,
    also where only its end is asked for, as the VAE remembers what came before.

    Raises UnsupportedVaeError, ReelError for a shot whose file is gone, ValueError for latents of another VAE, and
    ComfyUI's InterruptProcessingException.
    """
    for stretch in stretches(takes(reel.shots), start, stop):
        decoder = StreamingDecoder(vae)
        position = 0
        for latents in _latents(reel, stretch.take, _needed(reel, stretch.stop)):
            for frames in decoder.decode(latents):
                shown = frames[max(stretch.start - position, 0) : max(stretch.stop - position, 0)]
                position += frames.shape[0]
                if shown.shape[0]:
                    yield shown


def decoding_steps(reel: Reel, vae: VAE, start: int = 0, stop: int | None = None) -> int:
    """About how many chunks `film_frames` decodes, for a progress bar."""
    parts = stretches(takes(reel.shots), start, stop)
    return sum(chunks_in(vae, _needed(reel, stretch.stop)) for stretch in parts)


def take_picture(reel: Reel, vae: VAE, take: Take, frame: int) -> tuple[Tensor, int]:
    """A frame that a take shows, decoded with the few latent frames before it only, and the latent frame it is of.

    frame: from the first that is shown. Returns [1, H, W, 3] in 0..1 on the CPU, and the latent frame of the take.
    Raises as film_frames.
    """
    compression, frame = reel.layout.temporal_compression, take.lead + frame
    latent = _needed(reel, frame + 1) - 1
    first, pieces = max(0, latent - LEAD), []
    for shot in take.shots:
        length = reel.shots[shot].latent_frames
        if max(first, 0) < min(latent + 1, length):
            pieces.append(reel.latents(shot, max(first, 0), min(latent + 1, length)))
        first, latent = first - length, latent - length
    latent += sum(reel.shots[shot].latent_frames for shot in take.shots)
    decoded = torch.cat(list(StreamingDecoder(vae).decode(torch.cat(pieces, dim=2))))
    # the last latent frame's pictures, of which the take's first has one
    index = -1 if not latent else (frame - 1) % compression - compression
    return decoded[index].float().cpu().unsqueeze(0), latent


def _needed(reel: Reel, frames: int) -> int:
    """Latent frames that hold the first `frames` frames of a take."""
    return 1 + -(-(frames - 1) // reel.layout.temporal_compression)


def _latents(reel: Reel, take: Take, needed: int) -> Iterator[Tensor]:
    """The first `needed` latent frames of a take, piece by piece."""
    for shot in take.shots:
        length = min(reel.shots[shot].latent_frames, needed)
        for first in range(0, length, _PIECE):
            yield reel.latents(shot, first, min(first + _PIECE, length))
        needed -= length
        if not needed:
            return
