"""``python -m longreel.training``: ``miniature`` trains the small world's models from scratch, ``evaluate`` judges
them; ``cast-data`` and ``cast-lora`` teach a model to film a cast given in the first frame, ``cast-judge``
judges that; ``memory-lora`` teaches the miniature to use its memory after a cut, ``memory-judge`` judges memories;
``weaver-clip``, ``weaver-data``, ``weaver-scenes`` and ``weaver-lora`` teach a model to remember the shots before,
``weaver-judge`` judges that. ``accelerate launch -m longreel.training cast-lora ...`` shares a run between GPUs and
machines.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from . import cast_command, cast_judge, memory_judge, memory_lora, scene_command, weaver_command, weaver_judge
from .miniature import MiniatureRecipe, start_comfyui, train_miniature
from .processes import processes

SHARED = ("cast-lora",)
"""Recipes that many processes can share."""
PACK = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the command line and run the recipe it names."""
    parser = argparse.ArgumentParser(prog="python -m longreel.training", description=__doc__)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    small = recipes.add_parser("miniature", help="VAE, DiT, text encoder and probe of the small world, from scratch")
    small.add_argument("--folder", type=Path, default=Path("miniature-training"), help="checkpoints and logs (resumed)")
    small.add_argument(
        "--weights", type=Path, default=PACK / "miniature" / "weights", help="where the finished files go"
    )
    small.add_argument(
        "--curves", type=Path, default=PACK / "docs" / "images" / "miniature-loss.png", help="loss curves"
    )
    small.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    small.add_argument("--effort", type=float, default=1.0, help="scales the number of steps; 1 is the full recipe")
    small.add_argument("--start-from", type=Path, default=None, help="finished weights to train on instead of nothing")
    judge = recipes.add_parser(
        "evaluate", help="probe readings of films of held-out prompts and of the VAE's reconstructions"
    )
    judge.add_argument("--weights", type=Path, default=PACK / "miniature" / "weights", help="the files to judge")
    judge.add_argument("--prompts", type=int, default=200, help="films of 5 s to make")
    judge.add_argument("--clips", type=int, default=40, help="clips of 10 s to reconstruct")
    judge.add_argument("--steps", type=int, nargs="+", default=[4, 16], help="denoising steps of the causal rollout")
    judge.add_argument("--bidirectional", action="store_true", help="also film with core's sampler, all frames at once")
    judge.add_argument("--strips", type=Path, default=None, help="folder for strips of frames")
    judge.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    cast_command.add_data_arguments(recipes.add_parser("cast-data", help="clips with a cast in the first frame (FFGo)"))
    cast_command.add_lora_arguments(recipes.add_parser("cast-lora", help="a LoRA that films a cast, from such clips"))
    cast_judge.add_judge_arguments(recipes.add_parser("cast-judge", help="what such a LoRA does for the miniature"))
    weaver_command.add_clip_arguments(recipes.add_parser("weaver-clip", help="the small world's CLIP, from scratch"))
    scene_command.add_scene_arguments(
        recipes.add_parser("weaver-scenes", help="such scenes from own films: cuts, captions, encoding (FilmWeaver)")
    )
    weaver_command.add_data_arguments(recipes.add_parser("weaver-data", help="encoded scenes of the small world"))
    weaver_command.add_lora_arguments(
        recipes.add_parser("weaver-lora", help="a LoRA that remembers earlier shots and frames (FilmWeaver)")
    )
    weaver_judge.add_judge_arguments(recipes.add_parser("weaver-judge", help="what the two caches do for stories"))
    memory_lora.add_lora_arguments(recipes.add_parser("memory-lora", help="the miniature learns to use its memory"))
    memory_judge.add_judge_arguments(recipes.add_parser("memory-judge", help="what window, sink and bank are worth"))
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.recipe not in SHARED and processes().num_processes > 1:
        raise SystemExit(f"{chosen.recipe} is the work of one process: start it without a launcher.")
    if chosen.recipe == "miniature":
        recipe = scaled(MiniatureRecipe(), chosen.effort)
        train_miniature(recipe, chosen.folder, chosen.weights, chosen.curves, start_from=chosen.start_from)
    elif chosen.recipe == "cast-data":
        cast_command.run_data(chosen)
    elif chosen.recipe == "cast-lora":
        cast_command.run_lora(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "cast-judge":
        cast_judge.run_judge(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "weaver-clip":
        weaver_command.run_clip(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "weaver-data":
        weaver_command.run_data(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "weaver-scenes":
        scene_command.run_scenes(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "weaver-judge":
        weaver_judge.run_judge(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "weaver-lora":
        weaver_command.run_lora(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "memory-lora":
        memory_lora.run_lora(chosen, PACK / "miniature" / "weights")
    elif chosen.recipe == "memory-judge":
        memory_judge.run_judge(chosen, PACK / "miniature" / "weights")
    else:
        _evaluate(chosen)


def _evaluate(chosen: argparse.Namespace) -> None:
    start_comfyui()
    from . import evaluate

    models = evaluate.load(chosen.weights)

    def strip(name: str) -> Path | None:
        return chosen.strips / name if chosen.strips else None

    if chosen.clips:
        table = evaluate.judge_vae(models, chosen.clips, strip=strip("miniature-vae.png"))
        evaluate.print_table(f"Reconstructions of {chosen.clips} held-out clips of 10 s", table)
    ways = [(f"causal, {steps} steps", steps, True) for steps in chosen.steps]
    if chosen.bidirectional:
        ways.append(("all frames at once, 20 steps", 20, False))
    if chosen.prompts:
        rows = {}
        for way, steps, causal in ways:
            picture = strip(f"miniature-{'causal' if causal else 'whole'}-{steps}.png")
            rows[way] = evaluate.judge_prompts(models, chosen.prompts, steps=steps, causal=causal, strip=picture)
        evaluate.print_table(f"Films of 5 s from {chosen.prompts} held-out prompts", rows)


def scaled(recipe: MiniatureRecipe, effort: float) -> MiniatureRecipe:
    """The same recipe with ``effort`` times the steps."""

    def times(steps: int) -> int:
        return max(round(steps * effort), 1)

    vae = replace(recipe.vae, image_steps=times(recipe.vae.image_steps), clip_steps=times(recipe.vae.clip_steps))
    return replace(
        recipe,
        probe=replace(recipe.probe, steps=times(recipe.probe.steps)),
        vae=vae,
        shards=times(recipe.shards),
        dit=replace(recipe.dit, steps=times(recipe.dit.steps)),
    )


if __name__ == "__main__":
    main()
