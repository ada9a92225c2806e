"""LoRA files of cache-guided backends: ComfyUI's own loading, and what it does not cover.

Ours were trained with cache tokens and bring their layout profile. StoryMem's are named as PEFT names them and scaled
by alpha over the root of the rank, where ComfyUI takes alpha over the rank. Source: docs/decisions.md, StoryMem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...film.dual_cache import CacheError, LayoutProfile
from ..wan.cache_tokens import install
from .lora_file import attach_lora, read_lora

__all__ = ["load_cache_lora", "load_storymem_lora", "storymem_weights"]

# What StoryMem adapts, before it the names of whatever wraps the model, after it PEFT's name of the adapter.
_PEFT = re.compile(r"(?:.*\.)?(blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02]))\.lora_([AB])(?:\.\w+)?\.weight")
_PARTS = {"A": "down", "B": "up"}


def load_cache_lora(model: ModelPatcher, path: Path, strength: float) -> ModelPatcher:
    """A clone of `model` with the LoRA on it, that reads payloads laid out as the LoRA was trained with.

    Raises CacheError for a file without a profile, of another layout than the model's, or made for another model;
    LoRAFileError for one that cannot be read or is of another size.
    """
    weights, metadata = read_lora(path)
    profile = LayoutProfile.from_metadata(metadata)
    return _loaded(install(model, profile), weights, path.name, strength)


def load_storymem_lora(model: ModelPatcher, path: Path, strength: float) -> ModelPatcher:
    """A clone of `model` with one half of StoryMem's pair on it, as released (.safetensors or .pth).

    Raises CacheError for a file of another kind, or made for another model.
    """
    weights = storymem_weights(read_lora(path)[0])
    if not weights:
        raise CacheError(
            f"{path.name} is no LoRA as StoryMem releases them (backbone_high_noise, backbone_low_noise): choose "
            "another file, or longreel for one of our trainer."
        )
    return _loaded(model, weights, path.name, strength)


def storymem_weights(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """StoryMem's weights by ComfyUI's names, with the alpha that makes ComfyUI scale them as trained.

    Trained at alpha = rank and rank-stabilised, so they count alpha / sqrt(rank) times; ComfyUI's alpha / rank is that
    for an alpha of rank * sqrt(rank), 1448.15 at the released rank of 128. Empty for weights of another kind.
    """
    weights: dict[str, Tensor] = {}
    for name, value in released.items():
        matched = _PEFT.fullmatch(name)
        if matched is None or value.ndim != 2:
            return {}
        layer, part = f"diffusion_model.{matched[1]}", _PARTS[matched[2]]
        weights[f"{layer}.lora_{part}.weight"] = value
        rank = value.shape[0 if part == "down" else 1]
        weights[f"{layer}.alpha"] = torch.tensor(rank**1.5)
    return weights


def _loaded(model: ModelPatcher, weights: Mapping[str, Tensor], file: str, strength: float) -> ModelPatcher:
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {name.rsplit(".lora_", 1)[0] for name in weights if ".lora_" in name}
    halves = [f"{name}.lora_{half}.weight" for name in names for half in ("up", "down")]
    if not names or not all(name in targets for name in names) or not all(half in weights for half in halves):
        raise CacheError(f"{file} was made for another model: load the one that it was trained on.")
    return attach_lora(model, weights, file, strength)[0]
