"""The Continuity Report: the measures of a video per shot, per pair of shots and as a whole.

Definitions of the four measures of FilmWeaver (arXiv 2512.11274) and of what is reported beside them, because all-shots
consistency alone rewards a film that repeats itself: web/docs/LongreelContinuityReport/en.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch

from ..pixels import Box
from .cuts import Span, cut_sharpness
from .frame_stats import FrameStats, colour_distance
from .similarity import cosines, join, layout_likeness, margin, mean_of_pairs

__all__ = ["ContinuityReport", "PairFigures", "Seen", "ShotEvidence", "ShotFigures", "continuity_report"]

ENDS = 5
"""Drift compares the first fifth of a stretch with its last fifth."""


@dataclass(frozen=True)
class Seen:
    """A character on the keyframes of one shot. embedding: [d], of length 1. boxes: with the keyframe's number from 0
    in this shot. alignment: mean cosine x 100 of the crops with the description.
    """

    embedding: torch.Tensor
    boxes: tuple[tuple[int, Box], ...]
    alignment: float


@dataclass(frozen=True, eq=False)
class ShotEvidence:
    """The evidence on one shot.

    span: its frames. begins: "cut" or "continue". keyframes: their positions in the video. pictures: small ones of the
    keyframes, [n, h, w, 3]. embeddings: [n, d]. prompt: "" where unknown. whole, sentences: mean cosine x 100 of each
    keyframe with the prompt read as one text (CLIP cuts it off at 77 tokens) and sentence by sentence; None without a
    prompt. seen: detected characters by name. shown, other: embeddings of the keyframes that conditioned the shot, and
    of the others in the bank; None where that is not known. shown_pictures: small ones of the former.
    """

    span: Span
    begins: str
    keyframes: tuple[int, ...]
    pictures: torch.Tensor
    embeddings: torch.Tensor
    prompt: str = ""
    whole: float | None = None
    sentences: float | None = None
    seen: Mapping[str, Seen] = field(default_factory=dict)
    shown: torch.Tensor | None = None
    other: torch.Tensor | None = None
    shown_pictures: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class ShotFigures:
    """One shot, counted from 1. Cosines are times 100.

    cut: sharpness of the cut before it, None for the first shot and one that continues. motion, fastest: % of the
    frame's diagonal per second. colour_drift: CIE76 between its first and last fifth; contrast_drift: % that contrast
    changed in between. copy, copy_of: the copy score and what it compares with ("shown" or "earlier shots").
    layout_copy: largest place-by-place correlation with the pictures it could copy, -1..1. characters: the detected
    ones, with the alignment of each.
    """

    shot: int
    start: int
    stop: int
    seconds: float
    begins: str
    prompt: str
    keyframes: tuple[int, ...]
    alignment: float | None
    alignment_sentences: float | None
    cut: float | None
    motion: float
    fastest: float
    colour_drift: float
    contrast_drift: float
    copy: float | None
    copy_of: str
    layout_copy: float | None
    characters: dict[str, float]


@dataclass(frozen=True)
class PairFigures:
    """Two shots. consistency: cosine x 100 of their keyframes. colour: CIE76 of their mean colours. contrast: % by
    which the later one's contrast differs. layout: place-by-place correlation of their keyframes, -1..1. characters:
    cosine x 100 of each one detected in both.
    """

    shots: tuple[int, int]
    consistency: float
    colour: float
    contrast: float
    layout: float
    characters: dict[str, float]


@dataclass(frozen=True)
class ContinuityReport:
    """All of it. film: the figures of the whole video by name. curves: per frame, for the plot. notes: sentences."""

    model: dict[str, Any]
    options: dict[str, Any]
    film: dict[str, float | int | None]
    shots: tuple[ShotFigures, ...]
    pairs: tuple[PairFigures, ...]
    characters: dict[str, dict[str, float | int | None]]
    boxes: tuple[tuple[dict[str, Any], ...], ...]
    curves: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the curves."""
        return {name: value for name, value in asdict(self).items() if name != "curves"}


def continuity_report(
    shots: Sequence[ShotEvidence],
    signs: Sequence[FrameStats],
    fps: float,
    names: Sequence[str],
    model: dict[str, Any],
    options: dict[str, Any],
    notes: Sequence[str] = (),
) -> ContinuityReport:
    """Compute the report. signs: of every frame. names: of the characters that were searched for."""
    means = [join(shot.embeddings) for shot in shots]
    rows = tuple(_shot(number, shots, means, signs, fps) for number in range(len(shots)))
    pairs = tuple(_pair(one, other, shots, means, signs) for one, other in combinations(range(len(shots)), 2))
    characters = {name: _character(name, shots) for name in names}
    told = [*notes]
    skipped = [name for name, figures in characters.items() if figures["consistency"] is None]
    if skipped:
        told.append(f"Seen in fewer than two shots and left out of the consistency: {', '.join(skipped)}.")
    first, last = _ends(signs)
    # What "moves" across a cut is no motion.
    cuts = {shot.span.start for shot in shots if shot.begins == "cut"}
    moving = [sign for frame, sign in enumerate(signs) if frame not in cuts]
    film: dict[str, float | int | None] = {
        "shots": len(shots),
        "seconds": len(signs) / fps,
        "all-shots consistency": mean_of_pairs(torch.stack(means)),
        "all-shots alignment": _mean([row.alignment for row in rows]),
        "all-shots alignment, sentences": _mean([row.alignment_sentences for row in rows]),
        "character consistency": _mean([figures["consistency"] for figures in characters.values()]),
        "character alignment": _mean([value for row in rows for value in row.characters.values()]),
        "characters skipped": len(skipped),
        "copy score": _mean([row.copy for row in rows]),
        "layout copy": _mean([row.layout_copy for row in rows]),
        "cut sharpness": _mean([row.cut for row in rows]),
        "dynamic degree": _mean([sign.motion * fps for sign in moving]),
        "dynamic degree, fastest": _mean([sign.fastest * fps for sign in moving]),
        "colour drift within shots": _mean([row.colour_drift for row in rows]),
        "colour distance between shots": _mean([pair.colour for pair in pairs]),
        "colour drift, start to end": colour_distance(_colour(first), _colour(last)),
        "contrast drift, start to end": _change(_contrast(first), _contrast(last)),
    }
    boxes = tuple(
        tuple(
            {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "label": name}
            for name, seen in shot.seen.items()
            for at, box in seen.boxes
            if at == place
        )
        for shot in shots
        for place in range(len(shot.keyframes))
    )
    curves = {
        "motion": tuple(0.0 if frame in cuts else sign.motion * fps for frame, sign in enumerate(signs)),
        "colour": tuple(colour_distance(sign.colour, _colour(first)) for sign in signs),
        "contrast": tuple(_change(_contrast(first), sign.contrast) for sign in signs),
    }
    return ContinuityReport(model, options, film, rows, pairs, characters, boxes, curves, tuple(told))


def _shot(
    number: int, shots: Sequence[ShotEvidence], means: Sequence[torch.Tensor], signs: Sequence[FrameStats], fps: float
) -> ShotFigures:
    shot = shots[number]
    inside = signs[shot.span.start : shot.span.stop]
    moving = inside[1:] if shot.begins == "cut" and inside[1:] else inside
    cut = None
    if number and shot.begins == "cut":
        cut = cut_sharpness(signs, shots[number - 1].span, shot.span)
    copy, copy_of = _copy(number, shots, means)
    sources = shot.shown_pictures or tuple(picture for each in shots[:number] for picture in each.pictures)
    layout = [layout_likeness(picture, source) for picture in shot.pictures for source in sources]
    first, last = _ends(inside)
    return ShotFigures(
        shot=number + 1,
        start=shot.span.start,
        stop=shot.span.stop,
        seconds=len(shot.span) / fps,
        begins=shot.begins,
        prompt=shot.prompt,
        keyframes=shot.keyframes,
        alignment=shot.whole,
        alignment_sentences=shot.sentences,
        cut=cut,
        motion=sum(sign.motion for sign in moving) / len(moving) * fps,
        fastest=sum(sign.fastest for sign in moving) / len(moving) * fps,
        colour_drift=colour_distance(_colour(first), _colour(last)),
        contrast_drift=_change(_contrast(first), _contrast(last)),
        copy=copy,
        copy_of=copy_of,
        layout_copy=max(layout, default=None),
        characters={name: seen.alignment for name, seen in shot.seen.items()},
    )


def _copy(number: int, shots: Sequence[ShotEvidence], means: Sequence[torch.Tensor]) -> tuple[float | None, str]:
    """The copy score of a shot: against the keyframes that conditioned it, or else the most similar earlier shot
    against the other ones.

    A shot that continues the one before shows the same by intent, so it has a score of the first kind only.
    """
    shot = shots[number]
    if shot.shown is not None and shot.other is not None:
        return margin(shot.embeddings, shot.shown, shot.other), "shown"
    if number < 2 or shot.begins == "continue":
        return None, "earlier shots"
    earlier = torch.stack(list(means[:number]))
    likest = int(cosines(means[number][None], earlier)[0].argmax())
    own = shots[likest].embeddings
    others = torch.cat([shots[index].embeddings for index in range(number) if index != likest])
    return margin(shot.embeddings, own, others), "earlier shots"


def _pair(
    one: int, other: int, shots: Sequence[ShotEvidence], means: Sequence[torch.Tensor], signs: Sequence[FrameStats]
) -> PairFigures:
    a, b = shots[one], shots[other]
    inside = [signs[shot.span.start : shot.span.stop] for shot in (a, b)]
    both = [name for name in a.seen if name in b.seen]
    return PairFigures(
        shots=(one + 1, other + 1),
        consistency=float(cosines(means[one][None], means[other][None])),
        colour=colour_distance(_colour(inside[0]), _colour(inside[1])),
        contrast=_change(_contrast(inside[0]), _contrast(inside[1])),
        layout=max(layout_likeness(x, y) for x in a.pictures for y in b.pictures),
        characters={name: float(cosines(a.seen[name].embedding[None], b.seen[name].embedding[None])) for name in both},
    )


def _character(name: str, shots: Sequence[ShotEvidence]) -> dict[str, float | int | None]:
    seen = [shot.seen[name] for shot in shots if name in shot.seen]
    return {
        "shots": len(seen),
        "consistency": mean_of_pairs(torch.stack([each.embedding for each in seen])) if seen else None,
        "alignment": _mean([each.alignment for each in seen]),
    }


def _ends(signs: Sequence[FrameStats]) -> tuple[Sequence[FrameStats], Sequence[FrameStats]]:
    part = max(1, len(signs) // ENDS)
    return signs[:part], signs[-part:]


def _colour(signs: Sequence[FrameStats]) -> tuple[float, ...]:
    return tuple(sum(channel) / len(signs) for channel in zip(*(sign.colour for sign in signs)))


def _contrast(signs: Sequence[FrameStats]) -> float:
    return sum(sign.contrast for sign in signs) / len(signs)


def _change(before: float, after: float) -> float:
    """From one contrast to another in %; a picture of one colour counts as a contrast of 0.1."""
    return 100.0 * (after / max(before, 0.1) - 1.0) if max(before, after) > 0.1 else 0.0


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
