"""Commands: `weaver-clip` trains the miniature's CLIP, `weaver-data` encodes scenes of its world, `weaver-lora` trains
a cache-guided LoRA from such scenes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from ...film.dual_cache import CacheError, LayoutProfile
from ...film.dual_cache.profile import TimeMode
from ...miniature.batch import World
from ..core.command_line import Command, add_model_arguments, command_line, load_base
from ..core.settings import add_arguments, chosen_settings
from ..miniature.auxiliary import add_auxiliary_arguments, open_auxiliary_losses
from ..miniature.clip import CLIP_FILE, ClipRecipe, train_clip
from ..miniature.export import FILES, read_vae
from ..miniature.pipeline import prepare_device
from ..miniature.vae import VaeRecipe, build_vae
from .evaluate import add_evaluation_arguments, run_evaluation
from .run import train_scenes
from .samples import TEMPORAL_ONLY, Curriculum
from .scenes.command import add_scene_arguments, run_scenes
from .train import MINIATURE, PAPER, WeaverSettings


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-clip`'s."""
    usual = ClipRecipe()
    parser.add_argument("--folder", type=Path, default=Path("clip-training"), help="checkpoint and log (resumed)")
    parser.add_argument("--weights", type=Path, help="where the finished model goes; default the miniature's weights")
    parser.add_argument("--scenes", type=int, default=usual.scenes, help="moments of the small world to learn from")
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another model")


@command_line()
def run_clip(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-clip`. weights: where the miniature's files are."""
    recipe = ClipRecipe(scenes=chosen.scenes, steps=chosen.steps, seed=chosen.seed)
    print(train_clip(recipe, chosen.folder, chosen.weights or weights))


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-data`'s."""
    parser.add_argument("--folder", type=Path, required=True, help="encoded scenes; what is there already is kept")
    parser.add_argument("--scenes", type=int, default=200, help="scenes of three shots")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="of N processes that "
                        "share the work this is number I, from 0")  # fmt: skip
    parser.add_argument("--clip", type=Path, help="keyframe CLIP; default the miniature's")
    parser.add_argument("--seed", type=int, default=0, help="which scenes")


@command_line(CacheError)
def run_data(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-data`."""
    from ...host.media.embedder import load_embedder
    from ...host.miniature_clip import load_miniature_clip
    from .world import WorldModels, encode_world

    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    embedder = load_embedder(chosen.clip or weights / CLIP_FILE)
    device = prepare_device()
    clip = load_miniature_clip(str(weights / FILES["text"]))
    models = WorldModels(vae.to(device).eval(), clip, embedder, World(device))
    with torch.inference_mode():
        part, parts = chosen.part
        encode_world(models, chosen.scenes, chosen.folder, seed=chosen.seed, part=part, parts=parts)
    print(f"{chosen.scenes} scenes in {chosen.folder}.")


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-lora`'s. What is left out is the recipe's for real models, and lighter for the miniature."""
    parser.add_argument("--data", type=Path, required=True, help="a folder of encoded scenes")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve, samples, LoRA (resumed)")
    add_model_arguments(parser, "text-to-video Wan")
    parser.add_argument("--time-mode", choices=get_args(TimeMode), help="noise level that cache tokens are told: the "
                        "target's (shared), their own or none; default own, real bases shared")  # fmt: skip
    add_arguments(parser, PAPER, MINIATURE)
    add_auxiliary_arguments(parser)
    parser.add_argument("--start-from", type=Path, help="a finished LoRA of the same layers and rank to train on")
    add_arguments(parser, Curriculum(), Curriculum())
    parser.add_argument("--no-cache-noise", action="store_true", help="clean caches: the ablation, not for use")


@command_line(CacheError)
def run_lora(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-lora`. weights: where the miniature's files are."""
    import comfy.sd
    import comfy.utils

    path, vae, auxiliary = chosen.model or weights / FILES["dit"], None, None
    if chosen.model is None:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights / FILES["vae"])), dtype=torch.float32)
        device = comfy.model_management.get_torch_device()
        auxiliary = open_auxiliary_losses(weights, chosen.latent_loss, chosen.pixel_loss, device=device)
    print(train_scenes(
        load_base(path, chosen.base_dtype), chosen.data, settings_of(chosen), chosen.folder, base=path.stem,
        vae=vae, start_from=chosen.start_from, auxiliary=auxiliary,
    ))  # fmt: skip


def settings_of(chosen: argparse.Namespace) -> WeaverSettings:
    """The settings of the options."""
    settings = chosen_settings(chosen, PAPER if chosen.model else MINIATURE)
    both = chosen_settings(chosen, Curriculum())
    if chosen.no_cache_noise:
        both = replace(both, shot_sigma=(0.0, 0.0), temporal_sigma=(0.0, 0.0), clean=1.0)
    profile = LayoutProfile(time_mode=chosen.time_mode or settings.profile.time_mode)
    return replace(settings, profile=profile, first=replace(both, modes=TEMPORAL_ONLY), second=both)


COMMANDS = {
    "weaver-clip": Command("the small world's CLIP, from scratch", add_clip_arguments, run_clip),
    "weaver-data": Command("encoded scenes of the small world", add_data_arguments, run_data),
    "weaver-scenes": Command("such scenes from own films: cuts, captions, encoding", add_scene_arguments, run_scenes),
    "weaver-lora": Command(
        "a LoRA that remembers earlier shots and frames (FilmWeaver)", add_lora_arguments, run_lora, shared=True
    ),
    "weaver-judge": Command("what the two caches do for stories", add_evaluation_arguments, run_evaluation),
}
