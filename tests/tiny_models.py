"""Models of the real architectures with a few thousand random weights, so that films cost milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import VaceWanModel, WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.ops import disable_weight_init
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.motion import AdapterInfo, FlowGate, GateLevel, MotionLayers
from longreel.film.motion.adapter import FILE_KEYS
from longreel.miniature.text import TextEncoder
from safetensors.torch import save_file

DIT, VAE, TEXT = "tiny-dit.safetensors", "tiny-vae.safetensors", "longreel-miniature-tiny.safetensors"
CLIP, LORA = "tiny/open_clip_model.safetensors", "tiny-cache-lora.safetensors"
MOTION = "tiny-motion.safetensors"
STORYMEM = "tiny_backbone_high_noise.safetensors"
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


def wan_weights(layers: int = 2, channels: int = 16, vace: bool = False) -> dict[str, torch.Tensor]:
    """A plain Wan; 48 channels make it a Wan 2.2 TI2V 5B, vace one with the control branch."""
    shape = {**_DIT, "in_dim": channels, "out_dim": channels, "num_layers": layers}
    if vace:
        return random_weights(VaceWanModel(vace_layers=1, vace_in_dim=96, **shape), 5)
    return random_weights(WanModel(**shape), 5)


def lora_weights(seed: int = 7) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on the self-attention of wan_weights(1)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for part in "qkvo":
        name = f"diffusion_model.blocks.0.self_attn.{part}"
        weights[f"{name}.lora_up.weight"] = torch.randn(_DIT["dim"], 2, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, _DIT["dim"], generator=generator) / 8
        weights[f"{name}.alpha"] = torch.tensor(2.0)
    return weights


def random_like(weights: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Weights of these shapes that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5 for name, value in weights.items()
    }


def dit_metadata(causal: bool = True) -> dict[str, str]:
    """What tells ComfyUI the sizes that no tensor does."""
    config = {name: _DIT[name] for name in ("num_heads", "text_dim", "freq_dim")}
    return {"config": json.dumps({"transformer": config | ({"causal_ar": True} if causal else {})})}


def storymem_weights(seed: int = 8) -> dict[str, torch.Tensor]:
    """StoryMem's LoRA as released, but of rank 4, for all layers that it adapts of dit_weights(in_dim=36)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    layers = [f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"] + ["ffn.0", "ffn.2"]
    for layer in layers:
        name = f"base_model.model.blocks.0.{layer}"
        weights[f"{name}.lora_A.weight"] = torch.randn(4, _DIT["dim"], generator=generator) / 8
        weights[f"{name}.lora_B.weight"] = torch.randn(_DIT["dim"], 4, generator=generator) / 8
    return weights


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


def write_clip(folder: Path) -> Path:
    """A CLIP as open_clip publishes one: a folder with a description and weights. Returns the weights' file."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(6)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    path = folder / "open_clip_model.safetensors"
    save_file(open_clip.CLIP(**config).state_dict(), path)
    return path


def rank_one_weights(seed: int) -> dict[str, torch.Tensor]:
    """A rank-1 LoRA of one layer."""
    generator = torch.Generator().manual_seed(seed)
    name, (rows, columns) = "diffusion_model.blocks.0.ffn.0", (_DIT["ffn_dim"], _DIT["dim"])
    down, up = torch.randn(1, columns, generator=generator), torch.randn(rows, 1, generator=generator)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


def motion_adapter(seed: int = 9) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A motion adapter of dit_weights(), random everywhere, as tensors and metadata."""
    layers = MotionLayers(_DIT["dim"], 16, (1, 2, 2)).state_dict()
    weights = {FILE_KEYS[name]: value * 0.3 for name, value in random_like(layers, seed).items()}
    gate = FlowGate((GateLevel(0.9, 1.0, 4.0, 20.0), GateLevel(0.5, 5.0, 4.0, 80.0)))
    return weights | lora_weights(seed), AdapterInfo("tiny-dit", 16, _DIT["dim"], gate=gate).to_metadata()


def write(models: Path) -> None:
    """Put one of each into ComfyUI's models folder."""
    everything = {DIT: dit_weights(), EXPERT: dit_weights(6, 36), VAE: vae_weights(), TEXT: text_weights()}
    for name, weights in (everything | {HIGH: rank_one_weights(7), LOW: rank_one_weights(8)}).items():
        path = models / FOLDERS[name] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = dit_metadata(causal=name == DIT) if FOLDERS[name] == "diffusion_models" else None
        save_file(weights, path, metadata=metadata)
    write_clip((models / "open_clip" / CLIP).parent)
    save_file(storymem_weights(), models / "loras" / STORYMEM)
    weights, metadata = motion_adapter()
    save_file(weights, models / "loras" / MOTION, metadata=metadata)
    save_file(lora_weights(), models / "loras" / LORA, metadata=FILMWEAVER.to_metadata())
