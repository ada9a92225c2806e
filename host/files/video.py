"""Video files written frame by frame, so that a film of any length needs the memory of one chunk.

The file grows under a temporary name beside its place and gets its name when it is whole: a crash, an interrupt or a
full disk never leaves a broken film behind, nor destroys an older one. Colours are converted the way ComfyUI's own
Save Video does (BT.601, limited range) but the stream also says so, so that players need not guess.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from comfy.cli_args import args
from comfy_api.latest import InputImpl
from torch import Tensor

from ...film.reel.atomic import Place, part_of

_SMPTE170M = 6  # ITU-T H.273 code of the BT.601 matrix; PyAV names only the scaler's own code for it
_CODECS = {".mp4": "h264", ".webm": "libvpx-vp9"}
_DEFAULT_CRF = {".mp4": 18.0, ".webm": 28.0}  # visually lossless for x264, a little below that for the slower VP9
# ComfyUI's players and its metadata readers expect plain tags; faststart lets a browser play while loading.
CONTAINER_OPTIONS = {".mp4": {"movflags": "use_metadata_tags+faststart"}, ".webm": {}}


class VideoFileError(RuntimeError):
    """The film could not be written. The message is one sentence for the user."""


class VideoWriter:
    """Streams frames into one MP4 (H.264) or WebM (VP9) file.

    Use it as a context manager: leaving normally finishes the file, leaving by any exception (an interrupt is one)
    deletes it.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        crf: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        place: Place | None = None,
    ) -> None:
        """Open the file at once, so that an unwritable place shows before the work is done.

        path: where the film shall be; the suffix `.mp4` or `.webm` chooses container and codec. Its folder is made.
        width, height: size in pixels, both even. fps: frames per second, more than 0. A float is taken to the nearest
        fraction with a denominator up to 1001. crf: constant rate factor, less is better and larger: 0..51 for MP4
        (default 18), 0..63 for WebM (default 28). metadata: tags; values that are not text are stored as JSON. See
        `workflow_metadata`. place: names the finished file, instead of `path`. Raises VideoFileError: unknown suffix,
        odd size, a frame rate of 0 or less, or a place that cannot be written.
        """
        suffix = path.suffix.lower()
        if suffix not in _CODECS:
            raise VideoFileError(f"Cannot write {path.name}: name the film .mp4 or .webm.")
        if width % 2 or height % 2:
            raise VideoFileError(
                f"Cannot write a video of {width}x{height}: width and height must be even, "
                f"for example {width + width % 2}x{height + height % 2}."
            )
        if fps <= 0:
            raise VideoFileError(f"Cannot write a video of {fps} frames per second: give a frame rate above 0.")
        self.path = path
        self.frames = 0
        """Frames written so far."""
        self._size = (height, width)
        self._part = part_of(path, unique=True)
        self._place: Place = place or (lambda part: os.replace(part, path))
        self._container: Any = None
        rate = Fraction(fps).limit_denominator(1001)
        self._time_base = 1 / rate
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            options = CONTAINER_OPTIONS[suffix]
            self._container = av.open(str(self._part), mode="w", format=suffix[1:], options=options)
            set_metadata(self._container, metadata)
            self._stream = self._container.add_stream(_CODECS[suffix], rate=rate)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": str(_DEFAULT_CRF[suffix] if crf is None else crf)}
            if suffix == ".webm":
                # VP9 at its default effort is slower than the film is made; b=0 lets crf alone decide the quality.
                self._stream.bit_rate = 0
                self._stream.options |= {"deadline": "good", "cpu-used": "4", "row-mt": "1"}
            self._stream.codec_context.colorspace = _SMPTE170M
            self._stream.codec_context.color_range = ColorRange.MPEG

    def write(self, frames: Tensor) -> None:
        """Append frames.

        frames: [T, height, width, channels] with values in 0..1 on any device; values outside are clipped, channels
        after the third dropped. Raises VideoFileError: frames of another size, or the file can no longer be written (a
        full disk); the unfinished file is gone then.
        """
        if frames.shape[1:3] != self._size:
            height, width = self._size
            raise VideoFileError(
                f"The film is {width}x{height}, but frames of {frames.shape[2]}x{frames.shape[1]} came; "
                "give all shots the same size."
            )
        pixels = frames[..., :3].mul(255).round_().clamp_(0, 255).to(device="cpu", dtype=torch.uint8).numpy()
        with self._explained():
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = self.frames, self._time_base
                self._container.mux(self._stream.encode(frame))
                self.frames += 1

    def finish(self) -> Path:
        """Complete the file and give it its name.

        Returns the path given at the start. Raises VideoFileError: no frame was written, or the file cannot be
        completed; the unfinished file is gone then.
        """
        if self.frames == 0:
            self.abort()
            raise VideoFileError(f"{self.path.name} would be empty: the reel holds no frames.")
        with self._explained():
            self._container.mux(self._stream.encode())
            self._container.close()
            self._place(self._part)
        return self.path

    def abort(self) -> None:
        """Close and delete the unfinished file. Does nothing after `finish`."""
        if self._container is None:
            return  # it could not be opened, perhaps because its folder is not one
        with suppress(OSError, av.error.FFmpegError):  # a full disk has no room for the trailer either
            self._container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the disk and the encoder report into one sentence, and leave no file."""
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            self.abort()
            raise cannot_write(self.path, error) from error


def cannot_write(path: Path, error: OSError | av.error.FFmpegError) -> VideoFileError:
    """What disk or encoder reported, in one sentence."""
    reason = (error.strerror or str(error)).rstrip(".")
    return VideoFileError(
        f"Cannot write {path}: {reason}; free some space or choose a folder that can be written. "
        "Everything filmed so far is kept."
    )


def set_metadata(container: Any, metadata: Mapping[str, Any] | None) -> None:
    """Tags of a container that is written; values that are not text are stored as JSON."""
    for key, value in (metadata or {}).items():
        container.metadata[key] = value if isinstance(value, str) else json.dumps(value)


def as_video(path: Path) -> InputImpl.VideoFromFile:
    """The value of a VIDEO output for a finished film; core's Save Video copies its stream without encoding it."""
    return InputImpl.VideoFromFile(str(path))


def workflow_metadata(prompt: Any, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Tags that let a film be dragged back into the editor, under the same names as core's Save Video.

    prompt: a node's hidden `prompt`, or None. extra_pnginfo: a node's hidden `extra_pnginfo`, or None. Returns the
    tags; None when there are none or the user runs ComfyUI with --disable-metadata.
    """
    if args.disable_metadata:
        return None
    tags = dict(extra_pnginfo or {})
    if prompt is not None:
        tags["prompt"] = prompt
    return tags or None
