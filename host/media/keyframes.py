"""Keyframes of pictures and of filmed shots: decoded, embedded, encoded alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from comfy.latent_formats import LatentFormat
from comfy.sd import VAE
from torch import Tensor

from ...film.dual_cache import ChoicePolicy, Keyframe, choose_keyframes, spread_frames
from ..families import encode_image, of_vae
from .embedder import Embedder

__all__ = ["LEAD", "decoded_frame", "picture_keyframes", "shot_keyframes"]

LEAD = 2
"""Latent frames decoded before a keyframe's own: what its pixels depend on, but for an invisible rest."""


def picture_keyframes(
    pictures: Tensor,
    names: Sequence[Sequence[str]],
    vae: VAE,
    embedder: Embedder,
    latent_format: LatentFormat,
    size: tuple[int, int],
    *,
    shot: int = -1,
    frames: Sequence[int] = (),
    pinned: bool = False,
) -> tuple[Keyframe, ...]:
    """Pictures [n, H, W, 3] in 0..1 as keyframes; names: of who is on each; size: the film's width and height.

    shot, frames: where they were filmed; without, they are a user's.
    """
    embeddings = embedder.images(pictures)
    return tuple(
        Keyframe.of(
            picture,
            latent_format.process_in(encode_image(vae, picture, *size))[0],
            embedding,
            shot=shot,
            frame=frames[i] if frames else -1,
            characters=who,
            pinned=pinned,
        )
        for i, (picture, embedding, who) in enumerate(zip(pictures, embeddings, names))
    )


def shot_keyframes(
    latents: Tensor,
    shot: int,
    vae: VAE,
    embedder: Embedder,
    latent_format: LatentFormat,
    size: tuple[int, int],
    policy: ChoicePolicy = ChoicePolicy(),  # noqa: B008 - immutable
    lead: int = 0,
) -> tuple[Keyframe, ...]:
    """The keyframes of a filmed shot. latents: [1, C, T, h, w] in LATENT space; shot: its number, from 0.

    lead: leading frames that are not the shot's but of the one it continues, LEAD at best, 0 if it begins a take. Of
    frames spread from first to last the sharp and different ones stay; see ChoicePolicy.
    """
    frames = spread_frames(latents.shape[2] - lead, policy.count)
    pictures = torch.stack([decoded_frame(latents, vae, lead + frame) for frame in frames])
    made = picture_keyframes(pictures, [()] * len(frames), vae, embedder, latent_format, size, shot=shot, frames=frames)
    return choose_keyframes(made, policy)


def decoded_frame(latents: Tensor, vae: VAE, frame: int) -> Tensor:
    """The last picture [H, W, 3] of a latent frame, decoded with the few before it only."""
    pieces = of_vae(vae).decoder().decode(latents[:, :, max(0, frame - LEAD) : frame + 1])
    last = deque(pieces, maxlen=1)[0]
    return last[-1].float().cpu()
