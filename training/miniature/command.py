"""Two commands: `miniature` trains the small world's models from scratch, `evaluate` judges them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..causal.long_command import add_long_arguments, judge_long
from ..core.command_line import Command, start_comfyui
from .counter import add_counter_arguments, run_counter
from .pipeline import MiniatureRecipe, train_miniature

CURVES = Path(__file__).resolve().parents[2] / "docs" / "images" / "miniature-loss.png"


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """`miniature`'s."""
    parser.add_argument(
        "--folder", type=Path, default=Path("miniature-training"), help="checkpoints and logs (resumed)"
    )
    parser.add_argument("--weights", type=Path, help="where the finished files go; default the pack's own")
    parser.add_argument("--curves", type=Path, default=CURVES, help="loss curves")
    parser.add_argument("--effort", type=float, default=1.0, help="scales the number of steps; 1 is the full recipe")
    parser.add_argument("--start-from", type=Path, default=None, help="finished weights to train on instead of nothing")
    parser.add_argument("--keep", nargs="*", choices=("probe", "vae", "reader", "eye", "sight", "causal", "decoder"),
                        default=[], help="taken from there as they are")  # fmt: skip
    parser.add_argument("--rate", type=float, default=1.0, help="scales the DiT's learning rates: what is trained on "
                        "wants less")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another seed is other stories and another run")
    parser.add_argument("--minutes", type=float, default=0, help="a time budget in place of steps: long takes, drawn "
                        "on the device, with long tuning (docs/miniature.md)")  # fmt: skip
    parser.add_argument("--size", type=int, default=64, choices=(64, 128), help="of pictures; with --minutes")
    parser.add_argument("--dim", type=int, default=192, help="width of the DiT, 64 for each head; with --minutes")
    parser.add_argument("--layers", type=int, default=8, help="of the DiT; with --minutes")
    parser.add_argument("--batch", type=int, default=128, help="sequences of a DiT step; with --minutes")
    parser.add_argument("--small", action="store_true", help="with --minutes: a hundredth of the work, for a CPU")


def run_training(chosen: argparse.Namespace, weights: Path) -> None:
    """`miniature`. weights: where the finished files go, unless named."""
    if chosen.minutes:
        _run_within(chosen, chosen.weights or weights)
        return
    recipe = scaled(MiniatureRecipe(seed=chosen.seed), chosen.effort)
    dit = recipe.dit
    dit = replace(dit, rate=dit.rate * chosen.rate, muon_rate=dit.muon_rate * chosen.rate, seed=chosen.seed)
    sight = replace(recipe.sight, seed=chosen.seed)
    train_miniature(
        replace(recipe, dit=dit, sight=sight), chosen.folder, chosen.weights or weights, chosen.curves,
        start_from=chosen.start_from, keep=chosen.keep,
    )  # fmt: skip


def _run_within(chosen: argparse.Namespace, weights: Path) -> None:
    """`miniature --minutes`."""
    start_comfyui()
    from . import budget

    recipe = budget.BudgetRecipe(chosen.minutes, chosen.size, seed=chosen.seed)
    dit = replace(recipe.dit, dim=chosen.dim, ffn_dim=3 * chosen.dim, heads=chosen.dim // 64, layers=chosen.layers)
    training = replace(recipe.training, batch=chosen.batch, seed=chosen.seed)
    vae, parts = recipe.vae, {"probe", "vae", "reader", "eye"}
    if chosen.start_from:
        # a trained network needs less than a new one
        vae = replace(vae, rate=8e-4, muon_rate=1.2e-3)
        training = replace(training, rate=training.rate * chosen.rate, muon_rate=training.muon_rate * chosen.rate)
    recipe = replace(
        recipe, dit=dit, vae=vae, training=training, sight=replace(recipe.sight, batch=chosen.batch),
        takes=replace(recipe.takes, seed=chosen.seed),
    )  # fmt: skip
    keep, skip = parts & set(chosen.keep), set(chosen.keep) - parts
    failed = budget.train_within(
        budget.small(recipe) if chosen.small else recipe, chosen.folder, weights, chosen.curves,
        start_from=chosen.start_from, keep=keep, skip=skip,
    )  # fmt: skip
    if failed:
        raise SystemExit(f"These stages failed and were left out: {', '.join(failed)}; the log says why.")


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
    add_long_arguments(parser)


def run_judge(chosen: argparse.Namespace, weights: Path) -> None:
    """evaluate: tables of what films and reconstructions show. weights: the miniature's, unless named."""
    start_comfyui()
    if chosen.long is not None:
        judge_long(chosen, chosen.weights or weights)
        return
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


COMMANDS = {
    "miniature": Command(
        "VAE, DiT, text encoder and probe of the small world, from scratch", add_training_arguments, run_training
    ),
    "evaluate": Command(
        "probe readings of films of held-out prompts and of the VAE's reconstructions", add_judge_arguments, run_judge
    ),
    "counter": Command("the network that counts characters, for evaluate --long", add_counter_arguments, run_counter),
}
