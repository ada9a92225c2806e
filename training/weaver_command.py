"""Commands: ``weaver-clip`` trains the miniature's CLIP, ``weaver-data`` encodes scenes of its world, ``weaver-lora``
trains a cache-guided LoRA from such scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .clip import CLIP_FOLDER, ClipRecipe, train_clip
from .export import read_vae
from .miniature import start_comfyui
from .vae import VaeRecipe, build_vae


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """``weaver-clip``'s."""
    usual = ClipRecipe()
    parser.add_argument("--folder", type=Path, default=Path("clip-training"), help="checkpoint and log (resumed)")
    parser.add_argument("--weights", type=Path, help="where the finished model goes; default the miniature's weights")
    parser.add_argument("--scenes", type=int, default=usual.scenes, help="moments of the small world to learn from")
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another model")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_clip(chosen: argparse.Namespace, weights: Path) -> None:
    """``weaver-clip``. ``weights``: where the miniature's files are."""
    start_comfyui()
    recipe = ClipRecipe(scenes=chosen.scenes, steps=chosen.steps, seed=chosen.seed)
    print(train_clip(recipe, chosen.folder, chosen.weights or weights))


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """``weaver-data``'s."""
    parser.add_argument("--folder", type=Path, required=True, help="encoded scenes; what is there already is kept")
    parser.add_argument("--scenes", type=int, default=200, help="scenes of three shots")
    parser.add_argument("--clip", type=Path, help="keyframe CLIP; default the miniature's")
    parser.add_argument("--seed", type=int, default=0, help="which scenes")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_data(chosen: argparse.Namespace, weights: Path) -> None:
    """``weaver-data``."""
    start_comfyui()
    from ..host.embedder import load_embedder
    from ..host.miniature_clip import load_miniature_clip
    from .export import FILES
    from .weaver_world import WorldModels, encode_world

    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    embedder = load_embedder(chosen.clip or weights / CLIP_FOLDER / "open_clip_model.safetensors")
    models = WorldModels(vae.eval(), load_miniature_clip(str(weights / FILES["text"])), embedder)
    with torch.inference_mode():
        encode_world(models, chosen.scenes, chosen.folder, seed=chosen.seed)
    print(f"{chosen.scenes} scenes in {chosen.folder}.")
