"""Crops of a frame for an image encoder: a box on white, and windows where no box is given."""

from __future__ import annotations

import torch

from ..pixels import Box, Reference, from_pil

__all__ = ["crop_on_white", "reference_on_white", "windows"]

PARTS = (1, 2, 3)
"""Windows are a whole, a half and a third of the frame's shorter side wide."""


def crop_on_white(frame: torch.Tensor, box: Box) -> torch.Tensor:
    """A box of a frame [H, W, 3], centred on the smallest white square around it, so that nothing is cut off when the
    image model crops to a square: [s, s, 3] on the CPU.
    """
    return _square(frame[box.y : box.bottom, box.x : box.right, :3].to("cpu", torch.float32))


def reference_on_white(reference: Reference) -> torch.Tensor:
    """A reference's kept part on a white square, as `crop_on_white` shows frames: [s, s, 3] in 0..1."""
    pixels = from_pil(reference.picture)
    box = reference.crop_box(pad=0)
    kept = pixels[box.y : box.bottom, box.x : box.right]
    return _square(kept[..., :3] * kept[..., 3:] + (1.0 - kept[..., 3:]))


def windows(width: int, height: int) -> tuple[Box, ...]:
    """Squares that cover a frame, each half over its neighbour, in three sizes: where to look without a detector."""
    shorter = min(width, height)
    found: list[Box] = []
    for parts in PARTS:
        side = max(1, shorter // parts)
        for top in _starts(height, side):
            found.extend(Box(left, top, side, side) for left in _starts(width, side))
    return tuple(dict.fromkeys(found))


def _starts(length: int, side: int) -> list[int]:
    """Evenly spread left edges, from the first to the last possible, at most half a side apart."""
    room = length - side
    steps = -(-room // max(1, side // 2))
    return [room * step // steps for step in range(steps + 1)] if steps else [0]


def _square(picture: torch.Tensor) -> torch.Tensor:
    height, width = picture.shape[:2]
    side = max(height, width)
    square = torch.ones(side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
