"""Sampling: one driver for all engines that denoise with ComfyUI's samplers, by one model or several in turn.

It samples as a chain of core's KSampler (Advanced) nodes would, one for each stage: the first adds the noise, the
others go on from what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscreteFlow
from comfy.samplers import KSampler, calculate_sigmas, sampler_object
from torch import Tensor

from .guidance import Cfg, DualCfg, Guidance
from .guider import Guider

__all__ = [
    "Conditioned",
    "Inputs",
    "SamplerSettings",
    "Stage",
    "own_shift",
    "sample",
    "sample_chunk",
    "schedule",
    "stages_by_boundary",
]


@dataclass(frozen=True, eq=False)
class Stage:
    """One model's part of the denoising: steps first .. last (exclusive) of the schedule."""

    model: ModelPatcher
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is denoised.

    conds: CONDITIONING by the name of the guidance's pass. latent: [B, C, T, h, w] in LATENT space, None for an empty
    one. mask: [1, 1, T, h, w], 0 where the latent is kept, None for nowhere.
    """

    conds: Mapping[str, list[Any]]
    latent: Tensor | None = None
    mask: Tensor | None = None


def schedule(
    model: ModelPatcher, scheduler: str, steps: int, sampler: str = "", *, shift: float | None = None
) -> Tensor:
    """The sigmas [steps + 1] of a run, falling to 0.

    sampler: where it is named, the sigmas that core's KSampler takes for it; for a few samplers these leave out the
    schedule's last but one. shift: of a flow, instead of the model's own.
    """
    if shift is not None:
        flow = ModelSamplingDiscreteFlow()
        flow.set_parameters(shift=shift)
        shifted: Tensor = calculate_sigmas(flow, scheduler, steps).cpu()
        return shifted
    if sampler:
        sigmas: Tensor = KSampler(model, steps, "cpu", sampler, scheduler).sigmas
        return sigmas
    return calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).cpu()


def own_shift(model: ModelPatcher) -> tuple[float, bool]:
    """The shift of a flow model, and whether a node (ModelSamplingSD3) set it."""
    return float(model.get_model_object("model_sampling").shift), "model_sampling" in model.object_patches


def stages_by_boundary(
    models: Sequence[ModelPatcher], scheduler: str, steps: int, boundary: float
) -> tuple[Stage, ...]:
    """The stages of one model, or of a high-noise and a low-noise expert.

    boundary: noise level, 0..1; steps that begin at it or above are the high-noise expert's. With shift 5 and boundary
    0.9 that is 8 of 20 and 18 of 50 (docs/methods/ffgo.md).
    """
    if len(models) == 1:
        return (Stage(models[0], 0, steps),)
    high, low = models
    switch = int((schedule(high, scheduler, steps)[:-1] >= boundary).sum())
    return Stage(high, 0, switch), Stage(low, switch, steps)


def sample(
    stages: Sequence[Stage],
    inputs: Inputs,
    guidance: Sequence[Guidance],
    noise: Tensor,
    *,
    sigmas: Tensor,
    sampler: str,
    seed: int,
    on_step: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Denoise, and return latents [B, C, T, h, w] fp32 on the CPU, in LATENT space.

    stages: together all steps of `sigmas`; one without steps is left out. noise: of the latent's shape. seed: of
    samplers that draw noise of their own. on_step: called after each step with what the latent would be, in LATENT
    space; may raise to stop. Raises ComfyUI's InterruptProcessingException.
    """
    latent = torch.zeros_like(noise) if inputs.latent is None else inputs.latent
    for stage in stages:
        if stage.first == stage.last:
            continue

        def report(_step: int, denoised: Tensor, *_: Any, base: Any = stage.model.model) -> None:
            if on_step is not None:
                on_step(base.process_latent_out(denoised))

        latent = Guider(stage.model, guidance, inputs.conds).sample(
            noise,
            latent,
            sampler_object(sampler),
            sigmas[stage.first : stage.last + 1],
            denoise_mask=inputs.mask,
            callback=report,
            disable_pbar=True,
            seed=seed,
        )
        latent = latent.float().cpu()
        noise = torch.zeros_like(noise)  # the next stage goes on from what this one left
    return latent


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

    middle: where text and pictures guide apart, what is reached from the negative by the one of them that guides first:
    the negative text with the pictures, or with `text_first` the prompt without them. frames: latent frames to sample;
    trim: leading ones to cut off afterwards.
    """

    positive: list[Any]
    negative: list[Any]
    frames: int
    middle: list[Any] | None = None
    text_first: bool = False
    trim: int = 0

    def conds(self) -> dict[str, list[Any]]:
        """By the name of the pass."""
        conds = {"positive": self.positive, "negative": self.negative}
        return conds if self.middle is None else {**conds, "middle": self.middle}

    def guidance(self, settings: SamplerSettings) -> Guidance:
        """What guides it."""
        if self.middle is None:
            return Cfg(settings.cfg)
        return DualCfg(settings.cfg, settings.reference_cfg, self.text_first)


def sample_chunk(
    models: Sequence[ModelPatcher],
    given: Conditioned,
    noise: Tensor,
    settings: SamplerSettings,
    seed: int,
    on_step: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """A chunk [1, C, frames - trim, h, w] of one or two models, see `sample`. noise: [1, C, frames, h, w]."""
    latents = sample(
        stages_by_boundary(models, settings.scheduler, settings.steps, settings.boundary),
        Inputs(given.conds()),
        [given.guidance(settings)],
        noise,
        sigmas=schedule(models[0], settings.scheduler, settings.steps),
        sampler=settings.sampler,
        seed=seed,
        on_step=on_step,
    )
    return latents[:, :, given.trim :]
