"""Video files joined into one: packets are copied, nothing is decoded or encoded again; a sound is encoded once."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from torch import Tensor

from ...film.reel.atomic import Place, part_of
from .video import CONTAINER_OPTIONS, cannot_write, set_metadata

__all__ = ["SOUND_RATE", "frame_order", "join_videos"]

SOUND_RATE = 48_000
"""Samples a second of a film's sound: what every player knows, and the only rate of films that Opus has."""

_SOUND_CODECS = {".mp4": "aac", ".webm": "libopus"}
_SOUND_BITS = 192_000


def frame_order(path: Path) -> list[int]:
    """The frame that each packet of a video holds, in the order of the packets; [] for a file that cannot be read.

    Frames have one length. Nothing is decoded.
    """
    try:
        with av.open(str(path)) as container:
            return [frame for _, frame in _packets(container)]
    except (OSError, av.error.FFmpegError, IndexError):
        return []


def join_videos(
    paths: Sequence[Path],
    target: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    place: Place | None = None,
    sound: Tensor | None = None,
) -> None:
    """Videos of one codec, size and rate one after the other, each of which begins with a keyframe.

    target: as in VideoWriter, and so are metadata and place. sound: of the whole film, [2, samples] in -1..1 at
    SOUND_RATE. The file appears when it is whole. Raises VideoFileError.
    """
    part = part_of(target, unique=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A packet may not be decoded after its frame is shown: all are early by as much as any file needs.
        early = max(position - frame for path in paths for position, frame in enumerate(frame_order(path)))
        with av.open(str(part), mode="w", format=target.suffix[1:], options=CONTAINER_OPTIONS[target.suffix]) as joined:
            set_metadata(joined, metadata)
            _mux(paths, joined, early, sound, _SOUND_CODECS[target.suffix])
        (place or (lambda part: os.replace(part, target)))(part)
    except (OSError, av.error.FFmpegError) as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _mux(paths: Sequence[Path], joined: Any, early: int, sound: Tensor | None, codec: str) -> None:
    with av.open(str(paths[0])) as container:
        stream = joined.add_stream_from_template(container.streams.video[0])
    parts = [_copied(paths, stream, early)]
    if sound is not None:
        heard = joined.add_stream(codec, rate=SOUND_RATE, layout="stereo")
        heard.bit_rate = _SOUND_BITS
        parts.append(_encoded(sound, heard))
    # In the order of their times, so that neither waits in memory for the other.
    for packet in heapq.merge(*parts, key=lambda packet: packet.dts * packet.time_base):
        joined.mux(packet)


def _copied(paths: Sequence[Path], stream: Any, early: int) -> Iterator[Any]:
    start, position = 0, 0
    for path in paths:
        with av.open(str(path)) as container:
            rate, frames = Fraction(container.streams.video[0].average_rate), 0
            for packet, frame in _packets(container):
                packet.stream, packet.time_base = stream, 1 / rate
                packet.pts, packet.dts, packet.duration = start + frame, position - early, 1
                yield packet
                frames, position = frames + 1, position + 1
            start += frames


def _encoded(sound: Tensor, stream: Any) -> Iterator[Any]:
    """A second at a time."""
    for start in range(0, sound.shape[1], SOUND_RATE):
        samples = sound[:, start : start + SOUND_RATE].contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _packets(container: Any) -> Iterator[tuple[Any, int]]:
    """Each packet of the video that holds something whole, and its frame."""
    video = container.streams.video[0]
    for packet in container.demux(video):
        if packet.size and not packet.is_corrupt:
            yield packet, round(packet.pts * packet.time_base * video.average_rate)
