"""Two commands: `causal` tunes a causal model on its own long films, `evaluate --long` says whether takes hold."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.command_line import command_line
from ..core.loop import save_whole
from ..core.processes import main_first
from ..miniature.evaluate import print_table
from ..miniature.export import read_dit, read_probe, read_sizes, read_vae
from ..miniature.sequences import BLOCK
from . import long_evaluate as evaluate
from .long_data import encode_takes, load_takes
from .long_tuning import CausalRecipe, tune

MINIATURE = CausalRecipe()
WAN = CausalRecipe(
    films=1,
    blocks=80,
    truth=0.0,
    reading=0.0,
    matching=1.0,
    scored=1,
    guidance=3.0,
    replay=0.0,
    rank=128,
    fake_rank=128,
    rate=1e-5,
    farthest=0,
    average=0.99,
)
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
    from ...miniature.batch import World
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
    return model, vae, evaluate.Judge(probe, counter, World(device))


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
            frames = evaluate.render_film(judge.world, film)
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


def add_tuning_arguments(parser: argparse.ArgumentParser) -> None:
    """`causal`'s. What is left out fits the miniature, or with --model a Wan of 1.3 B parameters on one large GPU."""
    usual = CausalRecipe()
    parser.add_argument("--folder", type=Path, required=True, help="takes, checkpoints, curve and result (resumed)")
    parser.add_argument("--model", type=Path, help="a causal Wan text-to-video model; default the miniature's")
    parser.add_argument("--teacher", type=Path, help="bidirectional model of the same kind that scores films; default "
                        "--model itself")  # fmt: skip
    parser.add_argument("--text", type=Path, help="text encoder of --model")
    parser.add_argument("--prompts", type=Path, help="of --model: a take in each line, its prompts parted by ' | '")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(832, 480), help="of --model's films")
    parser.add_argument("--weights", type=Path, help="miniature: files to start from; default the pack's own")
    parser.add_argument("--output", type=Path, help="miniature: where the tuned files go; default in the folder")
    parser.add_argument("--shards", type=int, default=6, help="miniature: of 16 takes of 20 s to learn from")
    for name, told in (("truth", "the true next block"), ("reading", "what a classifier reads in latents"),
                       ("matching", "distribution matching against the base, all frames at once")):  # fmt: skip
        parser.add_argument(f"--{name}", type=float, help=f"weight of {told}; miniature {getattr(usual, name):g}, "
                            f"--model {1 if name == 'matching' else 0}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates, one block of all films each")
    parser.add_argument("--films", type=int, help="at once: miniature 16, --model 1")
    parser.add_argument("--blocks", type=int, help="of 3 latent frames in a film: miniature 27, --model 80 (a minute)")
    parser.add_argument("--accumulate", type=int, default=1, help="blocks of an update")
    parser.add_argument("--levels", type=float, nargs="+", default=list(usual.levels),
                        help="noise levels of the few steps that films are made in")  # fmt: skip
    parser.add_argument("--guidance", type=float, help="of the teacher: miniature 1, --model 3")
    parser.add_argument("--rank", type=int, help="of the LoRA: --model 128; miniature 0, which learns all of the model")
    parser.add_argument("--rate", type=float, help="learning rate: miniature 2e-4, --model 1e-5")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another run")


@command_line(ValueError)
def run_tuning(chosen: argparse.Namespace, weights: Path) -> None:
    """`causal`. weights: where the miniature's files are, unless named."""
    small = chosen.model is None
    preset = MINIATURE if small else WAN
    given = ("truth", "reading", "matching", "films", "blocks", "guidance", "rank", "rate")
    recipe = replace(
        preset, steps=chosen.steps, accumulate=chosen.accumulate, levels=tuple(chosen.levels),
        seed=chosen.seed, **{name: getattr(chosen, name) for name in given if getattr(chosen, name) is not None},
    )  # fmt: skip
    print(_tune_miniature(chosen, recipe, weights) if small else _tune_own(chosen, recipe))


def _tune_miniature(chosen: argparse.Namespace, recipe: CausalRecipe, weights: Path) -> Path:
    from ..miniature.dit import Miniature
    from ..miniature.export import export_dit, read_latent_classifier
    from ..miniature.vae import VaeRecipe, build_vae

    source, output = chosen.weights or weights, chosen.output or chosen.folder / "weights"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, source)
    frames = BLOCK * recipe.blocks
    with main_first():
        encode_takes(vae.to(device).eval(), chosen.shards, frames, chosen.folder / "takes", recipe.seed)
    sizes = read_sizes(source)
    model = Miniature(sizes)
    read_dit(model, source)
    model.to(device)
    reader = read_latent_classifier(source).to(device)
    tune(model, load_takes(chosen.folder / "takes", frames), recipe, chosen.folder, reader=reader)
    return export_dit(model, sizes, output)[0]


def _tune_own(chosen: argparse.Namespace, recipe: CausalRecipe) -> Path:
    import comfy.model_management
    import comfy.sd

    from ..core.lora import LoraError
    from .long_data import prompt_takes
    from .long_wan import tune_wan

    if not (chosen.text and chosen.prompts):
        raise LoraError("Your own --model needs its --text encoder and --prompts too.")
    clip = comfy.sd.load_clip([str(chosen.text)], clip_type=comfy.sd.CLIPType.WAN)

    def encoded(prompt: str) -> torch.Tensor:
        rows: torch.Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
        return rows.cpu()

    with torch.no_grad():
        takes, table = prompt_takes(chosen.prompts, recipe.blocks, encoded, recipe.seed)
        empty = encoded("")
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    options = {"dtype": torch.float32 if on_cpu else torch.bfloat16}
    model = comfy.sd.load_diffusion_model(str(chosen.model), model_options=options, disable_dynamic=True)
    teacher = model
    if chosen.teacher:
        teacher = comfy.sd.load_diffusion_model(str(chosen.teacher), model_options=options, disable_dynamic=True)
    width, height = chosen.size
    told = {"base": chosen.model.stem, "recipe": "causal"}
    return tune_wan(model, teacher, takes, table, empty, recipe, (height // 8, width // 8), chosen.folder, told)
