"""The sound of a film: that of its shots joined, each at the sample at which its first frame is shown.

Borders are exact fractions of the film's clock, so sound and picture never drift, however many shots there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = ["fade_end", "fitted", "join_sounds", "sample_of"]


def sample_of(frame: int, fps: float, rate: int) -> int:
    """The sample that is heard when a frame of the film begins. fps: as written, 29.97 is 2997/100. rate: a second."""
    return round(frame * rate / Fraction(repr(float(fps))))


def fitted(waveform: Tensor, start: int, stop: int) -> Tensor:
    """Samples start .. stop (exclusive) of a waveform [channels, T], with silence behind its end."""
    part = waveform[:, start:stop]
    return torch.nn.functional.pad(part, (0, stop - start - part.shape[1]))


def fade_end(waveform: Tensor, samples: int) -> Tensor:
    """A waveform [channels, T] whose last samples fall to silence in a straight line."""
    samples = min(samples, waveform.shape[1])
    gain = torch.ones(waveform.shape[1], dtype=waveform.dtype)
    gain[len(gain) - samples :] = torch.linspace(1, 0, samples + 1, dtype=waveform.dtype)[1:]
    return waveform * gain


def join_sounds(
    frames: Sequence[int], sounds: Sequence[Tensor | None], fps: float, rate: int, crossfade: float
) -> Tensor:
    """The sounds of a film's shots one after the other, [2, T] for all its frames.

    frames: of each shot. sounds: of each [2, n], None for a silent one; what of it lies behind its shot is heard in the
    crossfade alone. crossfade: seconds behind each cut in which the sound before fades out and the new one fades in, at
    equal power, at most the length of the new shot. A sound that ends with its shot has nothing to go on with: it fades
    out before the cut.
    """
    borders = [sample_of(frame, fps, rate) for frame in accumulate(frames, initial=0)]
    joined = torch.zeros(2, borders[-1])
    # Samples of the crossfade at each border; none where the film begins and where it ends.
    most = round(crossfade * rate)
    fades = [0, *(min(most, stop - start) for start, stop in pairwise(borders[1:])), 0]
    for start, stop, fade_in, fade_out, sound in zip(borders, borders[1:], fades, fades[1:], sounds):
        if sound is None:
            continue
        part = sound[:, : stop + fade_out - start].clone()
        length = part.shape[1]
        rising = min(fade_in, length)
        part[:, :rising] *= _rise(fade_in)[:rising]
        if length > stop - start - fade_out:  # else it has ended before
            falling = min(fade_out, length)
            part[:, length - falling :] *= _rise(fade_out).flip(0)[fade_out - falling :]
        joined[:, start : start + length] += part
    return joined


def _rise(samples: int) -> Tensor:
    """Gains from 0 to 1, whose squares and those of its mirror image add up to 1."""
    return torch.sin((torch.arange(samples) + 0.5) * (math.pi / 2 / max(1, samples)))
