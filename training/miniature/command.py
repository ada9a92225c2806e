"""Two commands: `miniature` trains the small world's models from scratch, `evaluate` judges them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from .pipeline import MiniatureRecipe, start_comfyui, train_miniature

CURVES = Path(__file__).resolve().parents[2] / "docs" / "images" / "miniature-loss.png"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """`miniature`'s."""
    parser.add_argument(
        "--folder", type=Path, default=Path("miniature-training"), help="checkpoints and logs (resumed)"
    )
    parser.add_argument("--weights", type=Path, help="where the finished files go; default the pack's own")
    parser.add_argument("--curves", type=Path, default=CURVES, help="loss curves")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--effort", type=float, default=1.0, help="scales the number of steps; 1 is the full recipe")
    parser.add_argument("--start-from", type=Path, default=None, help="finished weights to train on instead of nothing")
    parser.add_argument("--keep", nargs="*", choices=("probe", "vae", "reader", "eye", "sight", "decoder"),
                        default=[], help="taken from there as they are")  # fmt: skip
    parser.add_argument("--rate", type=float, default=1.0, help="scales the DiT's learning rates: what is trained on "
                        "wants less")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another seed is other stories and another run")


def run_training(chosen: argparse.Namespace, weights: Path) -> None:
    """`miniature`. weights: where the finished files go, unless named."""
    recipe = scaled(MiniatureRecipe(seed=chosen.seed), chosen.effort)
    dit = recipe.dit
    dit = replace(dit, rate=dit.rate * chosen.rate, muon_rate=dit.muon_rate * chosen.rate, seed=chosen.seed)
    sight = replace(recipe.sight, seed=chosen.seed)
    train_miniature(
        replace(recipe, dit=dit, sight=sight), chosen.folder, chosen.weights or weights, chosen.curves,
        start_from=chosen.start_from, keep=chosen.keep,
    )  # fmt: skip


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """`evaluate`'s."""
    parser.add_argument("--weights", type=Path, help="the files to judge; default the miniature's")
    parser.add_argument("--prompts", type=int, default=200, help="films of 5 s to make")
    parser.add_argument("--openings", type=int, default=0, help="first blocks to make, told by action")
    parser.add_argument("--clips", type=int, default=40, help="clips of 10 s to reconstruct")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16], help="denoising steps of the causal rollout")
    parser.add_argument(
        "--bidirectional", action="store_true", help="also film with core's sampler, all frames at once"
    )
    parser.add_argument("--strips", type=Path, default=None, help="folder for strips of frames")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_judge(chosen: argparse.Namespace, weights: Path) -> None:
    """evaluate: tables of what films and reconstructions show. weights: the miniature's, unless named."""
    start_comfyui()
    from . import evaluate

    models = evaluate.load(chosen.weights or weights)

    def strip(name: str) -> Path | None:
        return chosen.strips / name if chosen.strips else None

    if chosen.clips:
        table = evaluate.evaluate_vae(models, chosen.clips, strip=strip("miniature-vae.png"))
        evaluate.print_table(f"Reconstructions of {chosen.clips} held-out clips of 10 s", table)
    if chosen.openings:
        for way, steps in ((f"{chosen.steps[0]} steps", chosen.steps[0]), ("rendered, through the VAE", None)):
            table = evaluate.evaluate_openings(models, chosen.openings, steps=steps)
            evaluate.print_table(f"First blocks of {chosen.openings} held-out prompts, {way}", table)
    ways = [(f"causal, {steps} steps", steps, True) for steps in chosen.steps]
    if chosen.bidirectional:
        ways.append(("all frames at once, 20 steps", 20, False))
    if chosen.prompts:
        rows = {}
        for way, steps, causal in ways:
            picture = strip(f"miniature-{'causal' if causal else 'whole'}-{steps}.png")
            rows[way] = evaluate.evaluate_prompts(models, chosen.prompts, steps=steps, causal=causal, strip=picture)
        evaluate.print_table(f"Films of 5 s from {chosen.prompts} held-out prompts", rows)


def scaled(recipe: MiniatureRecipe, effort: float) -> MiniatureRecipe:
    """The same recipe with `effort` times the steps."""

    def times(steps: int) -> int:
        return max(round(steps * effort), 1)

    vae = replace(recipe.vae, image_steps=times(recipe.vae.image_steps), clip_steps=times(recipe.vae.clip_steps))
    return replace(
        recipe,
        probe=replace(recipe.probe, clips=times(recipe.probe.clips), steps=times(recipe.probe.steps)),
        vae=vae,
        shards=times(recipe.shards),
        reader=replace(recipe.reader, steps=times(recipe.reader.steps)),
        dit=replace(recipe.dit, steps=times(recipe.dit.steps)),
        sight=replace(recipe.sight, steps=times(recipe.sight.steps)),
        decoder=replace(
            recipe.decoder,
            steps=times(recipe.decoder.steps),
            pool=times(recipe.decoder.pool),
            films=times(recipe.decoder.films),
        ),
    )
