"""Does what happens follow the sentence? The miniature's SVD films held-out first frames, the action probe reads them.

Each picture is filmed with two instructions from the same seed. The probe reads actions from 16 frames of 2 seconds,
which is what a clip has. Films also have a truth to compare with: the small world does an action in one way only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...film.instruction import States, fallback_states
from ...film.metrics.video_distance import frechet_distance, kernel_distance, psnr
from ...miniature.batch import World
from ...miniature.probe import ATTRIBUTES, Probe
from ...miniature.world import ACTIONS, Scene
from ..miniature.evaluate import write_strip
from ..miniature.export import FILES, read_probe
from .miniature import ADAPTER_FILE, BASE_FILE
from .small_world import draw_pool, instruction_of, scenes, states_of

__all__ = ["ROWS", "Row", "evaluate", "evaluate_files", "features", "film", "read_action"]


@dataclass(frozen=True)
class Row:
    """What of base and adapter films. strengths: spatial, short-term, long-term, text. states: as planned, or the
    instruction in place of each. words: the instruction, or an empty one.
    """

    strengths: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    states: bool = True
    words: bool = True


ROWS = {
    "whole": Row(),
    "states off": Row(states=False),
    "no words": Row(words=False, states=False),
    "text strength 0": Row((1.0, 1.0, 1.0, 0.0)),
    "base alone": Row((0.0, 0.0, 0.0, 0.0)),
}


def film(
    small: Any, file: Any, clip: Any, picture: Tensor, instruction: str, states: States | None, row: Row, *,
    seed: int, steps: int, text: float,
) -> Tensor:  # fmt: skip
    """Frames [16, 64, 64, 3] in 0..1. small: a SmallSvd; file: its adapter; picture: [1, 64, 64, 3]; text: s_T."""
    from ...host.guidance import SpatioTemporalGuidance
    from ...host.sampling import Inputs, Stage, sample, schedule
    from ...host.svd.adapters import Strengths, apply_adapter
    from ...host.svd.conditioning import condition

    words = instruction if row.words else ""
    given = condition(
        file, clip, small.clip_vision, small.vae, picture, words, states if row.states and row.words else None
    )
    model = apply_adapter(small.model, file, Strengths(*row.strengths))
    samples = given.latent["samples"]
    with torch.inference_mode():
        rows = sample(
            [Stage(model, 0, steps)],
            Inputs(given.conds, samples, None),
            [SpatioTemporalGuidance((1.0, 1.0), text)],
            torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed)),
            sigmas=schedule(model, "karras", steps, "euler"),
            sampler="euler",
            seed=seed,
        )
        made: Tensor = small.vae.decode(rows).float()
    return made.clone()


def features(probe: Probe, frames: Tensor) -> Tensor:
    """[512] of frames [T, H, W, 3]: how the probe's features are on average, and how much they change."""
    seen = probe.features(frames.movedim(-1, 1))
    return torch.cat([seen.mean(0), (seen[1:] - seen[:-1]).abs().mean(0)])


@torch.no_grad()
def read_action(probe: Probe, frames: Tensor) -> str:
    """What 16 frames of 2 seconds show."""
    return ACTIONS[int(probe.read_action(probe.features(frames.movedim(-1, 1))[None]).argmax())]


@torch.no_grad()
def evaluate(
    small: Any, file: Any, clip: Any, probe: Probe, row: Row, count: int, *,
    steps: int = 12, text: float = 1.0, seed: int = 1, keep: list[Tensor] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:  # fmt: skip
    """Figures over `count` held-out pictures, two films each, in percent but psnr (dB) and the two distances.

    followed: films that show the action told. swapped: pictures whose two films show different actions. kept: frames
    with the picture's character and place. psnr, frechet, kernel: against the true clips. keep: gets true and made.
    """
    rng, world = random.Random(f"actions {seed}"), World("cpu")
    followed: list[float] = []
    swapped: list[float] = []
    kept: list[float] = []
    decibels: list[float] = []
    real: list[Tensor] = []
    made: list[Tensor] = []
    for number, scene in enumerate(scenes(count, seed, held_out=True)):
        truth = draw_pool([scene], world).frames[0].float().movedim(2, -1) / 255
        seen = []
        for action in rng.sample(ACTIONS, 2):
            told = instruction_of(action)
            states = states_of(action) if row.states else fallback_states(told, 2)
            frames = film(small, file, clip, truth[0, :1], told, states, row, seed=number, steps=steps, text=text)
            true = truth[ACTIONS.index(action)]
            seen.append(read_action(probe, frames))
            followed.append(seen[-1] == action)
            kept.append(_kept(probe, frames, scene))
            decibels.append(psnr(true[1:], frames[1:]))
            real.append(features(probe, true))
            made.append(features(probe, frames))
            if keep is not None:
                keep += [true, frames]
        swapped.append(seen[0] != seen[1])
        if number % 10 == 9:
            say(f"{number + 1} of {count}: followed {100 * sum(followed) / len(followed):.1f} %")
    shares = {"followed": _percent(followed), "swapped": _percent(swapped), "kept": _percent(kept)}
    distances = {
        "frechet": frechet_distance(torch.stack(real), torch.stack(made)),
        "kernel": kernel_distance(torch.stack(real), torch.stack(made)),
    }
    return {**shares, "psnr": sum(decibels) / len(decibels), **distances}


def _kept(probe: Probe, frames: Tensor, scene: Scene) -> float:
    character = scene.actors[0].character
    wanted = {
        "colour": character.colour, "body": character.body, "headgear": character.headgear, "place": scene.place
    }  # fmt: skip
    seen = probe.features(frames.movedim(-1, 1))
    right = [
        (probe.heads[name](seen).argmax(1) == ATTRIBUTES[name].index(value)).float().mean()
        for name, value in wanted.items()
    ]
    return float(torch.stack(right).mean())


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def evaluate_files(
    weights: Path, rows: Sequence[str], count: int, *, steps: int, text: float, sheet: Path | None
) -> None:  # fmt: skip
    """Print a row of figures for each of `rows` with the files under `weights`; sheet: see `miniature-svd-evaluate`."""
    from ...host.files.paths import MINIATURE_WEIGHTS
    from ...host.miniature_clip import load_miniature_clip
    from ...host.svd.adapters import load_adapter
    from ...host.svd.small import load_small_svd

    probe = Probe().eval()
    read_probe(probe, MINIATURE_WEIGHTS)
    small, file = load_small_svd(weights / BASE_FILE), load_adapter(weights / ADAPTER_FILE)
    clip = load_miniature_clip(str(MINIATURE_WEIGHTS / FILES["text"]))
    for name in rows:
        keep: list[Tensor] = []
        figures = evaluate(small, file, clip, probe, ROWS[name], count, steps=steps, text=text, keep=keep)
        print(name, json.dumps({key: round(value, 2) for key, value in figures.items()}), flush=True)
        if sheet is not None:
            write_strip((film[::2] for film in keep[:32]), sheet.with_stem(f"{sheet.stem}-{name.replace(' ', '-')}"))
