"""Three commands: `cast-data` builds a first-frame dataset, `cast-lora` trains a LoRA from one,
`cast-judge` says what it does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...film.pixels import PixelError
from ..core.auxiliary import AuxiliaryLoss
from ..core.command_line import Command, add_model_arguments, command_line, load_base
from ..core.lora import LoraError
from ..core.settings import add_arguments, chosen_settings
from ..miniature.auxiliary import add_auxiliary_arguments, open_auxiliary_losses
from ..miniature.export import FILES
from . import dataset
from .dataset import CastDataError, build_dataset, load_dataset
from .distill import casts_of, recombine
from .encode import RECOLOURED, Encoders, Transition, variants
from .evaluate import add_evaluation_arguments, run_evaluation
from .run import train_cast
from .sources import list_clips
from .train import MINIATURE, PAPER
from .world import SMALL_WORLD, CastScene, ordinary_prompts, world_clips

_PRIOR_PROMPTS = 512


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`cast-data`'s."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="JSON list of own clips (see training/first_frame/sources.py)")
    source.add_argument("--world", type=int, metavar="N", help="N clips of the miniature's small world")
    parser.add_argument("--folder", type=Path, required=True, help="the dataset; what is there already is kept")
    add_arguments(parser, dataset.PAPER, SMALL_WORLD)
    parser.add_argument("--seed", type=int, default=0, help="small world: which clips")
    parser.add_argument("--held-out", action="store_true", help="small world: combinations that training never shows")


@command_line(CastDataError, PixelError)
def run_data(chosen: argparse.Namespace) -> None:
    """`cast-data`."""
    settings = chosen_settings(chosen, dataset.PAPER if chosen.clips else SMALL_WORLD)
    if chosen.clips:
        sources = list_clips(chosen.clips, settings)
    else:
        sources = world_clips(chosen.world, settings, seed=chosen.seed, held_out=chosen.held_out)
    items = build_dataset(sources, settings, chosen.folder)
    print(f"{len(items)} clips in {chosen.folder}; look at {chosen.folder / 'contact_sheet.png'} before you train.")


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """`cast-lora`'s. What is left out is FFGo's for real models, and lighter for the miniature."""
    parser.add_argument("--data", type=Path, required=True, help="a dataset made by cast-data, or a published one")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve, samples and the LoRA (resumed)")
    add_model_arguments(parser, "diffusion model")
    parser.add_argument("--text", type=Path, help="text encoder of --model")
    parser.add_argument("--vae", type=Path, help="VAE of --model")
    add_arguments(parser, PAPER, MINIATURE)
    parser.add_argument("--start-from", type=Path, help="a finished LoRA of the same layers and rank to train on")
    add_auxiliary_arguments(parser)
    parser.add_argument("--frames", type=int, help="of each clip: default 21 as published, miniature 81")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="default the canvases' own")
    parser.add_argument("--cut", choices=("frames", "latents"), help="how the canvas becomes the clip: within a latent "
                        "frame as published (default), or between two (miniature)")  # fmt: skip
    parser.add_argument("--recoloured", type=int, nargs="?", const=RECOLOURED, default=0, metavar="N", help="learn "
                        "clips N times more, their cast in other colours, where the dataset says where it is, else "
                        "those whose place is pictured: for captions that name no colours; default of N: "
                        f"{RECOLOURED}")  # fmt: skip
    parser.add_argument("--recombine", "--recast", type=int, default=0, metavar="N", help="miniature only: the base "
                        "films N scenes of its clips' casts put together anew, told how they look, to be learned as "
                        "clips are")  # fmt: skip
    parser.add_argument("--mirrored", action="store_true", help="learn clips whose place is only named left to right, "
                        "too, captions exchanged")  # fmt: skip


@command_line(CastDataError, PixelError)
def run_lora(chosen: argparse.Namespace, weights: Path) -> None:
    """`cast-lora`. weights: where the miniature's files are."""
    small = chosen.model is None
    if not small and not (chosen.text and chosen.vae):
        raise LoraError("Your own --model needs its --text encoder and its --vae too.")
    settings = chosen_settings(chosen, MINIATURE if small else PAPER)
    if not small:
        settings = replace(settings, prior_weight=0.0)
    elif chosen.micro_batch is None:
        settings = replace(settings, micro_batch=settings.batch)
    items = load_dataset(chosen.data)
    casts: Sequence[CastScene] = ()
    if chosen.recombine:
        if not small or chosen.cut == "frames":
            raise LoraError("Casts are put together anew for the miniature, cut between latents: "
                            "leave --recombine out.")  # fmt: skip
        casts = recombine(casts_of(items), chosen.recombine)
    cut: Transition = chosen.cut or ("latents" if small else "frames")
    made = train_cast(
        items, _open(chosen, weights), settings, chosen.folder, chosen.frames or (81 if small else 21),
        size=tuple(chosen.size) if chosen.size else None, cut=cut,
        shown=variants(chosen.recoloured, chosen.mirrored),
        auxiliary=_auxiliary(chosen, weights) if small else None,
        prior_prompts=ordinary_prompts(_PRIOR_PROMPTS) if settings.prior_weight else (), recombined=casts,
        start_from=chosen.start_from,
    )  # fmt: skip
    print(made)


def _auxiliary(chosen: argparse.Namespace, weights: Path) -> AuxiliaryLoss | None:
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    return open_auxiliary_losses(weights, chosen.latent_loss, chosen.pixel_loss, device=device)


def _open(chosen: argparse.Namespace, weights: Path) -> Encoders:
    """The models, by core's loaders."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    from ...host.miniature_clip import load_miniature_clip

    path = chosen.model or weights / FILES["dit"]
    model = load_base(path, chosen.base_dtype)
    if chosen.model is None:
        clip = load_miniature_clip(str(weights / FILES["text"]))
    else:
        clip = comfy.sd.load_clip([str(chosen.text)], clip_type=comfy.sd.CLIPType.WAN)
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    vae_path = chosen.vae or weights / FILES["vae"]
    dtype = torch.float32 if on_cpu or chosen.model is None else None
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae_path)), dtype=dtype)
    return Encoders(model, clip, vae, path.stem)


COMMANDS = {
    "cast-data": Command(
        "clips with a cast in the first frame (FFGo)", add_data_arguments, lambda chosen, _: run_data(chosen)
    ),
    "cast-lora": Command("a LoRA that films a cast, from such clips", add_lora_arguments, run_lora, shared=True),
    "cast-judge": Command("what such a LoRA does for the miniature", add_evaluation_arguments, run_evaluation),
}
