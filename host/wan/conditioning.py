"""Conditioning as core's own Wan nodes make it, and which weights read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.latent_formats
import torch
from comfy.ldm.wan.model import VaceWanModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_extras.nodes_wan import WanImageToVideo, WanVaceToVideo
from torch import Tensor

from ..families.wan import MASK_CHANNELS, PLAIN
from .causal_models import UnsupportedModelError

__all__ = ["blank_latents", "check_image_to_video", "check_plain", "check_vace", "image_to_video", "vace_to_video"]

Conditioning = list[Any]


def check_plain(models: Sequence[ModelPatcher], weights: str) -> None:
    """Raises UnsupportedModelError, naming the weights to load, for a model that is no plain Wan."""
    _check_class(models, PLAIN, weights)


def check_vace(models: Sequence[ModelPatcher], weights: str) -> None:
    """Raises UnsupportedModelError, naming the weights to load, for a model without VACE's control branch."""
    _check_class(models, (VaceWanModel,), weights)


def check_image_to_video(models: Sequence[ModelPatcher], weights: str) -> None:
    """Raises UnsupportedModelError for a model without channels for known frames: a mask's and a latent's."""
    check_plain(models, weights)
    for model in models:
        latent = model.model.latent_format.latent_channels
        if model.model.diffusion_model.patch_embedding.weight.shape[1] != 2 * latent + MASK_CHANNELS:
            raise UnsupportedModelError(f"This backend needs an image-to-video model: load {weights}.")


def image_to_video(
    conditioning: Conditioning, vae: VAE, size: tuple[int, int], length: int, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The known frames as core's Wan Image To Video encodes them, and where nothing is known.

    start: [n, H, W, 3] in 0..1, the first of `length` frames, the others grey. size: width and height in pixels.
    Returns latents [1, C, T, h, w] and a mask [1, 1, T, h, w], 0 where known.
    """
    ((_, told),) = WanImageToVideo.execute(conditioning[:1], [], vae, *size, length, 1, start).result[0]
    return told["concat_latent_image"], told["concat_mask"]


def vace_to_video(
    positive: Conditioning,
    negative: Conditioning,
    vae: VAE,
    size: tuple[int, int],
    length: int,
    video: Tensor | None,
    masks: Tensor | None,
    reference: Tensor | None,
) -> tuple[Conditioning, Conditioning, int, int]:
    """Positive and negative as core's Wan Vace To Video makes them, latent frames to sample, and to trim of them."""
    made = WanVaceToVideo.execute(positive, negative, vae, *size, length, 1, 1.0, video, masks, reference)
    positive, negative, latent, trim = made.result
    return positive, negative, latent["samples"].shape[2], trim


def blank_latents(like: Tensor) -> Tensor:
    """What is zero in the model's own space, in LATENT space."""
    blank: Tensor = comfy.latent_formats.Wan21().process_out(torch.zeros_like(like))
    return blank


def _check_class(models: Sequence[ModelPatcher], wanted: Sequence[type], weights: str) -> None:
    for model in models:
        dit = type(getattr(model.model, "diffusion_model", None))
        if dit not in wanted:
            raise UnsupportedModelError(f"This backend cannot film with {dit.__name__}: load {weights}.")
