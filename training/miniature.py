"""Everything the miniature is made of, from nothing, in order: probe, VAE, latents, DiT with text encoder, exported
files.

Each stage resumes where it was killed and is skipped when it is done; a folder holds its checkpoints and logs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..miniature.probe import Probe
from .curves import draw_curves
from .dit import DitRecipe, Miniature, train_dit
from .export import export_dit, export_probe, export_vae, latent_statistics
from .latents import encode_stories, load_stories
from .loop import save_whole
from .probe import ProbeRecipe, train_probe
from .vae import VaeRecipe, build_vae, train_vae


@dataclass(frozen=True)
class MiniatureRecipe:
    """The recipes of all stages and the number of shards of 32 stories to encode."""

    probe: ProbeRecipe = field(default_factory=ProbeRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    shards: int = 24
    dit: DitRecipe = field(default_factory=DitRecipe)
    seed: int = 0


def start_comfyui() -> None:
    """ComfyUI decides on devices when first imported and reads its options from the command line."""
    import comfy.options

    own, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = own


def _once(path: Path, make: Callable[[], nn.Module], build: Callable[[], nn.Module]) -> nn.Module:
    """A trained model kept at ``path``: made if it is not there, else loaded."""
    if not path.exists():
        save_whole(path, make().state_dict())
    model = build()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def train_miniature(recipe: MiniatureRecipe, folder: Path, weights: Path, curves: Path) -> None:
    """Run all stages in ``folder``, write the finished files under ``weights`` and the loss curves as ``curves``."""
    start_comfyui()
    folder.mkdir(parents=True, exist_ok=True)
    probe = _once(folder / "probe.pt", lambda: train_probe(recipe.probe, folder), Probe)
    export_probe(probe, weights)  # type: ignore[arg-type]

    def blank_vae() -> nn.Module:
        return build_vae(recipe.vae.width)

    vae = _once(folder / "vae.pt", lambda: train_vae(recipe.vae, folder), blank_vae)
    scales = folder / "latent-statistics.pt"
    if not scales.exists():
        save_whole(scales, latent_statistics(vae, recipe.seed))
    shift, scale = torch.load(scales, weights_only=True)
    export_vae(vae, shift, scale, weights)

    encode_stories(vae, shift, scale, recipe.shards, folder / "latents", recipe.seed)
    stories = load_stories(folder / "latents")
    model = _once(folder / "dit.pt", lambda: train_dit(recipe.dit, stories, folder), lambda: Miniature(recipe.dit))
    export_dit(model, recipe.dit, weights)  # type: ignore[arg-type]
    draw_curves(folder, curves)
