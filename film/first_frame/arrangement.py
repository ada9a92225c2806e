"""An arrangement made by hand, as plain text: the order of the references and a box for each.

    canvas 1280 x 720
    2: 0 0 640 360
    1: 0 360 320 360

A line for each reference, in the order in which they are laid out and drawn (later ones over earlier ones): the
reference's number, from 1, and its box (left, top, width, height) in pixels of the canvas that the first line names. On
a canvas of another size the boxes grow or shrink with it. A number alone, without a box, gives the order only. The
canvas widget writes this text, and it can be typed; an empty text arranges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..pixels import Box, PixelError
from .layouts import MAX_REFERENCES
from .values import FirstFrameError

__all__ = ["Arrangement", "parse_arrangement"]

_CANVAS = re.compile(r"canvas\s+(\d{1,5})\s*x\s*(\d{1,5})", re.ASCII | re.IGNORECASE)
_PLACE = re.compile(r"(\d{1,4})(?:\s*:\s*(-?\d{1,6})\s+(-?\d{1,6})\s+(\d{1,6})\s+(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class Arrangement:
    """References in the order of their lines.

    places: index of a reference, from 0, and its box or None. canvas: (width, height) that the boxes are for, None
    where there are no boxes.
    """

    places: tuple[tuple[int, Box | None], ...] = ()
    canvas: tuple[int, int] | None = None

    def order(self, count: int) -> tuple[int, ...]:
        """Indices of `count` references as they are to be laid out: those with a line first, then the others."""
        named = [index for index, _ in self.places if index < count]
        return (*named, *(index for index in range(count) if index not in named))

    def boxes(self, count: int, width: int, height: int) -> tuple[Box, ...]:
        """The boxes of `count` references on a canvas of this size, in `order`.

        Lines of references that are not connected any more do not count. Raises FirstFrameError for a reference without
        a box.
        """
        known = {index: box for index, box in self.places if box is not None}
        boxes = []
        for index in self.order(count):
            if index not in known:
                raise FirstFrameError(
                    f"The canvas has no box for reference {index + 1}: add the line "
                    f'"{index + 1}: left top width height", or choose another layout than manual.'
                )
            assert self.canvas is not None  # where there is a box there is a canvas
            boxes.append(_scaled(known[index], width / self.canvas[0], height / self.canvas[1]))
        return tuple(boxes)


def parse_arrangement(text: str) -> Arrangement:
    """Read the text. Raises FirstFrameError that names the line, for anything that is no arrangement."""
    canvas: tuple[int, int] | None = None
    places: dict[int, Box | None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content:
            continue
        if found := _CANVAS.fullmatch(content):
            if canvas is not None or places:
                raise FirstFrameError(f"Line {number} of the canvas: its size stands once, on the first line.")
            canvas = int(found[1]), int(found[2])
            if 0 in canvas:
                raise FirstFrameError(f"Line {number} of the canvas: a canvas needs a width and a height.")
            continue
        found = _PLACE.fullmatch(content)
        if found is None:
            raise FirstFrameError(
                f'Line {number} of the canvas: write "canvas 1280 x 720" or "1: left top width height", '
                f'not "{content[:40]}".'
            )
        index = int(found[1]) - 1
        if not 0 <= index < MAX_REFERENCES:
            raise FirstFrameError(
                f"Line {number} of the canvas: references are numbered from 1 to {MAX_REFERENCES}, not {found[1]}."
            )
        if index in places:
            raise FirstFrameError(f"Line {number} of the canvas: reference {found[1]} already has a line.")
        if found[2] is not None and canvas is None:
            raise FirstFrameError(f'Line {number} of the canvas: begin with a line such as "canvas 1280 x 720".')
        places[index] = None if found[2] is None else _box(number, [int(part) for part in found.groups()[1:]])
    return Arrangement(tuple(places.items()), canvas)


def _box(line: int, sides: Sequence[int]) -> Box:
    """A box, with the line's number in front of what is wrong with it."""
    try:
        return Box(*sides)
    except PixelError as error:
        raise FirstFrameError(f"Line {line} of the canvas: {error}") from error


def _scaled(box: Box, across: float, down: float) -> Box:
    """A box on a larger or smaller canvas. Edges are rounded, not sizes, so that neighbours go on touching."""
    left, top = round(box.x * across), round(box.y * down)
    return Box(left, top, max(round(box.right * across) - left, 1), max(round(box.bottom * down) - top, 1))
