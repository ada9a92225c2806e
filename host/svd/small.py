"""A scaled-down Stable Video Diffusion in one file: UNet, autoencoder and vision encoder of ComfyUI's own classes.

ComfyUI's checkpoint loader recognises Stable Video Diffusion by its full width alone, so a small one has a file and a
loader of its own. Keys: `unet.*`, `vae.*`, `vision.*`, as ComfyUI names them inside each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.temporal_ae import VideoDecoder
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from torch import Tensor, nn

from ...film.instruction import InstructionError
from .model import SvdSize, make_svd

__all__ = ["FORMAT", "MINIATURE_SIZE", "SmallSvd", "load_small_svd", "make_vae", "make_vision", "with_temporal_decoder"]

FORMAT = "longreel-small-svd"
MINIATURE_SIZE = SvdSize(32, (1, 3), (True, True), 1, 32, 64)
"""Of the miniature's, 4,164,627 parameters over latents of 8 x 8."""
_SCALE = 0.18215
"""SVD's latents times this have unit variance."""
_SHAPE: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "num_res_blocks": 0,
    "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
_ENCODER = {**_SHAPE, "ch": 64, "ch_mult": [1, 1, 1, 1]}
"""Without residual blocks before its middle: an eighth of the pictures' size is reached by four convolutions."""
_DECODER = {**_SHAPE, "ch": 32, "ch_mult": [1, 1, 2, 4]}
_TIME = {"video_kernel_size": [3, 1, 1], "alpha": 0.0}
_VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 64,
    "patch_size": 16, "projection_dim": 64, "hidden_act": "gelu", "num_channels": 3, "model_type": "clip_vision_model",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SmallSvd:
    """As core's Image Only Checkpoint Loader gives a large one."""

    model: ModelPatcher
    clip_vision: Any
    vae: Any


def load_small_svd(path: Path) -> SmallSvd:
    """Read a file of FORMAT. Raises InstructionError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
        size = SvdSize.from_json(told["size"]) if told.get("format") == FORMAT else None
    except Exception as error:  # safetensors raises what it likes
        raise InstructionError(f"{path.name} cannot be read, it may be cut off: use another copy of it.") from error
    if size is None:
        raise InstructionError(
            f"{path.name} is no small Stable Video Diffusion: choose one made by Longreel's training; a checkpoint of "
            "full size opens with core's Image Only Checkpoint Loader."
        )
    state = comfy.utils.load_torch_file(str(path), safe_load=True)

    def part(name: str) -> dict[str, Tensor]:
        return {key[len(name) + 1 :]: value.float() for key, value in state.items() if key.startswith(f"{name}.")}

    vision = make_vision()
    vision.model.load_state_dict(part("vision"))
    return SmallSvd(make_svd(size, part("unet")), vision, make_vae(part("vae")))


def metadata(size: SvdSize, notes: Mapping[str, str]) -> dict[str, str]:
    """Of a file of FORMAT."""
    return {**notes, "format": FORMAT, "size": size.to_json(), "scale": json.dumps(_SCALE)}


def make_autoencoder() -> nn.Module:
    """ComfyUI's AutoencoderKL with a decoder of images, untrained: its layers are as memory was."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    made: nn.Module = AutoencoderKL(embed_dim=4, ddconfig=_ENCODER, decoder_ddconfig=_DECODER)
    return made


def make_vae(state: Mapping[str, Tensor]) -> comfy.sd.VAE:
    """A VAE with SVD's temporal decoder. state: as `with_temporal_decoder` gives it."""
    config = {"params": {"embed_dim": 4, "ddconfig": _ENCODER, "decoder_ddconfig": _DECODER}}
    vae = comfy.sd.VAE(sd=dict(state), config=config, dtype=torch.float32)
    vae.first_stage_model.decoder = VideoDecoder(**_DECODER, **_TIME).eval()
    vae.first_stage_model.load_state_dict(dict(state))
    return vae


def make_vision() -> comfy.clip_vision.ClipVisionModel:
    """ComfyUI's vision encoder of 2 layers, untrained."""
    return comfy.clip_vision.ClipVisionModel(dict(_VISION))


@torch.no_grad()
def with_temporal_decoder(autoencoder: nn.Module, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """State of a trained autoencoder for `make_vae`.

    The temporal layers are added such that they change nothing; the scale of latents, mean and std [4] as they are, is
    folded into the 1 x 1 convolutions at both ends, so that latents times SVD's factor have unit variance.
    """
    state = {key: value.detach().clone() for key, value in autoencoder.state_dict().items()}
    gain = 1 / (_SCALE * std)
    state["quant_conv.weight"][:4] *= gain[:, None, None, None]
    state["quant_conv.bias"][:4] = gain * (state["quant_conv.bias"][:4] - mean)
    weight = state["post_quant_conv.weight"]
    state["post_quant_conv.bias"] += weight[:, :, 0, 0] @ mean
    state["post_quant_conv.weight"] = weight / gain[None, :, None, None]
    decoder = VideoDecoder(**_DECODER, **_TIME)
    for name, value in decoder.state_dict().items():
        key = f"decoder.{name}"
        if key in state:
            continue
        if name == "conv_out.time_mix_conv.weight":  # passes every frame on as it is
            value = torch.zeros_like(value)
            value[:, :, 1, 0, 0] = torch.eye(3)
        elif name.endswith((".in_layers.0.weight", ".out_layers.0.weight")):
            value = torch.ones_like(value)  # norms
        else:  # the branch ends in zeros: its residual is the frame itself, whatever the mix
            value = torch.zeros_like(value)
        state[key] = value
    return state
