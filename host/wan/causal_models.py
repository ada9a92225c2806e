"""Which models a causal film takes, and the layout of the memory that they need."""

from __future__ import annotations

import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models

from ...film.kv_memory import KVLayout
from ..families.wan import is_plain
from .joint_latent import joint_of
from .other_nodes import causal_fault

__all__ = ["UnsupportedModelError", "check_model", "kv_layout", "says_causal"]


class UnsupportedModelError(ValueError):
    """A model that cannot film causally; the message is one sentence that says why and what to load instead."""


def check_model(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise UnsupportedModelError unless `model` is a plain text-to-video Wan without patches that a film ignores."""
    base = model.model
    dit = getattr(base, "diffusion_model", None)
    if not isinstance(dit, comfy.ldm.wan.model.WanModel):
        raise UnsupportedModelError(
            f"{type(base).__name__} is not a Wan model; load a Wan text-to-video model or a causal one made from it."
        )
    if joint_of(model) is not None:
        raise UnsupportedModelError(
            "A causal film cannot carry motion beside appearance: remove Apply Motion Adapter from this model (Motion "
            "Fallbacks work here), or film with the cache-guided or first-frame engine."
        )
    if not is_plain(model) or dit.ref_conv is not None:
        raise UnsupportedModelError(
            f"The Wan variant {type(dit).__name__} needs inputs a causal film does not have; "
            "load a plain Wan text-to-video model."
        )
    channels, latent_channels = dit.patch_embedding.weight.shape[1], base.latent_format.latent_channels
    if dit.model_type != "t2v" or channels != latent_channels:
        raise UnsupportedModelError(
            f"This Wan model takes {channels} input channels where the latent has {latent_channels} (image-to-video or "
            "control); load the text-to-video model, it takes a first frame too."
        )
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    if not flow or base.model_type != comfy.model_base.ModelType.FLOW or dit.patch_size[0] != 1:
        raise UnsupportedModelError("This Wan model was not trained with flow matching; load a text-to-video model.")
    if fault := causal_fault(model):
        raise UnsupportedModelError(fault)


def says_causal(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether core opened the file as a causal Wan; only the header of a safetensors file says so."""
    return isinstance(model.model.model_config, comfy.supported_models.WAN21_CausalAR_T2V)


def kv_layout(model: comfy.model_patcher.ModelPatcher, height: int, width: int) -> KVLayout:
    """The memory layout of `model` for latents of `height` x `width` (latent pixels)."""
    dit = model.model.diffusion_model
    head_dim = dit.dim // dit.num_heads
    tokens = -(-height // dit.patch_size[1]) * -(-width // dit.patch_size[2])
    embedder = dit.rope_embedder
    return KVLayout(dit.num_layers, dit.num_heads, head_dim, tokens, embedder.axes_dim[0], float(embedder.theta))
