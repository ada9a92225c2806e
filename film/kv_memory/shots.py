"""ShotStream's own parts: which pictures of earlier shots condition a new one, the phase of each shot, its schedule.

Read in bongobongo2020/ShotStream 9df3570 (pipeline/causal_inference_ar.py, wan/modules/causal_model.py, model.py) and
Orannue/ShotStream 9b35ffc (shotstream.yaml). Shots are takes here: what is filmed from one cut to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shot_phase", "shotstream_sigmas", "spread_over_shots"]

_PHASE = 1 / 6
_SHIFT = 8.0
_STEPS = (1000, 740, 500, 260)


def shot_phase(take: int, context: bool = False) -> float:
    """Radians added to all temporal RoPE angles of a take. take: from 0; context: as a picture in a sink.

    What is filmed has one phase step more than the newest picture in its sink; the first take's sink is blank pictures
    of itself.
    """
    return _PHASE * (take if context else max(take, 1))


def spread_over_shots(frames: Sequence[int], pictures: int) -> list[tuple[int, int]]:
    """The pictures that fill a sink: (take, frame of it), in the order of the film. frames: of each earlier take, 1 or
    more. Each take has its equal share, spread from its first to its last frame, the newest ones one more if there is a
    rest; with more takes than pictures only the newest have one.
    """
    share, rest = divmod(pictures, len(frames))
    chosen = []
    for take, length in enumerate(frames):
        count = share + (take >= len(frames) - rest)
        chosen += [(take, round(i * (length - 1) / max(count - 1, 1))) for i in range(count)]
    return chosen


def shotstream_sigmas(steps: int) -> tuple[float, ...]:
    """The published schedule for 4 steps, even steps of time for another number, warped by shift 8; ends in 0."""
    even = [1000 - 1000 * i / steps for i in range(steps)]
    times = [step / 1000 for step in (_STEPS if steps == len(_STEPS) else even)]
    return (*(_SHIFT * time / (1 + (_SHIFT - 1) * time) for time in times), 0.0)
