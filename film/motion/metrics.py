"""How much a video moves, how smoothly, and how far a predicted motion is from the real one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import check_flow
from .values import MotionError

__all__ = ["FlowErrors", "MotionReport", "flow_errors", "interpolation_error", "measure_flow"]

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


def measure_flow(frames: Tensor, flow: Tensor, fps: float, predicted: Tensor | None = None) -> MotionReport:
    """Measure a video.

    frames: [T, H, W, 3] in 0..1, T at least 2. flow: [T - 1, 2, H, W] in pixels from each frame to the next. fps:
    frames per second, above 0. predicted: a model's own motion [T - 1, 2, H, W], compared with flow. Raises MotionError
    for a still picture and for flow of another size.
    """
    if len(frames) < 2:
        raise MotionError("Motion needs at least two frames: connect a video.")
    check_flow(flow, tuple(frames.shape[1:3]))  # type: ignore[arg-type]
    if len(flow) != len(frames) - 1:
        raise MotionError(f"{len(frames)} frames have {len(frames) - 1} flows between them, not {len(flow)}.")
    height, width = flow.shape[-2:]
    diagonal = math.hypot(height, width)
    length = torch.linalg.vector_norm(flow, dim=1).flatten(1)
    top = length.topk(max(1, round(_TOP * length.shape[1])), dim=1).values.mean(dim=1)
    threshold = _DYNAMIC_PIXELS * min(height, width) / _DYNAMIC_SIDE * _DYNAMIC_FPS / fps
    rate = 100.0 * fps / diagonal
    mean = float(length.mean())
    change = torch.linalg.vector_norm(flow[1:] - flow[:-1], dim=1).mean() if len(flow) > 1 else torch.zeros(())
    errors = interpolation_error(frames, flow)
    return MotionReport(
        frames=len(frames),
        fps=fps,
        speed=mean * rate,
        fast=float(top.mean()) * rate,
        dynamic_degree=float((top > threshold).float().mean()),
        acceleration=float(change) / mean if mean > 0 else 0.0,
        smoothness=1.0 - (sum(errors) / len(errors) if errors else 0.0),
        speeds=tuple(float(value) * rate for value in length.mean(dim=1)),
        errors=tuple(errors),
        predicted=None if predicted is None else flow_errors(predicted, flow),
    )


def interpolation_error(frames: Tensor, flow: Tensor) -> list[float]:
    """Mean absolute error in 0..1 of each inner frame against its neighbours' average, brought to it along the flow.

    As VBench's smoothness does with a learned interpolation. frames: [T, H, W, 3]; flow: [T - 1, 2, H, W].
    """
    pictures = frames.movedim(-1, 1).float()
    errors = []
    for index in range(1, len(frames) - 1):
        # Motion is taken for uniform over the two pairs, and its grid for that of the frame between.
        across = (flow[index - 1] + flow[index]) / 2
        before = _sample(pictures[index - 1], -across)
        after = _sample(pictures[index + 1], across)
        errors.append(float(((before + after) / 2 - pictures[index]).abs().mean()))
    return errors


def _sample(picture: Tensor, offset: Tensor) -> Tensor:
    """The picture [C, H, W] read at every pixel's place plus offset [2, H, W] in pixels."""
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack(((x + offset[0] + 0.5) / width * 2 - 1, (y + offset[1] + 0.5) / height * 2 - 1), dim=-1)
    return F.grid_sample(picture[None], places[None], align_corners=False, padding_mode="border")[0]


def _said(flow: Tensor) -> str:
    return f"{flow.shape[0]} flows of {flow.shape[-1]}x{flow.shape[-2]}"
