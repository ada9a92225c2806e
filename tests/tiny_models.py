"""Models of the real architectures with a few thousand random weights, so that films cost milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.ops import disable_weight_init
from longreel.miniature.text import TextEncoder
from safetensors.torch import save_file

DIT, VAE, TEXT = "tiny-dit.safetensors", "tiny-vae.safetensors", "longreel-miniature-tiny.safetensors"
EXPERT, HIGH, LOW = "tiny-expert.safetensors", "tiny-high-noise-lora.safetensors", "tiny-low-noise-lora.safetensors"
FOLDERS = {DIT: "diffusion_models", EXPERT: "diffusion_models", VAE: "vae", TEXT: "text_encoders"}
FOLDERS |= {HIGH: "loras", LOW: "loras"}
TEXT_WIDTH = 128

_DIT = {
    "dim": 64,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": TEXT_WIDTH,
    "num_heads": 2,
    "num_layers": 1,
    "operations": disable_weight_init,
}


def random_weights(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(("gamma", "norm_q.weight", "norm_k.weight")) or (".norm" in name and name.endswith(".weight")):
            weights[name] = torch.ones(value.shape)
        elif value.ndim > 1:
            weights[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            weights[name] = torch.randn(value.shape, generator=generator) * 0.1
    return weights


def dit_weights(seed: int = 1, in_dim: int = 16, out_dim: int = 16) -> dict[str, torch.Tensor]:
    """A causal Wan; in_dim 36 makes an image-to-video one, which has the same layers but the first, and 48 a 2.2 5B."""
    return random_weights(CausalWanModel(in_dim=in_dim, out_dim=out_dim, **_DIT), seed)


def dit_metadata(causal: bool = True) -> dict[str, str]:
    """What tells ComfyUI the sizes that no tensor does."""
    config = {name: _DIT[name] for name in ("num_heads", "text_dim", "freq_dim")}
    return {"config": json.dumps({"transformer": config | ({"causal_ar": True} if causal else {})})}


def image_to_video_weights() -> dict[str, torch.Tensor]:
    """A Wan 2.1 image-to-video model: 36 input channels and layers for the picture's embedding."""
    return random_weights(WanModel(model_type="i2v", in_dim=36, **_DIT), 2)


def vae_weights() -> dict[str, torch.Tensor]:
    """A Wan 2.1 VAE, 8 wide."""
    mults = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    return random_weights(WanVAE(dim=8, z_dim=16, **mults), 3)


def text_weights() -> dict[str, torch.Tensor]:
    """The miniature's text encoder, untrained."""
    return random_weights(TextEncoder(dim=TEXT_WIDTH), 4)


def lora_weights(seed: int) -> dict[str, torch.Tensor]:
    """A rank-1 LoRA of one layer."""
    generator = torch.Generator().manual_seed(seed)
    name, (rows, columns) = "diffusion_model.blocks.0.ffn.0", (_DIT["ffn_dim"], _DIT["dim"])
    down, up = torch.randn(1, columns, generator=generator), torch.randn(rows, 1, generator=generator)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


def write(models: Path) -> None:
    """Put one of each into ComfyUI's models folder."""
    everything = {DIT: dit_weights(), EXPERT: dit_weights(6, 36), VAE: vae_weights(), TEXT: text_weights()}
    for name, weights in (everything | {HIGH: lora_weights(7), LOW: lora_weights(8)}).items():
        path = models / FOLDERS[name] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = dit_metadata(causal=name == DIT) if FOLDERS[name] == "diffusion_models" else None
        save_file(weights, path, metadata=metadata)
