"""Stable Video Diffusion of any size as a ComfyUI MODEL: the real classes, without a checkpoint that detection knows.

ComfyUI recognises Stable Video Diffusion by its full width alone. A scaled-down one, for the miniature, tests and the
trainer's own, is made here of the same classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

__all__ = ["FULL_SIZE", "SvdSize", "make_svd"]


@dataclass(frozen=True)
class SvdSize:
    """Sizes of a UNet. Every channel count is a multiple of 32, as its GroupNorms have 32 groups.

    model_channels, channel_mult: width of each level. transformer: whether each level has transformers. res_blocks: a
    level. head_width: of attention. context_dim: of cross-attention. adm_width: of one micro-condition's embedding,
    always 256 in ComfyUI.
    """

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    transformer: tuple[bool, ...] = (True, True, True, False)
    res_blocks: int = 2
    head_width: int = 64
    context_dim: int = 1024

    def unet_config(self, dtype: torch.dtype) -> dict[str, Any]:
        """As ComfyUI's model detection would give it."""
        depth = [int(has) for has in self.transformer for _ in range(self.res_blocks)]
        output = [int(has) for has in self.transformer for _ in range(self.res_blocks + 1)]
        return {
            "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
            "num_classes": "sequential", "adm_in_channels": 3 * 256, "dtype": dtype, "in_channels": 8,
            "out_channels": 4, "model_channels": self.model_channels,
            "num_res_blocks": [self.res_blocks] * len(self.channel_mult), "transformer_depth": depth,
            "transformer_depth_output": output, "channel_mult": list(self.channel_mult),
            "transformer_depth_middle": 1, "use_linear_in_transformer": True, "context_dim": self.context_dim,
            "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
            "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True,
            "use_temporal_attention": True, "disable_temporal_crossattention": False,
        }  # fmt: skip

    def to_json(self) -> str:
        """For a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SvdSize:
        """Inverse of to_json. Raises ValueError, KeyError or TypeError for other text."""
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        return cls(**values)


FULL_SIZE = SvdSize()
"""Stable Video Diffusion, 1,524,623,082 parameters."""


def make_svd(
    size: SvdSize, weights: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float32
) -> ModelPatcher:
    """A MODEL of that size. weights: of the UNet, by ComfyUI's names; without them they are left as memory was.

    Raises RuntimeError for weights that are missing or of another shape.
    """
    config = comfy.supported_models.SVD_img2vid(size.unet_config(dtype))
    config.unet_config["num_heads"] = -1
    config.unet_config["num_head_channels"] = size.head_width
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, device=torch.device("cpu"))
    if weights is not None:
        base.diffusion_model.load_state_dict(dict(weights))
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return ModelPatcher(base, load_device=load, offload_device=offload)
