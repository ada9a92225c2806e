"""ComfyUI's AUDIO and the sound of a film."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import torch
from torch import Tensor

from ...film.reel.reel import Reel, ReelError
from ...film.reel.shot_sound import ShotSound
from ...film.sound import fade_end, fitted, join_sounds, sample_of
from ..files.join import SOUND_RATE
from ..files.paths import spill_folder

__all__ = ["CROSSFADE", "film_sound", "part_of_sound", "samples_of", "with_sound"]

CROSSFADE = 0.1
"""Seconds, where nobody says otherwise: no click, and no gap that is heard."""


def samples_of(audio: Mapping[str, Any]) -> Tensor:
    """An AUDIO as [2, samples] fp32 at SOUND_RATE. Raises ValueError for more than one, or surround sound."""
    return _at_rate(_stereo(audio), int(audio["sample_rate"]))


def with_sound(reel: Reel, number: int, audio: Mapping[str, Any] | None) -> Reel:
    """The reel whose shot `number` (from 1) has this AUDIO, its own no more for None. Raises ReelError, ValueError."""
    if not 1 <= number <= len(reel.shots):
        raise ReelError(f"The reel has {len(reel.shots)} shots and no shot {number}: choose one of them.")
    sound = None
    if audio is not None:
        sound = ShotSound.store(_stereo(audio), int(audio["sample_rate"]), spill_folder())
    return reel.with_sound(number - 1, sound)


def film_sound(
    reel: Reel, soundtrack: Mapping[str, Any] | None, crossfade: float, fade_out: float, fps: float | None = None
) -> Tensor | None:
    """The sound of a film, [2, samples] in -1..1 at SOUND_RATE, exactly as long as the film; None for a silent one.

    soundtrack: an AUDIO over all of it, cut or followed by silence. crossfade: between the shots' own, see join_sounds.
    fade_out: seconds at the end in which all falls silent. fps: of the video, the reel's own if None. Where both
    together are too loud, all is made as much quieter as is needed. Raises ValueError for AUDIO of another kind.
    """
    fps = reel.layout.fps if fps is None else fps
    sounds = [_at_rate(shot.sound.waveform(), shot.sound.rate) if shot.sound else None for shot in reel.shots]
    if soundtrack is None and not any(sound is not None for sound in sounds):
        return None
    joined = join_sounds([shot.frames for shot in reel.shots], sounds, fps, SOUND_RATE, crossfade)
    if soundtrack is not None:
        joined += fitted(samples_of(soundtrack), 0, joined.shape[1])
    joined = fade_end(joined, round(fade_out * SOUND_RATE))
    return joined / max(1.0, float(joined.abs().max()))


def part_of_sound(sound: Tensor, start: int, stop: int, fps: float) -> Tensor:
    """What of a film's sound belongs to its frames start .. stop (exclusive), with silence where it has ended."""
    return fitted(sound, sample_of(start, fps, SOUND_RATE), sample_of(stop, fps, SOUND_RATE))


def _stereo(audio: Mapping[str, Any]) -> Tensor:
    """At its own rate."""
    waveform: Tensor = audio["waveform"]
    if waveform.shape[0] != 1:
        raise ValueError(f"The audio is a batch of {waveform.shape[0]} sounds: give one of them.")
    if waveform.shape[1] > 2:
        raise ValueError(f"The audio has {waveform.shape[1]} channels: mix it down to one or two.")
    return waveform[0].detach().to("cpu", torch.float32).expand(2, -1)


def _at_rate(waveform: Tensor, rate: int) -> Tensor:
    """A waveform [2, T] at SOUND_RATE."""
    if rate == SOUND_RATE or not waveform.shape[1]:
        return waveform
    frame = av.AudioFrame.from_ndarray(waveform.contiguous().numpy(), format="fltp", layout="stereo")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
    pieces = [torch.from_numpy(each.to_ndarray()) for given in (frame, None) for each in resampler.resample(given)]
    return fitted(torch.cat(pieces, dim=1), 0, round(waveform.shape[1] * Fraction(SOUND_RATE, rate)))
