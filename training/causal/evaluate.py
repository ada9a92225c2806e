"""Evaluation of the KV memory on the miniature: one-minute stories in which the lead comes back, classified by the
probe.

The story, six shots of ten seconds, a cut before each: the place alone; the lead, named in full; two more places alone;
the lead again, named only "the same character"; somebody else, named in full. The film's first block has no character,
so a sink alone cannot hold the lead, and no other character comes between, so that "the same" is unambiguous. `python
-m longreel.training memory-judge` films many under four memories and prints the table of docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...film.kv_memory import LONGLIVE, MEMFLOW, KVMemory, MemorySettings
from ...miniature.probe import ATTRIBUTES, Probe, Reading
from ...miniature.stories import describe, random_character
from ...miniature.world import Scene
from ..core.command_line import command_line
from ..core.loop import save_whole
from ..core.precision import mixed_precision
from ..miniature import evaluate
from ..miniature.export import FILES, read_vae
from ..miniature.pipeline import prepare_device
from ..miniature.vae import VaeRecipe, build_vae, draw
from .data import scene_of

IDENTITY = ("colour", "body", "headgear")
LEAD, RETURN = 1, 4
"""Numbers, from 0, of the shot that shows the lead and of the one in which it returns."""
LENGTHS = (39, 42, 39, 39, 42, 39)
"""Latent frames of each shot: 240 together, a minute."""
MEMORIES: Mapping[str, MemorySettings] = {
    "window only": MemorySettings(window=9, sink=0, bank=0),
    "+ sink": LONGLIVE,
    "+ bank": MEMFLOW,
    "+ bank, sparse": replace(MEMFLOW, active=3),
}
_LOOK = 9
"""Latent frames that are decoded and classified in shots with a character: two seconds."""


def draw_story(number: int) -> list[Scene]:
    """Six scenes of one beat; combinations of character and place that training never shows."""
    rng = random.Random(f"memory judged {number}")
    lead, other = random_character(rng), random_character(rng)
    while any(getattr(other, name) == getattr(lead, name) for name in IDENTITY):
        other = random_character(rng)
    return [scene_of(rng, who, held_out=True) for who in (None, lead, None, None, lead, other)]


def prompts_of(story: Sequence[Scene]) -> list[str]:
    """The story's six prompts."""
    same = frozenset({0})
    return [describe(scene, same=same if number == RETURN else frozenset()) for number, scene in enumerate(story)]


def film_stories(
    models: evaluate.Models,
    stories: Sequence[Sequence[Scene]],
    seed: int,
    settings: MemorySettings,
    lengths: Sequence[int] = LENGTHS,
) -> tuple[list[torch.Tensor], float]:
    """For each shot the latents of all stories [B, 16, T, 8, 8], in the model's space; and the share of the layers
    whose bank holds the lead when it returns. Matrix products run in bfloat16 where a device is fast at it.

    lengths: latent frames of the stories' first shots, multiples of 3; the lead returns in the fifth.
    """
    import comfy.model_management

    from ...host.wan.causal_models import kv_layout
    from ..miniature.films import film_together

    comfy.model_management.load_models_gpu([models.model], force_full_load=True)
    told = [prompts_of(story) for story in stories]
    encoded = [
        torch.cat([models.clip.encode_from_tokens_scheduled(models.clip.tokenize(text[shot]))[0][0] for text in told])
        for shot in range(len(lengths))
    ]
    seeds = [[(seed * 1000 + number) * 10 + shot for number in range(len(stories))] for shot in range(len(lengths))]
    held: list[float] = []
    begins = sum(lengths[:LEAD])

    def look(shot: int, memory: KVMemory) -> None:
        if shot == RETURN and not held and memory.bank is not None:
            at = memory.bank.positions
            held.append(float(((at >= begins) & (at < begins + lengths[LEAD])).any(dim=1).float().mean()))

    with mixed_precision(models.model.load_device):
        shots = film_together(
            models.model.model, kv_layout(models.model, 8, 8), encoded, lengths, evaluate.schedule(4), seeds,
            settings=settings, on_block=look,
        )  # fmt: skip
    return shots, held[0] if held else 0.0


@torch.inference_mode()
def read_stories(
    probe: Probe, vae: Any, stories: Sequence[Sequence[Scene]], shots: Sequence[torch.Tensor]
) -> list[list[dict[str, float]]]:
    """For each story and shot the share of frames that are as prompted, by attribute, in the shot's last two seconds;
    for the lead's return also `recall` in its first. `identity` is the mean of colour, body and headgear, `exact` where
    all three are right.

    vae: as of `training.miniature.vae`, its raw latents those of the model; shots: latents [B, 16, T, 8, 8] each.
    """
    rows: list[list[dict[str, float]]] = [[] for _ in stories]
    for number, latents in enumerate(shots):
        peopled = bool(stories[0][number].actors)
        for index, story in enumerate(stories):
            scene = story[number]
            film = _decode(vae, latents[index, :, -(_LOOK if peopled else 3) :])
            if not peopled:
                place = probe.heads["place"](probe.features(film.movedim(-1, 1))).argmax(dim=1)
                right = place == ATTRIBUTES["place"].index(scene.place)
                rows[index].append({"place": float(right.float().mean())})
                continue
            told, reading = evaluate.expected(scene), probe.read(film)
            row = {name: reading.accuracy(name, value) for name, value in told.items()} | _identity(reading, told)
            if number == RETURN:
                first = probe.read(_decode(vae, latents[index, :, :_LOOK]))
                row |= {f"{name} at once": value for name, value in _identity(first, told).items()}
            rows[index].append(row)
    return rows


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures [T, 64, 64, 3] in 0..1 of latents [16, n, 8, 8]; the first two, which lack a past, are left out."""
    device = next(vae.parameters()).device
    return (draw(vae, latents[None].to(device))[0].permute(1, 2, 3, 0)[2:] / 2 + 0.5).clamp(0, 1)


def _identity(reading: Reading, told: Mapping[str, str]) -> dict[str, float]:
    right = torch.stack([reading.frames[name] == ATTRIBUTES[name].index(told[name]) for name in IDENTITY]).float()
    return {"identity": float(right.mean()), "exact": float(right.amin(dim=0).mean())}


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """`memory-judge`'s."""
    parser.add_argument("--lora", default="", help="adapter to judge; default the shipped one, 'none' the base alone")
    parser.add_argument("--stories", type=int, default=50, help="different stories")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a film of each story for each")
    parser.add_argument("--memories", nargs="+", choices=list(MEMORIES), default=list(MEMORIES), metavar="NAME",
                        help=f"which of {', '.join(MEMORIES)}")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="keeps what has been read; the same call goes on there")


@command_line()
def run_evaluation(chosen: argparse.Namespace, weights: Path) -> None:
    """`memory-judge`."""
    models = evaluate.load(weights)
    path = weights / FILES["memory"] if not chosen.lora else Path(chosen.lora)
    if chosen.lora != "none":
        models = replace(models, model=_with_lora(models.model, path))
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    device = prepare_device()
    vae.to(device).eval()
    models.probe.to(device)
    stories = [draw_story(number) for number in range(chosen.stories)]
    rows: dict[str, list[Any]] = {name: [] for name in chosen.memories}
    for seed in chosen.seeds:
        for name in chosen.memories:
            kept = chosen.folder / f"{name}-{seed}.pt" if chosen.folder else None
            if kept is not None and kept.exists():
                found = torch.load(kept, weights_only=True)
            else:
                started = time.process_time()
                shots, held = film_stories(models, stories, seed, MEMORIES[name])
                blocks = len(stories) * sum(LENGTHS) // 3
                found = {
                    "block_ms": 1000 * (time.process_time() - started) / blocks,
                    "held": held,
                    "read": read_stories(models.probe, vae, stories, shots),
                }
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    save_whole(kept, found)
            rows[name].append(found)
            print(f"seed {seed}, {name}: " + json.dumps(summary([found])), flush=True)
    evaluate.print_table(
        f"{chosen.stories} stories of a minute, seeds {chosen.seeds}",
        {name: summary(found) for name, found in rows.items()},
    )
    evaluate.print_table(
        "Share of frames as told in the last two seconds of each ten",
        {name: by_shot(found) for name, found in rows.items()},
    )


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One row of the table, from runs of the same stories with different seeds."""
    stories = [story for run in runs for story in run["read"]]

    def mean(shots: Sequence[int], names: Sequence[str]) -> float:
        values = [story[shot][name] for story in stories for shot in shots for name in names]
        return sum(values) / len(values)

    last = len(LENGTHS) - 1
    return {
        "recall": mean([RETURN], ["identity at once", "identity"]),
        "at once": mean([RETURN], ["identity at once"]),
        "at its end": mean([RETURN], ["identity"]),
        "exact": mean([RETURN], ["exact at once", "exact"]),
        **{name: mean([RETURN], [name]) for name in IDENTITY},
        "named": mean([LEAD, last], ["identity"]),
        "named, exact": mean([LEAD, last], ["exact"]),
        "place": mean(range(last + 1), ["place"]),
        "action": mean([LEAD, RETURN, last], ["action"]),
        "layers with the lead": sum(run["held"] for run in runs) / len(runs),
        "ms per block": sum(run["block_ms"] for run in runs) / len(runs),
    }


def by_shot(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Place in every shot, and identity and action where a character is named in full: a measure of drift."""
    stories = [story for run in runs for story in run["read"]]
    found = {}
    for shot in range(len(LENGTHS)):
        names = ("place",) if shot == RETURN else ("place", "identity", "action")
        for name in (name for name in names if name in stories[0][shot]):
            found[f"{10 * shot}-{10 * shot + 10} s {name}"] = sum(s[shot][name] for s in stories) / len(stories)
    return found


def _with_lora(model: Any, path: Path) -> Any:
    import comfy.sd
    import comfy.utils

    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
    return patched
