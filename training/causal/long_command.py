"""Two commands: `causal` tunes a causal model on its own long films, `evaluate --long` says whether takes hold."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.loop import save_whole
from ..miniature.evaluate import print_table
from ..miniature.export import read_dit, read_probe, read_sizes, read_vae
from . import long_evaluate as evaluate

KINDS = ("rendered", "vae", "take", "changes", "cuts")


def add_long_arguments(parser: argparse.ArgumentParser) -> None:
    """`evaluate --long`'s."""
    parser.add_argument("--long", nargs="*", choices=KINDS, metavar="KIND",
                        help="read long films every five seconds: of rendered, vae, take, changes, cuts; "
                        "all by default")  # fmt: skip
    parser.add_argument("--takes", type=int, default=50, help="with --long: films of each kind")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --long: of each film")
    parser.add_argument("--changes", type=int, default=4, help="with --long: changes of prompt in a take")
    parser.add_argument("--together", type=int, default=0, help="with --long: films made at once; 0: 8, on a GPU 64")
    parser.add_argument("--lora", type=Path, help="with --long: an adapter of the miniature to judge")
    parser.add_argument("--kept", type=Path, help="with --long: keeps what has been read there, and goes on from it")
    parser.add_argument("--sheets", type=Path, help="with --long: folder for pictures, two frames a second")
    parser.add_argument("--judge-seed", type=int, default=0, help="with --long: other takes and other noise")


def judge_long(chosen: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """`evaluate --long`: tables of what long films show. weights: of the model that films; returns the figures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, vae, judge = open_models(weights, chosen.lora, device)
    figures: dict[str, Any] = {}
    for kind in chosen.long or KINDS:
        started = time.monotonic()
        read = _judged(kind, chosen, model, vae, judge)
        figures[kind] = {"ends": evaluate.first_and_last(read), "windows": evaluate.by_window(read)}
        told = f"{chosen.takes} films of {chosen.seconds:.0f} s, {kind}, seed {chosen.judge_seed}"
        print_table(f"{told}: {time.monotonic() - started:.0f} s", figures[kind]["ends"])
        print_table(f"{told}, every 5 s", figures[kind]["windows"])
    if chosen.kept:
        (chosen.kept / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def open_models(weights: Path, lora: Path | None, device: torch.device) -> tuple[Any, Any, evaluate.Judge]:
    """The miniature that films (with an adapter merged, if there is one), its VAE and the judge, on `device`."""
    from ...miniature.counter import Counter
    from ...miniature.probe import Probe
    from ..miniature.counter import read_counter
    from ..miniature.dit import Miniature
    from ..miniature.vae import VaeRecipe, build_vae

    model = Miniature(read_sizes(weights))
    read_dit(model, weights)
    if lora is not None:
        model.dit = _merged(model.dit, lora)
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    probe, counter = Probe(), Counter()
    read_probe(probe, weights)
    read_counter(counter, weights)
    for part in (model, vae, probe, counter):
        part.to(device).eval().requires_grad_(False)
    return model, vae, evaluate.Judge(probe, counter)


def _merged(dit: Any, path: Path) -> Any:
    from safetensors.torch import load_file

    from ..core.lora import adapt, merge, read_lora

    state = load_file(path)
    names = [key.removeprefix("diffusion_model.").removesuffix(".alpha") for key in state if key.endswith(".alpha")]
    first = names[0]
    rank = state[f"diffusion_model.{first}.lora_down.weight"].shape[0]
    _, adapter = adapt(dit, names, rank, alpha=float(state[f"diffusion_model.{first}.alpha"]))
    read_lora(adapter, path)
    return merge(dit, adapter)


def _judged(
    kind: str, chosen: argparse.Namespace, model: Any, vae: Any, judge: evaluate.Judge
) -> Sequence[Sequence[dict[str, float]]]:
    kept = chosen.kept / f"{kind}-{chosen.seconds:.0f}-{chosen.judge_seed}.pt" if chosen.kept else None
    read: list[list[dict[str, float]]] = torch.load(kept) if kept is not None and kept.exists() else []
    seed = chosen.judge_seed
    if kind == "cuts":
        films = evaluate.draw_cut_films(chosen.takes, chosen.seconds, seed)
    else:
        films = evaluate.draw_takes(chosen.takes, chosen.seconds, 0 if kind == "take" else chosen.changes, seed)
    device = next(vae.parameters()).device
    together = chosen.together or (64 if device.type == "cuda" else 8)
    coming = range(len(read), len(films))
    made = evaluate.film_all(
        model, [films[i] for i in coming], [seed * 100_000 + i for i in coming], together=together
    )  # fmt: skip
    for index in coming:
        film = films[index]
        if kind in ("rendered", "vae"):
            frames = evaluate.render_film(film)
            frames = evaluate.through_vae(vae, film, frames) if kind == "vae" else frames
        else:
            frames = evaluate.decode_film(vae, next(made).to(device), film.starts)
        read.append(judge.read(film, frames))
        if chosen.sheets and index < 8:
            evaluate.sheet(frames, chosen.sheets / f"{kind}-{index}.png")
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_whole(kept, read)
        if (index + 1) % 5 == 0:
            row = evaluate.first_and_last(read)["all"]
            print(f"{kind} {index + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    return read
