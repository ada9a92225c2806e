"""Sample one chunk of video with ComfyUI's own guiders and samplers, with one model or two that share the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider, calculate_sigmas, sampler_object
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from torch import Tensor

__all__ = ["Conditioned", "SamplerSettings", "sample_chunk", "schedule"]


@dataclass(frozen=True)
class SamplerSettings:
    """How a chunk is denoised.

    steps, sampler, scheduler, cfg: as in core's KSampler. reference_cfg: guidance towards the pictures, where it is
    taken apart from the text's (1 for none more). boundary: sigma (0..1) below which the second model goes on.
    """

    steps: int = 30
    cfg: float = 5.0
    sampler: str = "uni_pc"
    scheduler: str = "simple"
    reference_cfg: float = 5.0
    boundary: float = 0.875


@dataclass(frozen=True)
class Conditioned:
    """What a chunk is sampled with, as ComfyUI's CONDITIONING.

    middle: where text and pictures guide apart, what is reached from the negative by the one of them that guides
    first: the negative text with the pictures, or with ``text_first`` the prompt without them. frames: latent frames
    to sample; trim: leading ones to cut off afterwards.
    """

    positive: list[Any]
    negative: list[Any]
    frames: int
    middle: list[Any] | None = None
    text_first: bool = False
    trim: int = 0


def schedule(models: Sequence[ModelPatcher], settings: SamplerSettings) -> list[Tensor]:
    """The sigmas of each of one or two models, from the first's own shift; the second's begin where the first's end."""
    sampling = models[0].get_model_object("model_sampling")
    sigmas = calculate_sigmas(sampling, settings.scheduler, settings.steps).cpu()
    if len(models) == 1:
        return [sigmas]
    share = int((sigmas >= settings.boundary).sum())
    return [sigmas[: share + 1], sigmas[share:]]


def sample_chunk(
    models: Sequence[ModelPatcher],
    given: Conditioned,
    noise: Tensor,
    settings: SamplerSettings,
    seed: int,
    callback: Callable[..., None] | None = None,
) -> Tensor:
    """A chunk [1, C, frames - trim, h, w] fp32 on the CPU, in LATENT space. noise: [1, C, frames, h, w].

    seed: of samplers that draw noise of their own. callback: ComfyUI's (step, x0, x, total). Raises ComfyUI's
    InterruptProcessingException.
    """
    latents = torch.zeros_like(noise)
    for model, sigmas in zip(models, schedule(models, settings)):
        if len(sigmas) < 2:
            continue  # the other model's share is everything
        latents = _guider(model, given, settings).sample(
            noise,
            latents,
            sampler_object(settings.sampler),
            sigmas,
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )
        noise = torch.zeros_like(noise)  # the second goes on from what the first left
    return latents[:, :, given.trim :].float().cpu()


def _guider(model: ModelPatcher, given: Conditioned, settings: SamplerSettings) -> CFGGuider:
    if given.middle is not None:
        dual = Guider_DualCFG(model)
        dual.set_conds(given.positive, given.middle, given.negative)
        weights = (settings.reference_cfg, settings.cfg) if given.text_first else (settings.cfg, settings.reference_cfg)
        dual.set_cfg(*weights)
        return dual
    guider = CFGGuider(model)
    guider.set_conds(given.positive, given.negative)
    guider.set_cfg(settings.cfg)
    return guider
