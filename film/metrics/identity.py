"""The Identity Report: similarity of a video to each reference over time, and who is missing when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..pixels import Box
from .similarity import assign, cosines
from .values import Found

__all__ = [
    "IdentityReport",
    "Look",
    "ReferenceFigures",
    "identity_report",
    "looks_of",
    "missing_spans",
]


@dataclass(frozen=True)
class Look:
    """One reference on one frame. box: the most similar place; None where there was nothing to compare. clip: cosine x
    100 with it; other: with the most similar other reference (the control), None for a cast of one. dino: as clip,
    where a second model was given.
    """

    box: Box | None
    clip: float
    other: float | None
    dino: float | None = None

    def is_seen(self, least: float) -> bool:
        """Whether it is similar enough, and to no other reference more."""
        return self.box is not None and self.clip >= least and (self.other is None or self.clip > self.other)


@dataclass(frozen=True)
class ReferenceFigures:
    """One reference. seen: % of the sampled frames; missing: spans in seconds. mean, least: of the CLIP cosine x 100
    over all sampled frames; dino_mean, dino_least: the same of DINO. control: mean cosine with the others, to compare.
    """

    name: str
    seen: float
    missing: tuple[tuple[float, float], ...]
    mean: float
    least: float
    control: float | None
    dino_mean: float | None
    dino_least: float | None
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class IdentityReport:
    """All of it. times: seconds of the sampled frames. seconds: of the video."""

    model: dict[str, Any]
    options: dict[str, Any]
    seconds: float
    frames: tuple[int, ...]
    times: tuple[float, ...]
    references: tuple[ReferenceFigures, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def looks_of(
    found: Sequence[Found], crops: torch.Tensor, references: torch.Tensor, names: Sequence[str] | None
) -> tuple[Look, ...]:
    """Each reference on one frame.

    found: the places looked at; crops: their embeddings [n, d]; references: [m, d]. names: of the references, where the
    places are detections: then each belongs to one reference, see `assign`, and a reference without one is absent. None
    where they are windows over the frame: each reference takes the most similar.
    """
    scores = cosines(crops, references)
    if names is not None:
        chosen = assign(found, names, scores, -math.inf)
    else:
        chosen = dict(enumerate(scores.argmax(dim=0).tolist())) if found else {}
    looks = []
    for reference in range(references.shape[0]):
        if reference not in chosen:
            looks.append(Look(None, 0.0, None))
            continue
        row = scores[chosen[reference]]
        others = [float(score) for index, score in enumerate(row) if index != reference]
        looks.append(Look(found[chosen[reference]].box, float(row[reference]), max(others, default=None)))
    return tuple(looks)


def missing_spans(seen: Sequence[bool], times: Sequence[float], seconds: float) -> tuple[tuple[float, float], ...]:
    """Stretches without it: each begins with the first frame looked at that lacks it, or the video, and ends where it
    is next detected, or with the video.
    """
    spans: list[tuple[float, float]] = []
    begun: float | None = None
    for index, here in enumerate(seen):
        if not here and begun is None:
            begun = times[index] if index else 0.0
        if here and begun is not None:
            spans.append((begun, times[index]))
            begun = None
    if begun is not None:
        spans.append((begun, seconds))
    return tuple(spans)


def identity_report(
    names: Sequence[str],
    looks: Sequence[Sequence[Look]],
    frames: Sequence[int],
    count: int,
    fps: float,
    least: float,
    model: dict[str, Any],
    options: dict[str, Any],
    notes: Sequence[str] = (),
) -> IdentityReport:
    """Compute the report. looks: for each sampled frame, one for each reference. count: of all frames."""
    times = tuple(frame / fps for frame in frames)
    seconds = count / fps
    rows = []
    for index, name in enumerate(names):
        mine = tuple(each[index] for each in looks)
        seen = [look.is_seen(least) for look in mine]
        dino = [look.dino for look in mine if look.dino is not None]
        control = [look.other for look in mine if look.other is not None]
        rows.append(
            ReferenceFigures(
                name=name,
                seen=100.0 * sum(seen) / len(seen),
                missing=missing_spans(seen, times, seconds),
                mean=sum(look.clip for look in mine) / len(mine),
                least=min(look.clip for look in mine),
                control=sum(control) / len(control) if control else None,
                dino_mean=sum(dino) / len(dino) if dino else None,
                dino_least=min(dino) if dino else None,
                looks=mine,
            )
        )
    return IdentityReport(model, options, seconds, tuple(frames), times, tuple(rows), tuple(notes))
