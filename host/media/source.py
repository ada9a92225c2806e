"""Footage: a reel, a video file or a batch of pictures as one stream that can be read repeatedly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from comfy import model_management
from comfy.sd import VAE
from comfy_api.latest import Input, InputImpl
from torch import Tensor

from ...film.dual_cache import Picture, stored_pictures
from ...film.metrics import MetricsError, Span
from ...film.picture_reader import on_white
from ...film.reel.groups import Carrier, KeyframeGroup, ShownKeyframesGroup
from ...film.reel.reel import Reel
from ...film.storyboard.shot import Shot
from ...film.video_reader import VideoReader
from .decode import film_frames

__all__ = ["Footage", "footage_of", "pick"]

_PIECE = 16
"""Frames alive at once."""


@dataclass(frozen=True, eq=False)
class Footage:
    """A video of any length.

    fps: frames a second. stream: gives it from the start, [t, H, W, 3] in 0..1, few frames at a time. frames: how many,
    size: width and height; None where it is unknown before decoding. spans, shots: of a reel; empty for other videos.
    shown: for each shot of a reel, pictures [H, W, 3] of the keyframes that conditioned it and of the others, where it
    was filmed with any.
    """

    fps: float
    stream: Callable[[], Iterator[Tensor]]
    frames: int | None
    size: tuple[int, int] | None = None
    spans: tuple[Span, ...] = ()
    shots: tuple[Shot, ...] = ()
    shown: Callable[[int], tuple[list[Tensor], list[Tensor]] | None] = lambda shot: None


def footage_of(
    images: Tensor | None, fps: float, video: Input.Video | None, reel: Reel | None, vae: VAE | None
) -> Footage:
    """The one of the three that is connected. fps: of the images. Raises MetricsError."""
    given = [name for name, value in (("images", images), ("video", video), ("reel", reel)) if value is not None]
    if len(given) != 1:
        found = "nothing is" if not given else f"{' and '.join(given)} are"
        raise MetricsError(f"Connect one video to measure, a reel, a video or images: {found} connected.")
    if reel is not None:
        return _of_reel(reel, vae)
    if video is not None:
        return _of_video(video)
    assert images is not None
    return _of_images(images, fps)


def pick(footage: Footage, positions: tuple[int, ...], see: Callable[[Tensor], None] | None = None) -> Tensor:
    """The frames at rising positions, [n, H, W, 3] fp32 on the CPU. see: called with every piece of the video on the
    way, to its end; without, the video is left after the last position.
    """
    wanted = iter(positions)
    next_wanted = next(wanted, None)
    picked: list[Tensor] = []
    at = 0
    for piece in footage.stream():
        model_management.throw_exception_if_processing_interrupted()
        if see is not None:
            see(piece)
        while next_wanted is not None and next_wanted < at + len(piece):
            picked.append(piece[next_wanted - at, ..., :3].to("cpu", torch.float32, copy=True))
            next_wanted = next(wanted, None)
        at += len(piece)
        if see is None and next_wanted is None:
            break
    return torch.stack(picked) if picked else torch.zeros(0, 1, 1, 3)


def _of_images(images: Tensor, fps: float) -> Footage:
    if images.ndim != 4 or images.shape[-1] < 3:
        raise MetricsError(f"The images must be RGB [frames, height, width, 3], not {list(images.shape)}.")
    size = int(images.shape[2]), int(images.shape[1])
    return Footage(fps, lambda: (on_white(piece) for piece in images.split(_PIECE)), images.shape[0], size)


def _of_video(video: Input.Video) -> Footage:
    window = video.get_active_trim_window() if isinstance(video, InputImpl.VideoFromFile) else (1.0, 0.0)
    if window != (0.0, 0.0):
        # Made in memory, or trimmed, or another pack's: only core can count its frames.
        parts = video.get_components()
        return _of_images(parts.images, float(parts.frame_rate))

    fps = float(video.get_frame_rate())

    def stream() -> Iterator[Tensor]:
        with VideoReader(video.get_stream_source()) as reader:
            piece: list[Tensor] = []
            for frame in reader.at_rate(fps):
                piece.append(frame.pixels())
                if len(piece) == _PIECE:
                    yield torch.stack(piece)
                    piece = []
            if piece:
                yield torch.stack(piece)

    return Footage(fps, stream, None)


def _of_reel(reel: Reel, vae: VAE | None) -> Footage:
    if vae is None:
        raise MetricsError("A reel is decoded to be measured: connect the VAE that it was filmed with.")
    if not reel.shots:
        raise MetricsError("The reel is empty: film a shot first.")
    spans: list[Span] = []
    for shot in reel.shots:
        start = spans[-1].stop if spans else 0
        spans.append(Span(start, start + shot.frames))
    return Footage(
        reel.layout.fps,
        lambda: film_frames(reel, vae),
        reel.frames,
        (reel.layout.width, reel.layout.height),
        tuple(spans),
        tuple(shot.shot for shot in reel.shots),
        lambda shot: _shown(reel, shot),
    )


def _shown(reel: Reel, shot: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """Pictures of the keyframes that conditioned a shot, and of the others in the bank before it."""
    shown_to = ShownKeyframesGroup.of(reel.shots[shot])
    uids = set(shown_to.uids) if shown_to else set()
    if not uids:
        return None
    pictures: dict[str, Picture] = {}
    carriers: list[Carrier] = [*reel.shots[:shot], *(edit for edit in reel.edits if edit.after <= shot)]
    for carrier in carriers:
        if group := KeyframeGroup.of(carrier):
            pictures |= stored_pictures(group.tensors(), group.meta)
    shown = [picture.image() for uid, picture in pictures.items() if uid in uids]
    others = [picture.image() for uid, picture in pictures.items() if uid not in uids]
    return (shown, others) if shown else None
