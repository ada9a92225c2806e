"""The picture of a motion report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .metrics import MotionReport

__all__ = ["plot_motion"]

_INK, _GREY, _FAINT, _COLOURS = "black", "#909090", "#e4e4e4", ("#1f6fb2", "#d1401f")
_LEFT, _WIDTH, _TOP, _HEIGHT, _STEP = 64, 620, 36, 180, 236


def plot_motion(report: MotionReport) -> Image.Image:
    """A report as 1080 x 520 RGB: speed and interpolation error over time, and the table."""
    picture = Image.new("RGB", (1080, 520), "white")
    draw = ImageDraw.Draw(picture)
    curves = (
        ("speed, % of the diagonal per second", report.speeds),
        ("error of each frame interpolated from its neighbours, % of the range", [100 * e for e in report.errors]),
    )
    for row, (title, values) in enumerate(curves):
        top = _TOP + row * _STEP
        _curve(draw, (_LEFT, top, _LEFT + _WIDTH, top + _HEIGHT), title, values, _COLOURS[row])
    seconds = report.frames / report.fps
    for share in (0.0, 0.5, 1.0):
        x = _LEFT + share * _WIDTH
        draw.text((x, _TOP + _STEP + _HEIGHT + 6), f"{share * seconds:.1f} s", fill=_GREY, anchor="ma")
    for row, (name, value) in enumerate(report.figures().items()):
        said = str(value) if isinstance(value, int) else "-" if math.isnan(value) else f"{value:.3g}"
        draw.text((720, _TOP + row * 24), name, fill=_INK)
        draw.text((1056, _TOP + row * 24), said, fill=_INK, anchor="ra")
    return picture


def _curve(
    draw: ImageDraw.ImageDraw,
    panel: tuple[int, int, int, int],
    title: str,
    values: Sequence[float],
    colour: str,
) -> None:
    left, top, right, bottom = panel
    high = max([*values, 0.0]) or 1.0
    draw.text((left, top - 16), title, fill=_INK)
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        draw.line((left, y, right, y), fill=_FAINT)
        draw.text((left - 6, y), f"{share * high:.3g}", fill=_INK, anchor="rm")
    points = [
        (left + (index + 0.5) / len(values) * (right - left), bottom - value / high * (bottom - top))
        for index, value in enumerate(values)
    ]
    if len(points) > 1:
        draw.line(points, fill=colour, width=2)
    draw.rectangle(panel, outline=_GREY)
