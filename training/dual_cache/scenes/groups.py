"""Which shots belong together, and which are of no use. Pure functions.

Source: FilmWeaver's data pipeline, docs/methods/filmweaver.md, training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LeftOut:
    """Shots, by number from 0, that are not learned from, and why."""

    shots: tuple[int, ...]
    why: str


def group_shots(embeddings: torch.Tensor, window: int = 3, threshold: float = 0.75) -> list[list[int]]:
    """Neighbouring shots as scenes: a shot joins the scene before it if its picture is like those of that scene's
    newest shots.

    embeddings: unit vectors [shots, d] of the shots' middle frames, in order. window: how many of the scene's newest
    shots are compared; more bridges cutaways, and joins what drifts. threshold: least mean cosine.
    """
    scenes: list[list[int]] = []
    for number, own in enumerate(embeddings):
        if scenes:
            others = embeddings[scenes[-1][-window:]]
            if float((others @ own).mean()) >= threshold:
                scenes[-1].append(number)
                continue
        scenes.append([number])
    return scenes


def filter_scenes(
    scenes: Sequence[Sequence[int]],
    seconds: Sequence[float],
    people: Sequence[int] | None,
    *,
    shortest: float = 1.0,
    most_people: int = 3,
) -> tuple[list[list[int]], list[LeftOut]]:
    """The scenes with what is too short or too crowded left out: (scenes, what was left out).

    seconds: each shot's length. people: head count of each; None: not known, nothing is crowded.
    """
    kept, out = [], []
    for scene in scenes:
        short = [number for number in scene if seconds[number] < shortest]
        rest = [number for number in scene if seconds[number] >= shortest]
        if short:
            out.append(LeftOut(tuple(short), f"shorter than {shortest:g} s"))
        if rest and people is not None and (most := max(people[number] for number in rest)) > most_people:
            out.append(LeftOut(tuple(rest), f"a scene with {most} people; {most_people} at most"))
        elif rest:
            kept.append(rest)
    return kept, out
