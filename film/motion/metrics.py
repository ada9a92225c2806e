"""How much a video moves, how smoothly, and how far a predicted motion is from the real one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import check_flow
from .values import MotionError

__all__ = ["FlowErrors", "MotionMeter", "MotionReport", "flow_errors", "measure_flow"]

_TOP = 0.05
# Huang et al., "VBench", 2024: a pair of frames moves if the fastest 5 % of its pixels move by 6 pixels of a frame
# 256 pixels high and wide at 8 frames per second.
_DYNAMIC_PIXELS, _DYNAMIC_SIDE, _DYNAMIC_FPS = 6.0, 256.0, 8.0


@dataclass(frozen=True)
class FlowErrors:
    """A predicted flow against the true one.

    endpoint: mean length of the difference in pixels. trivial: that of predicting no motion, the mean true length.
    direction: mean angle in degrees, 0..180, over pixels that truly move, NaN where none does. moving: their share.
    """

    endpoint: float
    trivial: float
    direction: float
    moving: float


@dataclass(frozen=True)
class MotionReport:
    """Motion of one video.

    speed: mean speed in % of the diagonal per second. fast: that of the fastest 5 % of pixels. dynamic_degree: share of
    pairs of frames that count as moving by VBench's rule, 0..1. acceleration: mean change of a pixel's flow from one
    pair to the next, relative to the mean flow, 0 for uniform motion. smoothness: 1 minus the mean absolute error of
    every frame interpolated from its neighbours along the motion, 0..1. speeds, errors: the curves over time, one value
    a pair and one an inner frame. predicted: of a predicted motion against this one, None without.
    """

    frames: int
    fps: float
    speed: float
    fast: float
    dynamic_degree: float
    acceleration: float
    smoothness: float
    speeds: tuple[float, ...]
    errors: tuple[float, ...]
    predicted: FlowErrors | None = None

    def figures(self) -> dict[str, float | int]:
        """Everything with one value, in the order of the table."""
        single: dict[str, float | int] = {
            "frames": self.frames,
            "fps": self.fps,
            "speed, % of the diagonal per second": self.speed,
            "speed of the fastest 5 %": self.fast,
            "dynamic degree": self.dynamic_degree,
            "acceleration, relative": self.acceleration,
            "smoothness": self.smoothness,
        }
        if self.predicted is not None:
            single |= {
                "predicted motion: endpoint error, pixels": self.predicted.endpoint,
                "no motion: endpoint error, pixels": self.predicted.trivial,
                "predicted motion: direction error, degrees": self.predicted.direction,
            }
        return single


def flow_errors(predicted: Tensor, true: Tensor, least: float = 0.02) -> FlowErrors:
    """Compare flows [T, 2, H, W] in pixels.

    least: length from which a pixel moves, as a share of 0.15 of the diagonal. Raises MotionError if they differ in
    shape.
    """
    check_flow(predicted)
    check_flow(true)
    if predicted.shape != true.shape:
        raise MotionError(
            f"The predicted motion is {_said(predicted)} and the video's {_said(true)}: decode both at one size."
        )
    length = torch.linalg.vector_norm(true, dim=1)
    moving = length > least * 0.15 * math.hypot(*true.shape[-2:])
    cosine = F.cosine_similarity(predicted, true, dim=1).clamp(-1.0, 1.0)
    degrees = torch.rad2deg(torch.acos(cosine))[moving]
    return FlowErrors(
        float(torch.linalg.vector_norm(predicted - true, dim=1).mean()),
        float(length.mean()),
        float(degrees.mean()) if len(degrees) else math.nan,
        float(moving.float().mean()),
    )


class MotionMeter:
    """Takes a video frame by frame, so that its length costs no memory beyond a few numbers a frame.

    fps: frames per second, above 0.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._frames: list[Tensor] = []
        self._flow: Tensor | None = None
        self._count = 0
        self._lengths: list[float] = []
        self._fast: list[float] = []
        self._changes: list[float] = []
        self._errors: list[float] = []
        self._compared: list[FlowErrors] = []
        self._size = (0, 0)

    def begin(self, frame: Tensor) -> None:
        """The first frame [H, W, 3] in 0..1."""
        self._frames, self._count, self._size = [frame], 1, (int(frame.shape[0]), int(frame.shape[1]))

    def add(self, frame: Tensor, flow: Tensor, predicted: Tensor | None = None) -> None:
        """The next frame [H, W, 3] in 0..1 and the flow [2, H, W] in pixels that leads to it from the one before.

        predicted: a model's own flow of this pair. Raises MotionError for flow of another size or with NaN.
        """
        check_flow(flow[None], self._size)
        length = torch.linalg.vector_norm(flow, dim=0).flatten()
        self._lengths.append(float(length.mean()))
        self._fast.append(float(length.topk(max(1, round(_TOP * len(length)))).values.mean()))
        if predicted is not None:
            self._compared.append(flow_errors(predicted[None], flow[None]))
        if self._flow is not None:
            self._changes.append(float(torch.linalg.vector_norm(flow - self._flow, dim=0).mean()))
            self._errors.append(_interpolation_error(self._frames[0], self._frames[1], frame, (self._flow + flow) / 2))
        self._frames, self._flow, self._count = [self._frames[-1], frame], flow, self._count + 1

    def report(self) -> MotionReport:
        """What was measured. Raises MotionError for fewer than two frames."""
        if self._count < 2:
            raise MotionError("Motion needs at least two frames: connect a video.")
        height, width = self._size
        threshold = _DYNAMIC_PIXELS * min(height, width) / _DYNAMIC_SIDE * _DYNAMIC_FPS / self.fps
        rate = 100.0 * self.fps / math.hypot(height, width)
        speed = _mean(self._lengths)
        return MotionReport(
            frames=self._count,
            fps=self.fps,
            speed=speed * rate,
            fast=_mean(self._fast) * rate,
            dynamic_degree=_mean([float(fast > threshold) for fast in self._fast]),
            acceleration=_mean(self._changes) / speed if speed > 0 else 0.0,
            smoothness=1.0 - _mean(self._errors),
            speeds=tuple(length * rate for length in self._lengths),
            errors=tuple(self._errors),
            predicted=_joined(self._compared) if self._compared else None,
        )


def measure_flow(frames: Tensor, flow: Tensor, fps: float, predicted: Tensor | None = None) -> MotionReport:
    """Measure a video that is there as a whole.

    frames: [T, H, W, 3] in 0..1, T at least 2. flow: [T - 1, 2, H, W] in pixels from each frame to the next. fps:
    frames per second, above 0. predicted: a model's own motion [T - 1, 2, H, W], compared with flow. Raises MotionError
    for a still picture and for flow of another size or length.
    """
    for each in (flow,) if predicted is None else (flow, predicted):
        if len(frames) > 1 and len(each) != len(frames) - 1:
            raise MotionError(f"{len(frames)} frames have {len(frames) - 1} flows between them, not {len(each)}.")
    meter = MotionMeter(fps)
    meter.begin(frames[0])
    for index in range(len(frames) - 1):
        meter.add(frames[index + 1], flow[index], None if predicted is None else predicted[index])
    return meter.report()


def _joined(parts: Sequence[FlowErrors]) -> FlowErrors:
    """The errors of several pairs as one, directions weighed by how much moves."""
    moving = [part for part in parts if part.moving > 0]
    weight = sum(part.moving for part in moving)
    direction = sum(part.direction * part.moving for part in moving) / weight if moving else math.nan
    return FlowErrors(
        _mean([part.endpoint for part in parts]),
        _mean([part.trivial for part in parts]),
        direction,
        _mean([part.moving for part in parts]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _interpolation_error(before: Tensor, frame: Tensor, after: Tensor, flow: Tensor) -> float:
    """Mean absolute error in 0..1 of a frame [H, W, 3] against its neighbours' average, brought to it along the flow.

    As VBench's smoothness does with a learned interpolation. flow [2, H, W]: the mean of the two pairs', taken for
    uniform and for that of the middle frame's grid.
    """
    first, middle, last = (each.movedim(-1, 0).float() for each in (before, frame, after))
    return float(((_sample(first, -flow) + _sample(last, flow)) / 2 - middle).abs().mean())


def _sample(picture: Tensor, offset: Tensor) -> Tensor:
    """The picture [C, H, W] read at every pixel's place plus offset [2, H, W] in pixels."""
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack(((x + offset[0] + 0.5) / width * 2 - 1, (y + offset[1] + 0.5) / height * 2 - 1), dim=-1)
    return F.grid_sample(picture[None], places[None], align_corners=False, padding_mode="border")[0]


def _said(flow: Tensor) -> str:
    return f"{flow.shape[0]} flows of {flow.shape[-1]}x{flow.shape[-2]}"
