"""Clips of real footage: a folder of videos, each with its caption in a text file of the same name beside it.

Every video is brought to the dataset's frame rate and cut into clips of its length where no shot changes; what hardly
moves, or moves like noise, is left out. Flow comes from RAFT, or from matched blocks without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...film.metrics.cuts import find_cuts, spans_of
from ...film.metrics.frame_stats import FrameStats, Watcher
from ...film.video_reader import VideoReader, VideoReadError
from ...film.video_reader import list_videos as film_files
from ...host.media.optical_flow import flow_between
from .data import MotionClip, MotionDataError, MotionSource, MotionSpec

__all__ = ["list_videos", "video_clips"]

LEAST_MOTION, MOST_MOTION = 0.1, 8.0
"""Mean motion of a clip in % of the diagonal per frame, outside of which it is left out."""
_PIECE = 16


def list_videos(folder: Path) -> list[Path]:
    """The videos of a folder that have a caption beside them, in order.

    Raises MotionDataError if there are none, or if a video has no caption.
    """
    videos = film_files(folder)
    if not videos:
        raise MotionDataError(f"There are no videos in {folder}: put MP4 or other video files there.")
    for video in videos:
        if not video.with_suffix(".txt").exists():
            raise MotionDataError(f"{video.name} has no caption: write {video.with_suffix('.txt').name} beside it.")
    return videos


def video_clips(
    videos: list[Path],
    spec: MotionSpec,
    estimator: Any = None,
    *,
    most: int = 0,
    say: Callable[[str], None] = print,
) -> list[MotionSource]:
    """Clips of all videos. estimator: as of flow_between. most: clips of each video, 0 for all.

    A file that is no video is left out and named. Raises MotionDataError if nothing is left.
    """
    sources: list[MotionSource] = []
    for video in videos:
        watcher = Watcher()
        try:
            for piece in _stream(video, spec):
                watcher.see(piece)
            caption = _caption(video)
        except MotionDataError as error:
            say(f"{video.name} left out: {error}")
            continue
        starts = _starts(watcher.signs, spec.frames)
        chosen = starts if not most else starts[:: max(len(starts) // most, 1)][:most]
        say(f"{video.name}: {len(watcher.signs)} frames, {len(chosen)} of {len(starts)} clips in motion")
        told = f"{video.stat().st_size} {video.name} {spec} {'blocks' if estimator is None else 'network'}"
        for start in chosen:
            mark = hashlib.sha256(f"{told} {start} {caption}".encode()).hexdigest()
            sources.append(
                MotionSource(f"{video.stem}-{start:06}", mark, _maker(video, start, spec, estimator, caption))
            )
    if not sources:
        raise MotionDataError("No video holds a clip of this length in which something moves: take longer ones.")
    return sources


def _maker(video: Path, start: int, spec: MotionSpec, estimator: Any, caption: str) -> Callable[[], MotionClip]:
    def make() -> MotionClip:
        at, kept = 0, []
        for piece in _stream(video, spec):
            kept += [frame for index, frame in enumerate(piece, at) if start <= index < start + spec.frames]
            at += len(piece)
            if len(kept) == spec.frames:
                break
        frames = torch.stack(kept)
        flow = flow_between(frames, estimator)
        if spec.direction == "backward_negated":
            flow = -flow_between(frames.flip(0), estimator).flip(0)
        return MotionClip(frames, flow, caption)

    return make


def _starts(stats: list[FrameStats], frames: int) -> list[int]:
    """First frames of clips one after the other within each shot, of those in which something moves."""
    found = []
    for span in spans_of(find_cuts(stats), len(stats)):
        for start in range(span.start, span.stop - frames + 1, frames):
            inside = [each.motion for each in stats[start + 1 : start + frames]]
            if LEAST_MOTION <= sum(inside) / len(inside) <= MOST_MOTION:
                found.append(start)
    return found


def _caption(video: Path) -> str:
    try:
        return video.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MotionDataError(f"{video.with_suffix('.txt').name} is no text in UTF-8: write it anew.") from error


def _stream(video: Path, spec: MotionSpec) -> Iterator[torch.Tensor]:
    """The video at the dataset's frame rate, scaled to cover its size and cut around the centre, [t, H, W, 3]."""
    try:
        with VideoReader(video) as reader:
            piece = []
            for frame in reader.at_rate(spec.fps):
                piece.append(_covering(frame.pixels(), spec))
                if len(piece) == _PIECE:
                    yield torch.stack(piece)
                    piece = []
            if piece:
                yield torch.stack(piece)
    except VideoReadError as error:
        raise MotionDataError(str(error)) from error


def _covering(picture: torch.Tensor, spec: MotionSpec) -> torch.Tensor:
    height, width = picture.shape[:2]
    scale = max(spec.height / height, spec.width / width)
    size = max(round(height * scale), spec.height), max(round(width * scale), spec.width)
    pixels = picture.movedim(-1, 0)[None]
    if size != (height, width):
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - spec.height) // 2, (size[1] - spec.width) // 2
    return pixels[0, :, top : top + spec.height, left : left + spec.width].movedim(0, -1).clamp(0, 1)
