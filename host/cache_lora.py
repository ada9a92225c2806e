"""LoRA files trained with cache tokens: ComfyUI's own loading, and the layout profile that comes in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.cache import CacheError, LayoutProfile
from .cache_tokens import install

__all__ = ["load_cache_lora"]


def load_cache_lora(model: ModelPatcher, path: Path, strength: float) -> ModelPatcher:
    """A clone of `model` with the LoRA on it, that reads payloads laid out as the LoRA was trained with.

    Raises CacheError for a file without a profile, of another layout than the model's, or made for another model.
    """
    weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    profile = LayoutProfile.from_metadata(metadata or {})
    patched = install(model, profile)
    targets = comfy.lora.model_lora_keys_unet(patched.model, {})
    names = {name.rsplit(".lora_", 1)[0] for name in weights if ".lora_" in name}
    fits = bool(names) and all(name in targets and _fits(patched, targets[name], weights, name) for name in names)
    if not fits:
        raise CacheError(f"{path.name} was made for another model: load the one that it was trained on.")
    loaded, _ = comfy.sd.load_lora_for_models(patched, None, weights, strength, 0.0)
    with_lora: ModelPatcher = loaded
    return with_lora


def _fits(model: ModelPatcher, target: str, weights: Mapping[str, Tensor], name: str) -> bool:
    rows, columns = comfy.utils.get_attr(model.model, target).shape[:2]
    up, down = weights.get(f"{name}.lora_up.weight"), weights.get(f"{name}.lora_down.weight")
    return up is not None and down is not None and (up.shape[0], down.shape[1]) == (rows, columns)
