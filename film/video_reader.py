"""The one reader of footage: frames upright, at their own times, in the colours that core's Load Video gives.

A frame has the values that core decodes to the last bit, and lies as core turns it. Three things differ, as chosen:
frames go by the clock and not by their number, so that footage with a variable frame rate keeps its speed (core counts
its frames at their mean rate); what is transparent is laid on white; and damaged frames, or frames of another size, are
an error and not left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av
import torch

from .picture_reader import on_white

__all__ = ["VIDEOS", "ShownFrame", "VideoReadError", "VideoReader", "list_videos"]

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""Endings of the files that are taken for footage."""

_USUAL_RATE = 24.0
# 8-bit formats that are converted without a detour; all others go through 16 bits, which interpolates their colours.
_PLAIN = frozenset({"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"})
# Times are rounded to a container's ticks and are sums of fractions.
_TICK = 5e-4


class VideoReadError(ValueError):
    """A file that is no footage; the message is one sentence that says which and what to change."""


def list_videos(folder: Path) -> list[Path]:
    """The videos of a folder by name. Hidden files, among them the ._ files that macOS leaves, are none."""
    return sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() in VIDEOS and not path.name.startswith(".") and path.is_file()
    )


@dataclass(frozen=True, eq=False)
class ShownFrame:
    """A frame and when it is first shown, in seconds from the first frame's time."""

    time: float
    frame: Any

    def pixels(self) -> torch.Tensor:
        """[H, W, 3] fp32 in 0..1, upright."""
        frame = self.frame
        alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
        if frame.format.name in _PLAIN:
            values = torch.from_numpy(frame.to_ndarray(format="rgba" if alpha else "rgb24")).float() / 255
        else:
            wide = frame.to_ndarray(format="gbrap16le" if alpha else "gbrp16le").astype("float32")
            values = torch.from_numpy(wide) / 65535
        return on_white(torch.rot90(values, round(frame.rotation // 90), (0, 1)))

    def draft(self, side: int) -> torch.Tensor:
        """[h, w, 3] as in pixels, but fast and reduced to at most `side` pixels: for looking for cuts."""
        scale = min(1.0, side / max(self.frame.width, self.frame.height))
        size = (max(1, round(self.frame.width * scale)), max(1, round(self.frame.height * scale)))
        small = self.frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="AREA")
        return torch.rot90(torch.from_numpy(small), round(self.frame.rotation // 90), (0, 1)).float() / 255


class VideoReader:
    """An open file of footage, to be used as a context manager. Every method reads from the beginning."""

    def __init__(self, source: Path | str | IO[bytes], name: str = "") -> None:
        """name: for messages. Raises VideoReadError: the file is no video."""
        self.name = name or (Path(source).name if isinstance(source, (Path, str)) else "The video")
        with self._explained():
            self._container: Any = av.open(str(source) if isinstance(source, Path) else source)
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            self._container.close()
            raise VideoReadError(f"{self.name} has no pictures that can be decoded: choose another file.")
        self._stream = self._container.streams.video[0]
        self._begun = False

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._container.close()

    @property
    def fps(self) -> float:
        """Frames a second, in the mean."""
        return float(self._stream.average_rate or _USUAL_RATE)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's beginning to the last one's end."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return float(self._container.duration / av.time_base)
        return sum(1 for _ in self.frames()) / self.fps

    def frames(self, start: float = 0.0) -> Iterator[ShownFrame]:
        """All frames in the order of their times, from the last keyframe before `start` s on. Raises VideoReadError."""
        base = self._stream.time_base
        first = float(self._stream.start_time * base) if self._stream.start_time and base else None
        size: tuple[int, int] | None = None
        with self._explained():
            if (start or self._begun) and base:
                self._container.seek(int(((first or 0.0) + start) / base), stream=self._stream)
            self._begun = True
            for number, frame in enumerate(self._container.decode(self._stream)):
                time = number / self.fps if frame.time is None else float(frame.time)
                if first is None:
                    first = 0.0 if start else time
                if size not in (None, (frame.width, frame.height)):
                    raise VideoReadError(f"{self.name} changes its size on the way: cut it where it does.")
                size = frame.width, frame.height
                yield ShownFrame(time - first, frame)

    def at_times(self, times: Sequence[float]) -> Iterator[ShownFrame]:
        """The frames shown at rising times in seconds; fewer, where the footage ends before. The last frame counts to
        the end. Raises VideoReadError.
        """
        wanted, newest = list(times), None
        start = times[0] if times and times[0] > 1 else 0.0
        for frame in self.frames(start):
            while wanted and newest is not None and frame.time > wanted[0] + _TICK:
                yield newest
                wanted.pop(0)
            if not wanted:
                return
            newest = frame
        for _ in wanted if newest is not None else ():
            yield newest  # type: ignore[misc]

    def at_rate(self, fps: float | None = None) -> Iterator[ShownFrame]:
        """A frame for every 1 / fps seconds, the one shown in the middle of that time: of footage with a constant rate
        and `fps` None each frame once. Raises VideoReadError.
        """
        rate = self.fps if fps is None else fps
        due, newest = 0, None
        for frame in self.frames():
            while newest is not None and frame.time > (due + 0.5) / rate + _TICK:
                yield newest
                due += 1
            newest = frame
        while newest is not None and newest.time + self._length(newest) > (due + 0.5) / rate:
            yield newest
            due += 1

    def _length(self, last: ShownFrame) -> float:
        """Seconds that the last frame is shown: as the file says, else as long as a frame is in the mean."""
        told = float((last.frame.duration or 0) * (last.frame.time_base or 0))
        return max(told or 1 / self.fps, 0.51 / self.fps)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.error.FFmpegError, EOFError) as error:
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise VideoReadError(f"{self.name} cannot be read as a video ({reason}): use another copy.") from error
