"""ShotStream's conditioning of a take that begins with a cut: pictures of earlier takes, with their prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.sd import VAE

from ..film.kv_memory.shots import spread_over_shots
from ..film.reel.reel import Reel
from ..film.reel.takes import Take, takes
from ..host.families import encode_image
from ..host.media.decode import take_picture
from ..host.wan.shot_context import ShotContext

__all__ = ["earlier_shots"]


def earlier_shots(reel: Reel, pictures: int, vae: VAE, encode: Callable[[str], list[Any]]) -> ShotContext:
    """The pictures of a reel's takes, whichever engine filmed them, that fill the next take's sink.

    encode: a prompt as CONDITIONING. Raises ReelError for a shot whose file is gone, and what `encode` raises.
    """
    filmed = takes(reel.shots)
    if not filmed:
        return ShotContext()
    words: dict[str, list[Any]] = {}
    encoded, frames, captions = [], [], []
    chosen = spread_over_shots([take.frames for take in filmed], pictures)
    for number, frame in chosen:
        take = filmed[number]
        picture, latent = take_picture(reel, vae, take, frame)
        encoded.append(encode_image(vae, picture, reel.layout.width, reel.layout.height))
        frames.append(sum(shot.latent_frames for shot in reel.shots[: take.shots.start]) + latent)
        text = _words_at(reel, take, frame)
        if text not in words:
            words[text] = encode(text)
        captions.append(words[text])
    return ShotContext(
        take=len(filmed),
        position=sum(shot.latent_frames for shot in reel.shots),
        pictures=torch.cat(encoded, dim=2),
        takes=tuple(number for number, _ in chosen),
        frames=tuple(frames),
        captions=tuple(captions),
    )


def _words_at(reel: Reel, take: Take, frame: int) -> str:
    """The prompt that holds at a frame of a take."""
    for filmed in (reel.shots[index] for index in take.shots):
        if frame < filmed.frames:
            break
        frame -= filmed.frames
    return next(prompt.text for prompt in reversed(filmed.shot.prompts) if prompt.at * reel.layout.fps <= frame)
