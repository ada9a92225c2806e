"""A stand-in for PyAV on the bare GPU machine, put into its site folder as `av`: reads videos by OpenCV, writes none.

PyAV's libraries are larger than what may travel there; training reads clips and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
from PIL import Image

time_base = 1_000_000


class _Frame:
    def __init__(self, picture: Any):
        self.picture = picture

    def to_image(self) -> Image.Image:
        """As PyAV's frame."""
        return Image.fromarray(cv2.cvtColor(self.picture, cv2.COLOR_BGR2RGB))


class _Container:
    def __init__(self, path: str):
        self.capture = cv2.VideoCapture(path)
        if not self.capture.isOpened():
            raise OSError(f"{path} is no video")
        rate = Fraction(self.capture.get(cv2.CAP_PROP_FPS) or 24).limit_denominator(1001)
        self.streams = SimpleNamespace(video=[SimpleNamespace(average_rate=rate)])

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.release()

    def decode(self, _: object) -> Iterator[_Frame]:
        """Its frames, in order."""
        while True:
            found, picture = self.capture.read()
            if not found:
                return
            yield _Frame(picture)


def open(path: str, **_: object) -> _Container:
    """As PyAV's, for reading."""
    return _Container(path)


def _named(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


class _Anything(ModuleType):
    """Names that are imported and not used."""

    def __getattr__(self, name: str) -> Any:
        return _named(name)


error = _Anything("av.error")
error.FFmpegError = type("FFmpegError", (OSError,), {})  # type: ignore[attr-defined]
for _name in ("av.error", "av.container", "av.subtitles", "av.subtitles.stream", "av.video", "av.video.reformatter"):
    sys.modules[_name] = error if _name == "av.error" else _Anything(_name)
video = sys.modules["av.video"]
container = sys.modules["av.container"]


def __getattr__(name: str) -> Any:
    return _named(name)
