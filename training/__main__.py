"""`python -m longreel.training RECIPE`: the trainers and their judges; `--help` lists them.

`accelerate launch -m longreel.training cast-lora ...` shares a run between GPUs and machines.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .causal import evaluate as memory_judge
from .causal import long_command
from .causal import train as memory_lora
from .core.processes import processes
from .dual_cache import command as weaver_command
from .dual_cache import evaluate as weaver_judge
from .dual_cache.scenes import command as scene_command
from .first_frame import command as cast_command
from .first_frame import evaluate as cast_judge
from .miniature import command as miniature_command
from .miniature import counter

WEIGHTS = Path(__file__).resolve().parent.parent / "miniature" / "weights"


class Command(NamedTuple):
    """A recipe on the command line. shared: many processes can work on it together."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Path], None]
    shared: bool = False


COMMANDS = {
    "miniature": Command(
        "VAE, DiT, text encoder and probe of the small world, from scratch",
        miniature_command.add_training_arguments,
        miniature_command.run_training,
    ),
    "evaluate": Command(
        "probe readings of films of held-out prompts and of the VAE's reconstructions",
        miniature_command.add_judge_arguments,
        miniature_command.run_judge,
    ),
    "counter": Command(
        "the network that counts characters, for evaluate --long",
        counter.add_counter_arguments,
        counter.run_counter,
    ),
    "causal": Command(
        "a causal model films on from its own frames and learns to hold for minutes",
        long_command.add_tuning_arguments,
        long_command.run_tuning,
        shared=True,
    ),
    "memory-lora": Command(
        "the miniature learns to use its memory (MemFlow)", memory_lora.add_lora_arguments, memory_lora.run_lora
    ),
    "memory-judge": Command(
        "what window, sink and bank are worth", memory_judge.add_judge_arguments, memory_judge.run_judge
    ),
    "weaver-clip": Command(
        "the small world's CLIP, from scratch", weaver_command.add_clip_arguments, weaver_command.run_clip
    ),
    "weaver-data": Command(
        "encoded scenes of the small world", weaver_command.add_data_arguments, weaver_command.run_data
    ),
    "weaver-scenes": Command(
        "such scenes from own films: cuts, captions, encoding",
        scene_command.add_scene_arguments,
        scene_command.run_scenes,
    ),
    "weaver-lora": Command(
        "a LoRA that remembers earlier shots and frames (FilmWeaver)",
        weaver_command.add_lora_arguments,
        weaver_command.run_lora,
        shared=True,
    ),
    "weaver-judge": Command(
        "what the two caches do for stories", weaver_judge.add_judge_arguments, weaver_judge.run_judge
    ),
    "cast-data": Command(
        "clips with a cast in the first frame (FFGo)",
        cast_command.add_data_arguments,
        lambda chosen, _: cast_command.run_data(chosen),
    ),
    "cast-lora": Command(
        "a LoRA that films a cast, from such clips", cast_command.add_lora_arguments, cast_command.run_lora, shared=True
    ),
    "cast-judge": Command(
        "what such a LoRA does for the miniature", cast_judge.add_judge_arguments, cast_judge.run_judge
    ),
}


def main() -> None:
    """Read the command line and run the recipe it names."""
    # Batch systems announce the end of a job with SIGTERM: it saves and stops a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        prog="python -m longreel.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = parser.add_subparsers(dest="recipe", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(recipes.add_parser(name, help=command.help))
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    command = COMMANDS[chosen.recipe]
    if not command.shared and processes().num_processes > 1:
        raise SystemExit(f"{chosen.recipe} is the work of one process: start it without a launcher.")
    command.run(chosen, WEIGHTS)


if __name__ == "__main__":
    main()
