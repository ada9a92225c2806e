"""Mean cross-attention keys of a prompt, as the memory bank scores with them, without filming."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from .forward import mean_text_keys
from .other_nodes import inference_dtype

__all__ = ["prompt_keys"]


@torch.inference_mode()
def prompt_keys(model: ModelPatcher, conditioning: list[Any], *, mask_padding: bool) -> torch.Tensor:
    """Mean cross-attention keys [layers, heads, head_dim], fp32 on the CPU, of a prompt (ComfyUI's CONDITIONING)."""
    comfy.model_management.load_models_gpu([model])
    context = conditioning[0][0].to(model.load_device, inference_dtype(model))
    return mean_text_keys(model.model.diffusion_model, context, mask_padding).cpu()
