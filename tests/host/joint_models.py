"""Tiny Wan models that carry motion, and one way to sample them."""

from __future__ import annotations

from dataclasses import replace

import comfy.patcher_extension
import comfy.sample
import comfy.sd
import torch
from longreel.film.motion import AdapterInfo
from longreel.host.adapters.motion import MotionAdapter, zero_adapter

from .. import tiny_models

SIZE = (3, 4, 6)


def load(weights=None, causal=False):
    weights = tiny_models.wan_weights() if weights is None else weights
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(causal=causal))


def info(channels=16, **changes):
    return replace(AdapterInfo("tiny-wan", channels, 64), **changes)


def random_adapter(model, seed=11, trunk=True, **changes) -> MotionAdapter:
    """An adapter that does something everywhere."""
    made = zero_adapter(model, info(model.model.latent_format.latent_channels, **changes))
    layers = tiny_models.random_like(made.layers, seed)
    return replace(made, name="tiny.safetensors", layers=layers, trunk=tiny_models.lora_weights() if trunk else {})


def conds(rows=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, rows, tiny_models.TEXT_WIDTH, generator=generator), {}]]


def sample(model, *, cfg=6.0, sampler="euler", size=SIZE, batch=1, steps=4, mask=None, extra=None, **more):
    channels = model.model.latent_format.latent_channels
    latent = more.pop("latent", torch.zeros(batch, channels, *size))
    noise = more.pop("noise", comfy.sample.prepare_noise(latent, 5))
    positive, negative = ([[each[0][0], extra or {}]] for each in (conds(), conds(seed=3)))
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", positive, negative, latent, noise_mask=mask, seed=5,
        disable_pbar=True, **more,
    )  # fmt: skip


def network_inputs(model):
    """The x of every call of the network, before and after our wrapper."""
    seen = []
    clone = model.clone()

    def look(executor, x, *args, **kwargs):
        out = executor(x, *args, **kwargs)
        seen.append((x.clone(), out))
        return out

    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "look", look)
    return clone, seen
