"""Where shots begin and end: found in the frames, or given; and how sharp a cut is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .frame_stats import FrameStats
from .values import MetricsError

__all__ = ["Span", "cut_sharpness", "find_cuts", "keyframe_positions", "spans_of"]

LEAST_JUMP = 0.04
"""Unexplained difference below which nothing is a cut."""
TIMES_USUAL = 4.0
"""A cut's unexplained difference must be this many times what is usual around it."""
USUAL_FLOOR = 0.004
AROUND = 8
"""Frames on each side that the usual change is estimated from."""
SHORTEST = 4
"""Frames of the shortest shot that is found: a flash of fewer is no shot."""


@dataclass(frozen=True)
class Span:
    """Frames start .. stop (exclusive) of a video; at least one."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def find_cuts(signs: Sequence[FrameStats]) -> tuple[int, ...]:
    """First frames of the shots after the first. Finds hard cuts; a dissolve is none.

    A frame begins a shot where much of it cannot be explained by motion from the frame before, and several times more
    than of the frames around it. So fast pans, and noise that is always there, are no cuts.
    """
    jumps = [sign.jump for sign in signs]
    found: list[int] = []
    for t in range(1, len(jumps)):
        around = [*jumps[max(1, t - AROUND) : t], *jumps[t + 1 : t + 1 + AROUND]]
        usual = max(median(around) if around else 0.0, USUAL_FLOOR)
        if jumps[t] < max(LEAST_JUMP, TIMES_USUAL * usual):
            continue
        if found and t - found[-1] < SHORTEST:
            if jumps[t] > jumps[found[-1]]:
                found[-1] = t
            continue
        found.append(t)
    return tuple(cut for cut in found if cut >= SHORTEST and len(jumps) - cut >= SHORTEST)


def spans_of(cuts: Sequence[int], frames: int) -> tuple[Span, ...]:
    """The shots of a video of so many frames that is cut before these. Raises MetricsError for a video without one."""
    if frames < 1:
        raise MetricsError("The video has no frames, so there is nothing to measure: connect one with a shot in it.")
    edges = [0, *cuts, frames]
    return tuple(Span(start, stop) for start, stop in pairwise(edges))


def keyframe_positions(span: Span, count: int) -> tuple[int, ...]:
    """The middle frame of each of `count` equal parts of a shot; fewer where the shot has fewer frames."""
    places = (span.start + (2 * part + 1) * len(span) // (2 * count) for part in range(count))
    return tuple(dict.fromkeys(places))


def cut_sharpness(signs: Sequence[FrameStats], before: Span, after: Span) -> float:
    """The difference across a cut as a multiple of what is usual within both shots next to it.

    About 1: no cut, or a dissolve. Usual is the median of up to 8 frames on each side, at least 1/255.
    """
    inside = [*range(before.start + 1, before.stop)[-AROUND:], *range(after.start + 1, after.stop)[:AROUND]]
    usual = median([signs[t].difference for t in inside]) if inside else 0.0
    return signs[after.start].difference / max(usual, 1 / 255)
