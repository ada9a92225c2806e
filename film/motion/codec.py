"""Optical flow as pictures, and back.

A displacement (u, v) in pixels becomes a colour: its direction the hue, its length, relative to the frame's diagonal,
the intensity (VideoJAM, section 4.1: m = min(1, |flow| / (sigma * sqrt(H^2 + W^2))), sigma = 0.15). The picture does
not depend on the resolution, but on the frame rate: say which one was used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decode import quoted
from .values import MotionError

__all__ = ["ENCODINGS", "Direction", "Encoding", "FlowCodec", "Padding", "check_flow", "pad_flow", "resize_flow"]

Encoding = Literal["hsv_black", "wheel_white"]
Direction = Literal["forward", "backward_negated"]
Padding = Literal["zero_first", "repeat_first"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

# Colours between red, yellow, green, cyan, blue, magenta and red on the Middlebury wheel (Baker et al., "A Database
# and Evaluation Methodology for Optical Flow", 2007).
_WHEEL = (15, 6, 4, 11, 13, 6)


@dataclass(frozen=True)
class FlowCodec:
    """One way to write flow as RGB.

    encoding: "hsv_black" has hue for the direction and value for the length, so that what stands still is black;
    "wheel_white" the Middlebury wheel over white, where it is white. sigma: the length that saturates, as a share of
    the diagonal, above 0; longer vectors are clipped to it.
    """

    encoding: Encoding = "hsv_black"
    sigma: float = 0.15

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise MotionError(f"Unknown flow encoding {quoted(self.encoding)}; choose one of {', '.join(ENCODINGS)}.")
        if not self.sigma > 0:
            raise MotionError(f"The saturation of flow must be above 0, not {self.sigma:g}.")

    def limit(self, height: int, width: int) -> float:
        """The longest displacement in pixels that is told from a longer one."""
        return self.sigma * math.hypot(height, width)

    def encode(self, flow: Tensor) -> Tensor:
        """Flow [T, 2, H, W] in pixels, right and down positive, to pictures [T, H, W, 3] in 0..1, fp32.

        Raises MotionError for flow of another shape or with NaN in it.
        """
        check_flow(flow)
        flow = flow.float()
        length = (torch.linalg.vector_norm(flow, dim=1) / self.limit(*flow.shape[-2:])).clamp(max=1.0)
        if self.encoding == "hsv_black":
            turn = (torch.atan2(flow[:, 1], flow[:, 0]) + math.pi) / (2 * math.pi)
            return length[..., None] * _hexagon(6.0 * turn)
        # The wheel begins at the opposite direction and steps over its last colour, as is customary.
        angle = torch.atan2(-flow[:, 1], -flow[:, 0])
        place = (angle + math.pi) / (2 * math.pi) * (sum(_WHEEL) - 1)
        return 1.0 - length[..., None] * (1.0 - _hexagon(_interpolate(place, *_wheel_knots(place))))

    def decode(self, pictures: Tensor) -> Tensor:
        """Pictures [T, H, W, 3] in 0..1 to flow [T, 2, H, W] in pixels; the inverse of `encode` up to saturation.

        Colours that `encode` never makes, as a VAE does, give the flow of their hue and intensity.
        """
        if pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise MotionError(f"Pictures of flow are [frames, height, width, 3], not {list(pictures.shape)}.")
        colour = pictures.float().clamp(0.0, 1.0)
        high, low = colour.amax(dim=-1), colour.amin(dim=-1)
        black = self.encoding == "hsv_black"
        # Over black the largest channel is the length; over white the smallest is one minus it.
        length = (high if black else 1.0 - low) * self.limit(*pictures.shape[1:3])
        hue = _hue(colour, high, high - low)
        if black:
            angle = hue / 6.0 * (2 * math.pi) - math.pi
        else:
            places, hues = _wheel_knots(hue)
            place = _interpolate(hue, hues, places).clamp(max=sum(_WHEEL) - 1)
            # Opposite to where the wheel begins: half a turn more.
            angle = place / (sum(_WHEEL) - 1) * (2 * math.pi)
        length = length * (high - low > 0)
        return torch.stack((length * angle.cos(), length * angle.sin()), dim=1)

    def still(self, height: int, width: int) -> Tensor:
        """The picture [1, H, W, 3] of no motion."""
        return torch.full((1, height, width, 3), 0.0 if self.encoding == "hsv_black" else 1.0)


def check_flow(flow: Tensor, size: tuple[int, int] | None = None) -> None:
    """Raise MotionError unless flow is [T, 2, H, W], finite, and of `size` (height, width) if that is given."""
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise MotionError(f"Flow is [frames, 2, height, width], not {list(flow.shape)}.")
    if size is not None and tuple(flow.shape[-2:]) != size:
        raise MotionError(
            f"The flow is {flow.shape[-1]}x{flow.shape[-2]} and the video {size[1]}x{size[0]}: "
            "compute the flow from this video, or resize one of the two."
        )
    if not bool(torch.isfinite(flow).all()):
        raise MotionError("There is NaN or infinity in the flow: compute it anew in fp32.")


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow [T, 2, H, W] at another `size` (height, width), its vectors scaled with the picture."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    resized = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
    return resized * flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)


def pad_flow(flow: Tensor, padding: Padding = "zero_first") -> Tensor:
    """The T - 1 flows of a video [T - 1, 2, H, W] as T, one for each frame.

    "zero_first": before the first frame nothing has moved, so entry i is the motion from frame i - 1 to i, and the
    first latent frame of a causal VAE is a known constant. "repeat_first": entry 0 is that of the first pair.
    """
    return torch.cat([torch.zeros_like(flow[:1]) if padding == "zero_first" else flow[:1], flow])


def _hexagon(hue: Tensor) -> Tensor:
    """The pure colour [..., 3] of a hue in 0..6: red, yellow, green, cyan, blue, magenta, red."""
    steps = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    k = torch.remainder(steps + hue[..., None], 6.0)
    return 1.0 - torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def _hue(colour: Tensor, high: Tensor, chroma: Tensor) -> Tensor:
    """The hue in 0..6 of colours [..., 3] whose largest channel is `high` and that is `chroma` above the smallest."""
    red, green, blue = colour.unbind(-1)
    width = chroma.clamp_min(torch.finfo(torch.float32).tiny)
    by_red = torch.remainder((green - blue) / width, 6.0)
    by_green, by_blue = 2.0 + (blue - red) / width, 4.0 + (red - green) / width
    return torch.where(high == red, by_red, torch.where(high == green, by_green, by_blue))


def _wheel_knots(like: Tensor) -> tuple[Tensor, Tensor]:
    """Places on the wheel in colours, and the hues there in 0..6: between them both rise evenly."""
    places = torch.tensor([0, *_WHEEL], device=like.device).cumsum(0).float()
    return places, torch.arange(len(_WHEEL) + 1, device=like.device).float()


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The value at x of the line through the points (xs, ys), xs rising."""
    index = (torch.searchsorted(xs, x.contiguous(), right=True) - 1).clamp(0, len(xs) - 2)
    share = (x - xs[index]) / (xs[index + 1] - xs[index])
    return ys[index] + share * (ys[index + 1] - ys[index])
