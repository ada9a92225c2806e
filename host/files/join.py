"""Video files joined into one: their packets are copied, nothing is decoded or encoded again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ...film.reel.atomic import Place, part_of
from .video import CONTAINER_OPTIONS, cannot_write, set_metadata

__all__ = ["frame_order", "join_videos"]


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
) -> None:
    """Videos of one codec, size and rate one after the other, each of which begins with a keyframe.

    target: as in VideoWriter, and so are metadata and place. The file appears when it is whole. Raises VideoFileError.
    """
    part = part_of(target, unique=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A packet may not be decoded after its frame is shown: all are early by as much as any file needs.
        early = max(position - frame for path in paths for position, frame in enumerate(frame_order(path)))
        with av.open(str(part), mode="w", format=target.suffix[1:], options=CONTAINER_OPTIONS[target.suffix]) as joined:
            set_metadata(joined, metadata)
            _copy(paths, joined, early)
        (place or (lambda part: os.replace(part, target)))(part)
    except (OSError, av.error.FFmpegError) as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _copy(paths: Sequence[Path], joined: Any, early: int) -> None:
    stream, start, position = None, 0, 0
    for path in paths:
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            if stream is None:
                stream = joined.add_stream_from_template(video)
            frames = 0
            for packet, frame in _packets(container):
                packet.stream, packet.time_base = stream, 1 / Fraction(video.average_rate)
                packet.pts, packet.dts, packet.duration = start + frame, position - early, 1
                joined.mux(packet)
                frames, position = frames + 1, position + 1
            start += frames


def _packets(container: Any) -> Iterator[tuple[Any, int]]:
    """Each packet of the video that holds something whole, and its frame."""
    video = container.streams.video[0]
    for packet in container.demux(video):
        if packet.size and not packet.is_corrupt:
            yield packet, round(packet.pts * packet.time_base * video.average_rate)
