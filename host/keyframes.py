"""Keyframes of pictures and of filmed shots: decoded, embedded, encoded alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy.latent_formats import LatentFormat
from comfy.sd import VAE
from torch import Tensor

from ..film.cache import ChoicePolicy, Keyframe, choose_keyframes, spread_frames
from .embedder import Embedder
from .streaming_vae import StreamingDecoder, encode_image

__all__ = ["decoded_frame", "film_size", "picture_keyframes", "shot_keyframes"]

# Latent frames decoded before a keyframe's own: what its pixels depend on, but for a rest nobody sees.
_BEFORE = 2


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
    """Pictures [n, H, W, 3] in 0..1 as keyframes; names: who is seen on each; size: the film's width and height.

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
) -> tuple[Keyframe, ...]:
    """What a filmed shot is remembered by. latents: [1, C, T, h, w] in LATENT space; shot: its number, from 0.

    Of frames spread from first to last the sharp and different ones stay; see ChoicePolicy.
    """
    chosen = spread_frames(latents.shape[2], policy.count)
    pictures = torch.stack([decoded_frame(latents, vae, frame) for frame in chosen])
    made = picture_keyframes(pictures, [()] * len(chosen), vae, embedder, latent_format, size, shot=shot, frames=chosen)
    return choose_keyframes(made, policy)


def decoded_frame(latents: Tensor, vae: VAE, frame: int) -> Tensor:
    """The last picture [H, W, 3] of a latent frame, decoded with the few before it only."""
    chunks = StreamingDecoder(vae).decode(latents[:, :, max(0, frame - _BEFORE) : frame + 1])
    last = None
    for last in chunks:
        pass
    assert last is not None
    return last[-1].float().cpu()


def film_size(latents: Tensor, vae: VAE) -> tuple[int, int]:
    """Width and height in pixels of latents [..., h, w]."""
    compression = vae.spacial_compression_encode()
    return latents.shape[-1] * compression, latents.shape[-2] * compression
