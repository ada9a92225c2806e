"""Everything the miniature is made of, from nothing, in order: probe, VAE, latents, reader, DiT with text encoder, a
second probe for perceptual losses, DiT and then the VAE's decoder finetuned with them, exported files.

Each stage resumes where it was killed and is skipped when it is done; a folder holds its checkpoints and logs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from ...miniature.probe import Probe
from ..core.command_line import start_comfyui
from ..core.curves import draw_curves
from ..core.loop import save_whole
from .decoder import DecoderRecipe, draw_films, train_decoder
from .dit import DitRecipe, Miniature, train_dit
from .evaluate import load
from .export import (
    export_dit,
    export_latent_classifier,
    export_probe,
    export_vae,
    latent_statistics,
    read_dit,
    read_latent_classifier,
    read_probe,
    read_vae,
)
from .latent_classifier import LatentClassifier, LatentClassifierRecipe, frames_of, train_latent_classifier
from .latents import encode_stories, load_stories
from .pixel_losses import DecodedProbeLoss
from .probe import ProbeRecipe, train_probe
from .vae import VaeRecipe, build_vae, train_vae


@dataclass(frozen=True)
class MiniatureRecipe:
    """The recipes of all stages and the number of shards of 32 stories to encode."""

    probe: ProbeRecipe = field(default_factory=ProbeRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    shards: int = 24
    reader: LatentClassifierRecipe = field(default_factory=LatentClassifierRecipe)
    dit: DitRecipe = field(default_factory=DitRecipe)
    sight: DitRecipe = field(
        default_factory=lambda: DitRecipe(steps=700, rate=3e-4, muon_rate=6e-4, own_context=0.7, own_steps=0.5)
    )
    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    seed: int = 0


def prepare_device() -> torch.device:
    """The GPU if there is one, set to what the miniature's small networks like."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # its plans are made anew for every shape and mask
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda")


def once(path: Path, model: nn.Module, make: Callable[[], object], *, as_it_is: bool = False) -> None:
    """Run `make`, which trains `model` in place, and keep the result at `path`; load it if it is there.

    as_it_is: keep the model untrained.
    """
    if not path.exists():
        if not as_it_is:
            make()
        save_whole(path, model.state_dict())
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()


def train_miniature(
    recipe: MiniatureRecipe,
    folder: Path,
    weights: Path,
    curves: Path,
    *,
    start_from: Path | None = None,
    keep: Collection[str] = (),
) -> None:
    """Run all stages in `folder` on the GPU if there is one, write the finished files under `weights` and the loss
    curves as `curves`. `start_from` names finished files whose VAE, DiT and text encoder are trained on; those of
    "probe", "vae", "reader" and "eye" that `keep` names are taken from there as they are; "sight" and "decoder" leave
    out what the DiT and the VAE learn in the end.
    """
    start_comfyui()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    probe = Probe()
    if start_from and "probe" in keep:
        read_probe(probe, start_from)
    probe.to(device)
    once(folder / "probe.pt", probe, lambda: train_probe(recipe.probe, probe, folder), as_it_is="probe" in keep)
    export_probe(probe, weights)

    vae = build_vae(recipe.vae.width)
    if start_from:
        read_vae(vae, start_from)
    vae.to(device)
    once(folder / "vae.pt", vae, lambda: train_vae(recipe.vae, vae, folder), as_it_is="vae" in keep)
    scales = folder / "latent-statistics.pt"
    if "vae" in keep:
        # what read_vae gives has latents of zero mean and unit variance already
        save_whole(scales, (torch.zeros(16, 1, 1, 1), torch.ones(16, 1, 1, 1)))
    if not scales.exists():
        save_whole(scales, latent_statistics(vae, recipe.seed))
    shift, scale = torch.load(scales, weights_only=True)
    export_vae(vae, shift, scale, weights)

    encode_stories(vae, shift, scale, recipe.shards, folder / "latents", recipe.seed)
    stories, openings = (load_stories(folder / "latents", kind) for kind in ("stories", "openings"))
    torch.manual_seed(recipe.dit.seed)
    model = Miniature(recipe.dit)
    if start_from:
        read_dit(model, start_from)
    model.to(device)
    reader = (
        read_latent_classifier(start_from) if start_from and "reader" in keep else LatentClassifier(recipe.reader.width)
    )
    reader.to(device)
    once(
        folder / "reader.pt",
        reader,
        lambda: train_latent_classifier(recipe.reader, reader, frames_of(stories, openings), folder),
        as_it_is="reader" in keep,
    )
    export_latent_classifier(reader, weights)
    once(folder / "dit.pt", model, lambda: train_dit(recipe.dit, model, reader, stories, openings, folder))
    export_dit(model, recipe.dit, weights)

    # A probe of its own, of which the one that judges knows nothing.
    perceptual_net = Probe()
    if "eye" in keep or not {"sight", "decoder"} <= set(keep):
        if start_from and "eye" in keep:
            read_probe(perceptual_net, start_from, "eye")
        perceptual_net.to(device)
        second = replace(recipe.probe, seed=recipe.probe.seed + 1)
        once(
            folder / "eye.pt",
            perceptual_net,
            lambda: train_probe(second, perceptual_net, folder, "eye"),
            as_it_is="eye" in keep,
        )
        export_probe(perceptual_net.requires_grad_(False), weights, "eye")
        read_vae(vae, weights)  # with latents of the scale that stories and openings have
    if "sight" not in keep:

        def learn_to_be_seen() -> None:
            pixel_loss = DecodedProbeLoss(vae.requires_grad_(False), perceptual_net)
            train_dit(recipe.sight, model, reader, stories, openings, folder, pixel_loss=pixel_loss, name="sight")

        once(folder / "sight.pt", model, learn_to_be_seen)
        export_dit(model, recipe.dit, weights)
    if "decoder" not in keep:

        def learn_to_draw() -> None:
            films = draw_films(load(weights), recipe.decoder.films, recipe.decoder.seed)
            train_decoder(recipe.decoder, vae, model, perceptual_net, stories, openings, films, recipe.seed, folder)

        once(folder / "decoder.pt", vae, learn_to_draw)
        export_vae(vae, torch.zeros(16, 1, 1, 1), torch.ones(16, 1, 1, 1), weights)
    draw_curves(folder, curves)
