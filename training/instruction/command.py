"""Four commands: `instruction` trains an AID adapter from a folder of clips and sentences, `instruction-measure`
compares two folders of videos, `miniature-svd` trains a small base and its adapter on the small world, and
`miniature-svd-evaluate` judges them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...film.instruction import DEFAULT_STATES, InstructionError, States
from ..core.command_line import Command, command_line
from ..core.run import on_its_device
from ..core.settings import add_arguments, chosen_settings
from .data import InstructionDataError, InstructionDataset, architecture_of, encode_clips, encoders_of, list_clips
from .evaluate import compare_folders
from .follow import ROWS, evaluate_files
from .miniature import SmallRecipe, train_small
from .train import MINIATURE, PAPER, train_adapter


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """`instruction`'s."""
    parser.add_argument("--clips", type=Path, required=True, help="videos, each with a text file of the same name: the "
                        "instruction in its first line, its states, if known, in further ones")  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True, help="encoded clips, checkpoints, curves and the adapter "
                        "(resumed)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, required=True, help="svd.safetensors or svd_xt.safetensors")
    parser.add_argument("--text", type=Path, required=True, help="OpenCLIP ViT-H, the text encoder of SD 2.1")
    parser.add_argument("--planner", type=Path, help="vision-language model that plans the states of clips without any")
    parser.add_argument("--frames", type=int, default=16, help="of a clip: default 16")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 256), help="default 256 256")
    parser.add_argument("--states", type=int, default=DEFAULT_STATES, help=f"default {DEFAULT_STATES}")
    parser.add_argument("--mask-channel", action="store_true", help="tell the model which frames are known")
    parser.add_argument("--fill", choices=("repeat", "grey", "zero"), default="repeat", help="unknown frames' rows")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of clips to judge by: default 0.1")
    add_arguments(parser, PAPER, MINIATURE)


@command_line(InstructionDataError, InstructionError)
def run_training_command(chosen: argparse.Namespace) -> None:
    """`instruction`."""
    import comfy.sd

    settings = chosen_settings(chosen, PAPER)
    model, _, vae, vision = comfy.sd.load_checkpoint_guess_config(
        str(chosen.checkpoint), output_clip=False, output_clipvision=True
    )[:4]
    encoders = encoders_of(model, comfy.sd.load_clip([str(chosen.text)]), vision, vae)
    architecture = architecture_of(
        model,
        encoders,
        num_frames=chosen.frames,
        num_states=chosen.states,
        context_mode=settings.context_mode,
        cross_rank=settings.cross_rank,
        ratio=settings.ratio,
        mask_channel=chosen.mask_channel,
        k_max=settings.k_max,
        width=chosen.size[0],
        height=chosen.size[1],
        fill=chosen.fill,
    )
    clips = list_clips(chosen.clips, architecture, _planner(chosen.planner, chosen.states))
    examples = encode_clips(clips, architecture, encoders, chosen.folder / "examples")
    learned, judged = InstructionDataset(architecture, examples).split(chosen.held_out)
    print(f"{len(learned)} clips to learn from, {len(judged)} held out.")
    made = train_adapter(on_its_device(model), architecture, learned, settings, chosen.folder, held_out=judged)
    print(f"{made}: put it into ComfyUI's models/aid.")


def _planner(path: Path | None, count: int) -> Any:
    if path is None:
        return None
    import comfy.sd

    from ...host.media.plan_states import StatePlanner

    planner = StatePlanner(comfy.sd.load_clip([str(path)]), count)

    def plan(picture: torch.Tensor, instruction: str) -> States:
        return planner.plan(picture, instruction).states

    return plan


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """`instruction-measure`'s."""
    parser.add_argument("--real", type=Path, required=True, help="folder of true videos")
    parser.add_argument("--made", type=Path, required=True, help="folder of made ones; same names are pairs")
    parser.add_argument("--swapped", type=Path, help="folder of the made ones, filmed with another instruction: how "
                        "much the words change")  # fmt: skip
    parser.add_argument("--i3d", type=Path, help="i3d_torchscript.pt; without it no FVD and KVD")
    parser.add_argument("--frames", type=int, default=16, help="of each video: default 16")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 256), help="default 256 256")


@command_line(InstructionDataError)
def run_measure(chosen: argparse.Namespace) -> None:
    """`instruction-measure`."""
    print(json.dumps(compare_folders(chosen.real, chosen.made, frames=chosen.frames, size=tuple(chosen.size),
                                     i3d=chosen.i3d, swapped=chosen.swapped), indent=1))  # fmt: skip


def add_small_arguments(parser: argparse.ArgumentParser) -> None:
    """`miniature-svd`'s."""
    usual = SmallRecipe()
    seconds = (usual.autoencoder.seconds, usual.base.seconds, usual.adapter.seconds)
    parser.add_argument("--folder", type=Path, default=Path("miniature-svd"), help="checkpoints and logs (resumed)")
    parser.add_argument("--weights", type=Path, required=True, help="folder under which the finished files go")
    told = " ".join(f"{one:g}" for one in seconds)
    parser.add_argument("--seconds", type=float, nargs=3, metavar=("VAE", "BASE", "ADAPTER"), default=seconds,
                        help=f"of each stage, on one core of a CPU: default {told}")  # fmt: skip
    parser.add_argument("--pictures", type=int, default=usual.pictures, help="first frames, six clips of each: default "
                        f"{usual.pictures}")  # fmt: skip
    parser.add_argument("--taught", type=int, default=usual.taught, help="of them, those the adapter learns with: "
                        f"default {usual.taught}")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another seed is another run")


@command_line(InstructionDataError, InstructionError)
def run_small(chosen: argparse.Namespace) -> None:
    """`miniature-svd`."""
    usual = SmallRecipe()
    vae, base, adapter = chosen.seconds
    recipe = SmallRecipe(
        chosen.pictures,
        chosen.taught,
        replace(usual.autoencoder, seconds=vae, seed=chosen.seed),
        replace(usual.base, seconds=base, seed=chosen.seed),
        replace(usual.adapter, seconds=adapter, seed=chosen.seed),
        chosen.seed,
    )
    train_small(recipe, chosen.folder, chosen.weights)


def add_small_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """`miniature-svd-evaluate`'s."""
    parser.add_argument("--weights", type=Path, required=True, help="folder of `miniature-svd`'s files")
    parser.add_argument("--rows", nargs="*", choices=tuple(ROWS), default=list(ROWS), help="of the table: default all")
    parser.add_argument("--count", type=int, default=100, help="held-out pictures, two films each: default 100")
    parser.add_argument("--steps", type=int, default=12, help="of sampling: default 12")
    parser.add_argument("--text", type=float, default=3.0, help="strength of guidance towards the words: default 3")
    parser.add_argument("--sheet", type=Path, help="a picture of some films: true ones, then those made, at 4 frames a "
                        "second")  # fmt: skip


@command_line(InstructionDataError, InstructionError)
def run_small_evaluation(chosen: argparse.Namespace) -> None:
    """`miniature-svd-evaluate`."""
    evaluate_files(chosen.weights, chosen.rows, chosen.count, steps=chosen.steps, text=chosen.text, sheet=chosen.sheet)


COMMANDS = {
    "instruction": Command(
        "train an AID adapter on Stable Video Diffusion from clips and sentences",
        add_training_arguments,
        lambda chosen, _: run_training_command(chosen),
        shared=True,
    ),
    "instruction-measure": Command(
        "compare folders of videos: FVD, KVD, PSNR, SSIM, what another instruction changes",
        add_measure_arguments,
        lambda chosen, _: run_measure(chosen),
    ),
    "miniature-svd": Command(
        "train the miniature's Stable Video Diffusion and its AID adapter from nothing",
        add_small_arguments,
        lambda chosen, _: run_small(chosen),
    ),
    "miniature-svd-evaluate": Command(
        "judge the miniature's Stable Video Diffusion: does what happens follow the sentence?",
        add_small_evaluation_arguments,
        lambda chosen, _: run_small_evaluation(chosen),
    ),
}
