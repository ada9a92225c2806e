"""Statistics of every frame of a streamed video: a few numbers, so that length costs no memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .block_motion import block_motion

__all__ = ["FrameStats", "Watcher", "colour_distance", "lab", "small"]

WORKING_SIDE = 128
FASTEST = 0.05
"""Share of the blocks that `fastest` is the mean of, as in VBench's dynamic degree."""


@dataclass(frozen=True)
class FrameStats:
    """One frame.

    difference: mean absolute difference of the values to the frame before, 0..1; 0 for the first frame. jump: what is
    left of it when things may move, in brightness or, if that is more, a hundredth of the distance of the mean colours.
    motion: mean length of the flow from the frame before, fastest: the mean of its fastest 5 %, both in % of the
    frame's diagonal. colour: mean CIELAB (L 0..100, a, b). contrast: standard deviation of L.
    """

    difference: float
    jump: float
    motion: float
    fastest: float
    colour: tuple[float, float, float]
    contrast: float


@dataclass
class Watcher:
    """Takes a video piece by piece. signs: of the frames so far."""

    signs: list[FrameStats] = field(default_factory=list)
    _before: torch.Tensor | None = None

    def see(self, frames: torch.Tensor) -> None:
        """Note the next frames: [t, H, W, 3] in 0..1, all of one size."""
        for picture in small(frames):
            self.signs.append(_signs(picture, self._before))
            self._before = picture


def small(frames: torch.Tensor) -> torch.Tensor:
    """Frames [t, H, W, C] as [t, 3, h, w] fp32 on the CPU, the longer side at most 128 pixels, never enlarged."""
    height, width = frames.shape[1:3]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = max(2, round(height * scale)), max(2, round(width * scale))
    pixels = frames[..., :3].to("cpu", torch.float32).clamp(0, 1).movedim(-1, 1)
    return F.interpolate(pixels, size=size, mode="area") if size != (height, width) else pixels.contiguous()


def lab(pictures: torch.Tensor) -> torch.Tensor:
    """sRGB [..., 3, h, w] in 0..1 to CIELAB under D65: L in 0..100, a and b around 0."""
    linear = torch.where(pictures <= 0.04045, pictures / 12.92, ((pictures + 0.055) / 1.055).clamp_min(0) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    white = to_xyz.sum(dim=1)
    xyz = torch.einsum("oc,...chw->...ohw", to_xyz / white[:, None], linear)
    curve = torch.where(xyz > 216 / 24389, xyz.clamp_min(0) ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
    x, y, z = curve.unbind(dim=-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-3)


def colour_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """CIE76 distance of two CIELAB colours. About 2 is just noticeable side by side."""
    return sum((a - b) ** 2 for a, b in zip(one, other)) ** 0.5


def _signs(picture: torch.Tensor, before: torch.Tensor | None) -> FrameStats:
    colours = lab(picture)
    lightness, a, b = (float(channel.mean()) for channel in colours)
    contrast = float(colours[0].std(correction=0))
    difference = jump = motion = fastest = 0.0
    if before is not None:
        difference = float((picture - before).abs().mean())
        flow, left = block_motion(before.mean(dim=0), picture.mean(dim=0))
        diagonal = (picture.shape[1] ** 2 + picture.shape[2] ** 2) ** 0.5
        lengths = flow.norm(dim=0).flatten() * (100 / diagonal)
        turn = colour_distance((lightness, a, b), lab(before).mean(dim=(1, 2)).tolist())
        jump, motion = max(float(left.mean()), turn / 100), float(lengths.mean())
        fastest = float(lengths.topk(max(1, round(FASTEST * lengths.numel()))).values.mean())
    return FrameStats(difference, jump, motion, fastest, (lightness, a, b), contrast)
