"""The command `weaver-scenes`: own films to scenes that `weaver-lora` learns from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ....film.dual_cache import CacheError
from ...core.command_line import command_line
from ...core.settings import add_arguments, chosen_settings
from ...miniature.clip import CLIP_FILE
from ...miniature.export import FILES
from .build import MINIATURE, PAPER, STAGES, SceneBuilder, draw_scenes
from .encode import SceneModels
from .films import SceneDataError
from .world import write_world_films


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-scenes`'s. What is left out is for Wan 2.1, and for the miniature without --model's parts."""
    parser.add_argument("--films", type=Path, required=True, help="folder of videos; cuts.json, people.json and "
                        "captions.json may lie there too")  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True, help="the dataset; what is there already is kept")
    parser.add_argument("--world", type=int, metavar="N", help="first write N films of the small world into --films")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--again", choices=STAGES, nargs="+", default=[], help="stages to run anew, whatever is kept")
    parser.add_argument("--keyframe-clip", type=Path, help="open_clip weights; default the miniature's")
    parser.add_argument("--text", type=Path, help="text encoder of the video model; default the miniature's")
    parser.add_argument("--vae", type=Path, help="VAE of the video model; default the miniature's")
    parser.add_argument("--writer", type=Path, nargs="+", help="vision-language model, as core's CLIP loaders read it")
    add_arguments(parser, PAPER, MINIATURE)
    parser.add_argument("--seed", type=int, default=0, help="small world: which films")


@command_line(SceneDataError, CacheError)
def run_scenes(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-scenes`. weights: where the miniature's files are."""
    settings = chosen_settings(chosen, PAPER if chosen.vae else MINIATURE)
    if chosen.world:
        write_world_films(chosen.world, chosen.films, seed=chosen.seed)
    builder = SceneBuilder(chosen.films, chosen.folder, settings, _models(chosen, weights), again=chosen.again)
    report = builder.build(chosen.until)
    print("\n".join(report.lines))
    if report.scenes:
        sheet = chosen.folder / "contact_sheet.png"
        draw_scenes(report, sheet)
        print(f"Look at {sheet} before you train: weaver-lora --data {chosen.folder / 'encoded'}")


def _models(chosen: argparse.Namespace, weights: Path) -> SceneModels:
    """The models, by core's loaders."""
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils

    from ....host.media.embedder import load_embedder
    from ....host.miniature_clip import load_miniature_clip

    vae: Any = comfy.sd.VAE(
        sd=comfy.utils.load_torch_file(str(chosen.vae or weights / FILES["vae"])),
        dtype=None if torch.cuda.is_available() else torch.float32,
    )
    if chosen.text is None:
        clip: Any = load_miniature_clip(str(weights / FILES["text"]))
    else:
        clip = comfy.sd.load_clip([str(chosen.text)], clip_type=comfy.sd.CLIPType.WAN)
    writer = None if chosen.writer is None else comfy.sd.load_clip([str(path) for path in chosen.writer])
    wide = vae.latent_channels == comfy.latent_formats.Wan22.latent_channels
    latent_format = comfy.latent_formats.Wan22() if wide else comfy.latent_formats.Wan21()
    embedder = load_embedder(chosen.keyframe_clip or weights / CLIP_FILE)
    return SceneModels(embedder, clip, vae, latent_format, writer)
