"""A clip from its first frame, by any Wan model that takes one, exactly as core's own nodes and KSampler make it.

Three kinds of model do. "concat": 36 input channels, the picture's latents and a mask beside the noise (Wan 2.1 I2V,
each expert of Wan 2.2 I2V A14B). "latent": the picture is the first latent frame, clean, at timestep 0 (Wan 2.2 TI2V
5B). "frame": a text-to-video model trained to be given clean frames, each with a noise level of its own (the causal
models, the miniature); core has no node for it, so a wrapper sets noise level 0 for the first frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import comfy.model_base
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from torch import Tensor

from ..families import encode_image, of_vae
from ..families.wan import MASK_CHANNELS, is_plain
from ..guidance import Cfg
from ..memory_graph import outside_memory_graph
from ..sampling import Inputs, Stage, sample, schedule
from .causal_models import UnsupportedModelError

__all__ = ["Kind", "Start", "kind_of", "sample_clip", "start_from"]

Kind = Literal["concat", "latent", "frame"]

_KEY = "longreel_first_frame"


@dataclass(frozen=True, eq=False)
class Start:
    """What sampling begins with: conditionings, and core's LATENT (empty, or with the picture in it and a mask)."""

    kind: Kind
    positive: list[Any]
    negative: list[Any]
    latent: dict[str, Tensor]


def kind_of(model: ModelPatcher) -> Kind:
    """How a model takes its first frame. Raises UnsupportedModelError for one that is no plain Wan model."""
    base = model.model
    dit: Any = getattr(base, "diffusion_model", None)
    flow = isinstance(base.model_sampling, comfy.model_sampling.CONST)
    if not is_plain(model) or dit.ref_conv is not None or not flow:
        raise UnsupportedModelError(
            f"{type(base).__name__} does not film from a first frame this way: load a Wan image-to-video model."
        )
    channels, latents = dit.patch_embedding.weight.shape[1], base.latent_format.latent_channels
    if channels == latents:
        return "latent" if isinstance(base, comfy.model_base.WAN22) else "frame"
    if channels == 2 * latents + MASK_CHANNELS:
        return "concat"
    raise UnsupportedModelError(
        f"This Wan model takes {channels} input channels, which are not those of a first frame: load an "
        "image-to-video model."
    )


def start_from(
    kind: Kind,
    picture: Tensor,
    vae: VAE,
    positive: list[Any],
    negative: list[Any],
    size: tuple[int, int],
    frames: int,
) -> Start:
    """Conditioning and latent for a clip that begins with a picture.

    picture: [1, H, W, 3] in 0..1, of the clip's size (another one would be cropped). size: (width, height). frames: 1
    more than a multiple of the VAE's 4.
    """
    width, height = size
    if kind == "concat":
        both = WanImageToVideo.execute(positive, negative, vae, width, height, frames, 1, start_image=picture).args
        return Start(kind, *both)
    if kind == "latent":
        latent = Wan22ImageToVideoLatent.execute(vae, width, height, frames, 1, start_image=picture).args[0]
        return Start(kind, positive, negative, latent)
    first = encode_image(vae, picture, width, height)
    latents = of_vae(vae).latents
    samples = torch.zeros(latents.shape(latents.grid(1.0).latent_frames(frames), width, height))
    mask = torch.ones(1, 1, *samples.shape[2:])
    samples[:, :, :1], mask[:, :, :1] = first, 0.0
    return Start(kind, positive, negative, {"samples": samples, "noise_mask": mask})


def sample_clip(
    stages: Sequence[Stage],
    start: Start,
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    on_step: Callable[[Tensor], None],
) -> Tensor:
    """Denoise a clip with one model, or with several one after the other, as a chain of KSampler (Advanced) would.

    stages: together all `steps`. on_step: called after each step with what the clip would be, in LATENT space; may
    raise to stop. Returns latents [1, C, T, h, w] fp32 on the CPU, in LATENT space.
    """
    samples = start.latent["samples"]
    if start.kind == "frame":
        stages = [replace(stage, model=_given_first_frame(stage.model, samples[:, :, :1])) for stage in stages]
    return sample(
        stages,
        Inputs({"positive": start.positive, "negative": start.negative}, samples, start.latent.get("noise_mask")),
        [Cfg(cfg)],
        comfy.sample.prepare_noise(samples, seed),
        sigmas=schedule(stages[0].model, scheduler, steps, sampler),
        sampler=sampler,
        seed=seed,
        on_step=on_step,
    )


def _given_first_frame(model: ModelPatcher, first: Tensor) -> ModelPatcher:
    """A clone of the model whose first latent frame is this clean one, at noise level 0, in every call."""
    clean = model.model.process_latent_in(first)

    def tell(
        executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, timestep: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        with outside_memory_graph():
            x = torch.cat([clean.to(x).expand(x.shape[0], -1, -1, -1, -1), x[:, :, 1:]], dim=2)
            times = timestep.reshape(-1, 1).repeat(1, x.shape[2])
            times[:, 0] = 0
        denoised: Tensor = executor(x, times, *rest, **named)
        return denoised

    told = model.clone()
    told.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, _KEY, tell)
    return told
