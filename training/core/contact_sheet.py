"""A contact sheet, for a check of a dataset before it is trained on."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

_WIDE, _GAP, _LINE = 256, 6, 12
_CHARACTERS = 165


@dataclass(frozen=True)
class Row:
    """A clip's name, its caption, and pictures of it."""

    name: str
    text: str
    pictures: Sequence[Image.Image]


def draw_sheet(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a row of pictures and the caption below for every clip."""
    strips = [_strip(row) for row in rows]
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), "white")
    y = 0
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    sheet.save(path)


def _strip(row: Row) -> Image.Image:
    high = max(round(_WIDE * picture.height / picture.width) for picture in row.pictures)
    # Pillow's own font knows Latin letters only.
    lines = textwrap.wrap(f"{row.name}: {row.text}".encode("ascii", "replace").decode(), _CHARACTERS)
    strip = Image.new("RGB", ((_WIDE + _GAP) * len(row.pictures), high + _LINE * len(lines) + 2 * _GAP), "gainsboro")
    for column, picture in enumerate(row.pictures):
        size = (_WIDE, round(_WIDE * picture.height / picture.width))
        strip.paste(picture.resize(size, Image.Resampling.BILINEAR), (column * (_WIDE + _GAP), 0))
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((_GAP, high + _GAP + number * _LINE), line, fill="black")
    return strip
