"""A plot of how a cut was found: the collage's share of each frame, the cut, and the frames before it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from ..pixels import from_pil
from .trim import Cut

__all__ = ["plot_cut"]

SIZE = (640, 240)
MARGIN = 32
_PAPER, _INK, _GREY, _DROPPED, _CURVE, _CUT = "white", "black", "#b0b0b0", "#ffe3d6", "#1f6fb2", "#d1401f"


def plot_cut(cut: Cut) -> torch.Tensor:
    """The traces of a cut over the frames, [1, 240, 640, 3] in 0..1. Frames before the cut are shaded.

    A cut by the fixed rule, which looked at nothing, gives the same picture without a curve.
    """
    picture = Image.new("RGB", SIZE, _PAPER)
    draw = ImageDraw.Draw(picture)
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN
    frames = max(len(cut.traces), cut.index + 1, 2)

    def point(frame: float, share: float) -> tuple[float, float]:
        return MARGIN + frame / (frames - 1) * width, MARGIN + (1 - min(max(share, 0.0), 1.0)) * height

    border = (*point(0, 1), *point(frames - 1, 0))
    # The cut lies between the last frame of the collage and the first of the shot.
    if cut.index:
        draw.rectangle((*point(0, 1), *point(cut.index - 0.5, 0)), fill=_DROPPED)
        draw.line((*point(cut.index - 0.5, 1), *point(cut.index - 0.5, 0)), fill=_CUT, width=2)
    draw.rectangle(border, outline=_GREY)
    if cut.traces:
        draw.line([point(frame, share) for frame, share in enumerate(cut.traces)], fill=_CURVE, width=2)
        for frame, share in enumerate(cut.traces):
            x, y = point(frame, share)
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_CURVE)
    draw.text((MARGIN, 10), f"collage in each frame: {cut.status}, content from frame {cut.index}", fill=_INK)
    for frame in range(0, frames, max(1, (frames - 1) // 12)):
        draw.text((point(frame, 0)[0] - 4, SIZE[1] - MARGIN + 6), str(frame), fill=_INK)
    for share in (0, 1):
        draw.text((12, point(0, share)[1] - 6), str(share), fill=_INK)
    return from_pil(picture)[None]
