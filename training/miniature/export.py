"""Trained models as the files that ComfyUI's stock loaders open."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ...film.reel.atomic import whole_file
from ...miniature.probe import Probe
from .dit import DitRecipe, Miniature
from .latent_classifier import LatentClassifier, LatentClassifierRecipe
from .vae import Clips, ClipSource, encode

FILES = {
    "vae": "vae/longreel-miniature-vae.safetensors",
    "dit": "diffusion_models/longreel-miniature-dit.safetensors",
    "text": "text_encoders/longreel-miniature-text.safetensors",
    "probe": "probe/longreel-miniature-probe.safetensors",
    "counter": "probe/longreel-miniature-counter.safetensors",
    "eye": "probe/longreel-miniature-eye.safetensors",
    "reader": "probe/longreel-miniature-reader.safetensors",
    "memory": "loras/longreel-miniature-memory.safetensors",
    "filmweaver": "loras/longreel-miniature-filmweaver.safetensors",
    "cast": "loras/longreel-miniature-cast.safetensors",
}


def _write(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """fp16 halves the files and costs nothing visible; replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    with whole_file(path) as part:
        save_file(halves, part, metadata=metadata)


@torch.no_grad()
def latent_statistics(
    vae: nn.Module, seed: int, clips: int = 48, source: Clips | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [16, 1, 1, 1] of a trained VAE's raw latents over rendered clips of 45 frames."""
    source, device = source or ClipSource(seed), next(vae.parameters()).device
    latents = [encode(vae, source.clips(1_000_000 + i, 1, 45)[0].to(device)) for i in range(clips)]
    joined = torch.cat(latents).transpose(0, 1).flatten(1)
    return joined.mean(dim=1)[:, None, None, None], joined.std(dim=1)[:, None, None, None]


@torch.no_grad()
def export_vae(vae: nn.Module, shift: torch.Tensor, scale: torch.Tensor, folder: Path) -> Path:
    """Write the VAE so that ComfyUI's Wan 2.1 normalisation of its latents gives zero mean and unit variance.

    The last layer of the encoder and the first of the decoder are 1x1x1 convolutions: the change of scale is folded
    into them, exactly.
    """
    import comfy.latent_formats

    wan = comfy.latent_formats.Wan21()
    mean, std = wan.latents_mean.flatten(), wan.latents_std.flatten()
    m, s = shift.flatten().cpu(), scale.flatten().cpu()
    state = {key: value.cpu().clone() for key, value in vae.state_dict().items()}
    gain = std / s
    state["conv1.weight"][:16] *= gain[:, None, None, None, None]
    state["conv1.bias"][:16] = mean + gain * (state["conv1.bias"][:16] - m)
    weight = state["conv2.weight"]
    state["conv2.bias"] += weight[:, :, 0, 0, 0] @ (m - mean / gain)
    state["conv2.weight"] = weight / gain[None, :, None, None, None]
    path = folder / FILES["vae"]
    _write(state, path)
    return path


def read_vae(vae: nn.Module, folder: Path) -> None:
    """Load what `export_vae` wrote into `vae`, with latents of zero mean and unit variance as its raw ones."""
    import comfy.latent_formats

    wan = comfy.latent_formats.Wan21()
    mean, std = wan.latents_mean.flatten(), wan.latents_std.flatten()
    state = {key: value.float() for key, value in load_file(folder / FILES["vae"]).items()}
    weight = state["conv2.weight"]
    state["conv2.bias"] += weight[:, :, 0, 0, 0] @ mean
    state["conv2.weight"] = weight * std[None, :, None, None, None]
    state["conv1.weight"][:16] /= std[:, None, None, None, None]
    state["conv1.bias"][:16] = (state["conv1.bias"][:16] - mean) / std
    vae.load_state_dict(state)


def export_dit(model: Miniature, recipe: DitRecipe, folder: Path) -> tuple[Path, Path]:
    """Write the DiT (with the metadata that makes core load it as a causal model of its size) and the text encoder."""
    transformer = {
        "causal_ar": True, "num_heads": recipe.heads, "text_dim": recipe.text_dim, "freq_dim": recipe.freq_dim,
    }  # fmt: skip
    dit, text = folder / FILES["dit"], folder / FILES["text"]
    _write(model.dit.state_dict(), dit, {"config": json.dumps({"transformer": transformer})})
    _write(model.text.state_dict(), text)
    return dit, text


def read_sizes(folder: Path) -> DitRecipe:
    """The sizes of the DiT that `export_dit` wrote."""
    with safe_open(folder / FILES["dit"], "pt") as file:
        told = json.loads(file.metadata()["config"])["transformer"]
        layers = {key.split(".")[1] for key in file.keys() if key.startswith("blocks.")}  # noqa: SIM118
        ffn, dim = file.get_slice("blocks.0.ffn.0.weight").get_shape()
    return DitRecipe(dim, ffn, len(layers), told["num_heads"], told["freq_dim"], told["text_dim"])


def read_dit(model: Miniature, folder: Path) -> None:
    """Load what `export_dit` wrote into `model`."""
    for module, name in ((model.dit, "dit"), (model.text, "text")):
        module.load_state_dict({key: value.float() for key, value in load_file(folder / FILES[name]).items()})


def export_probe(probe: Probe, folder: Path, name: str = "probe") -> Path:
    """Write the attribute probe, or the second one, the "eye"."""
    path = folder / FILES[name]
    _write(probe.state_dict(), path)
    return path


def read_probe(probe: Probe, folder: Path, name: str = "probe") -> None:
    """Load what `export_probe` wrote into `probe`."""
    probe.load_state_dict({key: value.float() for key, value in load_file(folder / FILES[name]).items()})


def export_latent_classifier(reader: LatentClassifier, folder: Path) -> Path:
    """Write the reader of latents: what the recipes that train on use again."""
    path = folder / FILES["reader"]
    _write(reader.state_dict(), path)
    return path


def read_latent_classifier(folder: Path) -> LatentClassifier:
    """What `export_latent_classifier` wrote, frozen."""
    reader = LatentClassifier(LatentClassifierRecipe().width)
    reader.load_state_dict({key: value.float() for key, value in load_file(folder / FILES["reader"]).items()})
    return reader.requires_grad_(False).eval()
