"""A custom node of the tests' server: a small Stable Video Diffusion, which core's loader knows at full width only.

The server gets this file into its custom_nodes. It has the real classes of UNet and vision encoder; the VAE averages
8 x 8 pixels and repeats them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import comfy.clip_vision
import torch
from comfy.ldm.modules.temporal_ae import VideoDecoder
from comfy.model_patcher import ModelPatcher

CONTEXT = 32


class _Decoder(VideoDecoder):
    """By its class it is known whose VAE this is."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


class SmallVae:
    """Encodes by averaging and decodes by repeating, 8 pixels to a side."""

    latent_channels, latent_dim, vae_dtype = 4, 2, torch.float32

    def __init__(self) -> None:
        self.first_stage_model = torch.nn.Module()
        self.first_stage_model.decoder = _Decoder()
        self.patcher = ModelPatcher(self.first_stage_model, torch.device("cpu"), torch.device("cpu"))

    def spacial_compression_encode(self) -> int:
        return 8

    def model_size(self) -> int:
        return 10**9

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1) * 2 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        big = torch.nn.functional.interpolate((latents[:, :3] + 1) / 2, scale_factor=8.0)
        return big.movedim(1, -1).clamp(0, 1)


def small_vision() -> Any:
    """ComfyUI's vision encoder, one layer of 16 channels."""
    config = {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 32,
        "patch_size": 16, "projection_dim": CONTEXT, "hidden_act": "gelu", "num_channels": 3,
        "model_type": "clip_vision_model",
    }  # fmt: skip
    vision = comfy.clip_vision.ClipVisionModel(config)
    fill(vision.model, 2)
    return vision


def fill(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near one and no layer silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (value.ndim == 1 and "norm" in name))


def _pack() -> ModuleType:
    """The pack's host.svd.model: the server names the pack by its path."""
    own = ".nodes.instruction_train"
    name = next(name.removesuffix(own) for name in sys.modules if name.endswith(own))
    return importlib.import_module(f"{name}.host.svd.model")


class StandInSvd:
    """In place of core's Image Only Checkpoint Loader."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP_VISION", "VAE"), "load", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": ("STRING", {})}}

    def load(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        model = _pack().make_svd(_pack().SvdSize(32, (1, 2), (True, True), 1, 16, CONTEXT))
        fill(model.model.diffusion_model, 1)
        return model, small_vision(), SmallVae()


NODE_CLASS_MAPPINGS = {"StandInSvd": StandInSvd}
