"""Where references and plate go on the canvas: the two published layouts, and ours. Arithmetic only, no pixels.

The published layouts are those of the FFGo training and test canvases (arXiv 2511.15700 and the released data,
docs/methods/ffgo.md): the references fill equal slots in the left half, never enlarged; the plate is centred in the
right half. Ours are `grid` (two columns), `auto` (the smallest reference is as large as it can be) and `manual` (boxes
given).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..pixels import Box
from .values import FirstFrameError, Layout, LayoutKind, Placement, PlateFit, Split

__all__ = ["COMFORTABLE_REFERENCES", "MAX_ENLARGE", "MAX_REFERENCES", "Size", "fit", "plan"]

MAX_REFERENCES = 8
COMFORTABLE_REFERENCES = 4
"""Beyond this many objects and a scene, identity suffers (FFGo, limitations)."""
MAX_ENLARGE = 3.0
SMALLEST_TRAINED = 127
"""Longest side, in pixels on a canvas 1280 wide, of the smallest published training reference (FFGo's data)."""
MAX_SIDE = 8192


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


def fit(size: Size, room: Size, enlarge: float = 1.0) -> Size:
    """The largest size of the same aspect inside `room`, at most `enlarge` times the original.

    The free side is rounded down or up, whichever keeps the aspect closer, and is at least 1. With enlarge = 1 this is
    the rule of Pillow's `thumbnail`, which the published canvases were made with (docs/methods/ffgo.md, canvas).
    """
    if enlarge == 1.0 and room.width >= size.width and room.height >= size.height:
        return size
    width = max(min(room.width, math.floor(size.width * enlarge)), 1)
    height = max(min(room.height, math.floor(size.height * enlarge)), 1)
    if width / height >= size.width / size.height:
        return Size(_width_for(size, height), height)
    return Size(width, _height_for(size, width))


def _width_for(size: Size, height: int) -> int:
    """The width nearest to the aspect at this height."""
    aspect = size.width / size.height
    exact = height * aspect
    return max(min((math.floor(exact), math.ceil(exact)), key=lambda free: abs(aspect - free / height)), 1)


def _height_for(size: Size, width: int) -> int:
    """The height nearest to the aspect at this width."""
    aspect = size.width / size.height
    exact = width / aspect
    free = (math.floor(exact), math.ceil(exact))
    return max(min(free, key=lambda height: 0 if height == 0 else abs(aspect - width / height)), 1)


def _fit_manual(size: Size, room: Size, enlarge: float) -> Size:
    """As `fit`, but a box that already has the aspect, to the pixel, is taken as it is: so any layout's boxes can be
    given back and mean the same.
    """
    small_enough = room.width <= size.width * enlarge and room.height <= size.height * enlarge
    if small_enough and (_width_for(size, room.height) == room.width or _height_for(size, room.width) == room.height):
        return room
    return fit(size, room, enlarge)


def plan(
    sizes: Sequence[Size],
    kind: LayoutKind,
    canvas: Size,
    plate: Size | None,
    *,
    names: Sequence[str] = (),
    boxes: Sequence[Box] = (),
    max_enlarge: float = MAX_ENLARGE,
) -> Layout:
    """Place references of these (cropped) sizes on a canvas.

    sizes: 1 to 8, in order. canvas: even sides, at most 8192. plate: size of the plate's picture, None for none; the
    published layouts need one, the others give the references the whole canvas without it. names: of the references,
    for messages. boxes: `manual` only, one per reference; each reference is fitted into its box. max_enlarge: how many
    times `auto` and `manual` may enlarge; the other layouts never do. A canvas higher than wide is split into a top
    half of references and a bottom half of plate, except by the published layouts.

    Raises FirstFrameError with one sentence that says what to change.
    """
    _check(sizes, kind, canvas, plate, boxes, max_enlarge)
    names = tuple(names) or ("",) * len(sizes)
    warnings: list[str] = []
    split: Split = "whole" if plate is None else "columns"
    if canvas.height > canvas.width:
        if plate is not None and not kind.startswith("paper"):
            split = "rows"
        warnings.append("Portrait canvases were never trained on: expect less of them.")
    if plate is None:
        warnings.append("There is no background plate: the references take the whole canvas, which was never trained.")
    if len(sizes) > COMFORTABLE_REFERENCES:
        warnings.append(f"{len(sizes)} references are more than the {COMFORTABLE_REFERENCES} that work well.")
    if canvas.width % 16 or canvas.height % 16:
        warnings.append(
            f"Video models round {canvas.width} x {canvas.height} to multiples of 16 and may crop references."
        )

    area, plate_area = _areas(canvas, split)
    enlarge = 1.0
    if kind.startswith("paper"):
        slots = _rows([1] * len(sizes), area)
    elif kind == "grid":
        pairs, odd = divmod(len(sizes), 2)
        slots = _rows([1] if len(sizes) == 1 else [2] * pairs + [1] * odd, area)
    elif kind == "auto":
        enlarge = max_enlarge
        slots = _best_slots(sizes, area, enlarge)
    else:
        enlarge = max_enlarge
        slots = _manual_slots(boxes, canvas, area, names, warnings)

    placements = []
    for index, (size, slot, name) in enumerate(zip(sizes, slots, names)):
        fitted = _fit_manual if kind == "manual" else fit
        inside = fitted(size, Size(slot.width, slot.height), enlarge)
        scale = max(inside) / max(size)
        placements.append(Placement(index, name, slot, _centred(inside, slot), scale))
        if max(inside) < SMALLEST_TRAINED * max(canvas) / 1280:
            warnings.append(
                f"{_title(index, name)} is only {inside.width} x {inside.height} pixels on the canvas, smaller than "
                "any that was trained on."
            )

    plate_box, plate_fit = _place_plate(plate, plate_area, canvas, kind)
    return Layout(kind, *canvas, tuple(placements), plate_box, plate_fit, split, tuple(warnings))


def _check(
    sizes: Sequence[Size],
    kind: LayoutKind,
    canvas: Size,
    plate: Size | None,
    boxes: Sequence[Box],
    max_enlarge: float,
) -> None:
    """Raise for what no layout can be made of."""
    if not 1 <= len(sizes) <= MAX_REFERENCES:
        raise FirstFrameError(f"A first frame takes 1 to {MAX_REFERENCES} references, not {len(sizes)}.")
    if canvas.width % 2 or canvas.height % 2:
        raise FirstFrameError(f"The canvas is {canvas.width} x {canvas.height}: both sides must be even.")
    if not (min(canvas) >= 16 and max(canvas) <= MAX_SIDE):
        raise FirstFrameError(
            f"The canvas is {canvas.width} x {canvas.height}: each side must have 16 to {MAX_SIDE} pixels."
        )
    if kind.startswith("paper") and plate is None:
        raise FirstFrameError(f'The layout "{kind}" needs a background plate: connect one or choose another layout.')
    if kind == "manual" and len(boxes) != len(sizes):
        raise FirstFrameError(f"The manual layout needs one box per reference: {len(sizes)}, not {len(boxes)}.")
    if not (math.isfinite(max_enlarge) and max_enlarge >= 1.0):
        raise FirstFrameError(f"References can be enlarged 1 time or more, not {max_enlarge:g} times.")


def _areas(canvas: Size, split: Split) -> tuple[Box, Box]:
    """The references' part of the canvas and the plate's."""
    width, height = canvas
    if split == "columns":
        return Box(0, 0, width // 2, height), Box(width // 2, 0, width // 2, height)
    if split == "rows":
        return Box(0, 0, width, height // 2), Box(0, height // 2, width, height // 2)
    return Box(0, 0, width, height), Box(0, 0, width, height)


def _place_plate(plate: Size | None, area: Box, canvas: Size, kind: LayoutKind) -> tuple[Box | None, PlateFit]:
    """The plate's box and how it gets there. Training canvases stretch it to the canvas first, test canvases do not."""
    if plate is None:
        return None, "keep aspect"
    stretch = kind == "paper (training)"
    # Only the published layouts hold to the recipe's "never enlarge"; elsewhere a small plate should fill its half.
    enlarge = 1.0 if kind.startswith("paper") else MAX_ENLARGE
    inside = fit(canvas if stretch else plate, Size(area.width, area.height), enlarge)
    return _centred(inside, area), "stretch" if stretch else "keep aspect"


def _centred(size: Size, room: Box) -> Box:
    """A box of this size in the middle of a room, halves rounded down as in the recipe."""
    return Box(room.x + (room.width - size.width) // 2, room.y + (room.height - size.height) // 2, *size)


def _rows(counts: Sequence[int], area: Box) -> list[Box]:
    """Equal slots in rows of so many, in reading order; short rows are centred."""
    width, height = area.width // max(counts), area.height // len(counts)
    return [
        Box(area.x + (area.width - count * width) // 2 + column * width, area.y + row * height, width, height)
        for row, count in enumerate(counts)
        for column in range(count)
    ]


def _shared_rows(counts: Sequence[int], sizes: Sequence[Size], area: Box) -> list[Box]:
    """Slots in rows of so many, their sides in proportion to what references of equal area need.

    Widths are measured by the widest row, so that identical references get identical slots in every row.
    """
    roots = [math.sqrt(size.width * size.height) for size in sizes]
    wide = [size.width / root for size, root in zip(sizes, roots)]
    high = [size.height / root for size, root in zip(sizes, roots)]
    rows, start = [], 0
    for count in counts:
        rows.append(range(start, start + count))
        start += count
    widest = max(sum(wide[index] for index in row) for row in rows)
    total = sum(max(high[index] for index in row) for row in rows)
    slots, y = [], area.y
    for row in rows:
        height = max(math.floor(area.height * max(high[index] for index in row) / total), 1)
        widths = [max(math.floor(area.width * wide[index] / widest), 1) for index in row]
        x = area.x + (area.width - sum(widths)) // 2
        for width in widths:
            slots.append(Box(x, y, width, height))
            x += width
        y += height
    return slots


def _best_slots(sizes: Sequence[Size], area: Box, enlarge: float) -> list[Box]:
    """The slots that make the smallest reference (by area) largest; ties go to fewer columns, then to fewer rows.

    Every way to break the ordered references into rows is tried, with equal and with proportional slots: at most 256.
    """

    def merit(slots: Sequence[Box], counts: Sequence[int]) -> tuple[float, int, int]:
        areas = (math.prod(fit(size, Size(slot.width, slot.height), enlarge)) for size, slot in zip(sizes, slots))
        return min(areas), -max(counts), -len(counts)

    tried = []
    for counts in _row_counts(len(sizes)):
        for slots in (_rows(counts, area), _shared_rows(counts, sizes, area)):
            if all(slot.common(area) == slot for slot in slots):
                tried.append((merit(slots, counts), slots))
    return max(tried, key=lambda pair: pair[0])[1]


def _row_counts(items: int) -> Iterator[list[int]]:
    """Every way to break so many ordered items into rows."""
    if items == 0:
        yield []
    for first in range(1, items + 1):
        for rest in _row_counts(items - first):
            yield [first, *rest]


def _manual_slots(
    boxes: Sequence[Box], canvas: Size, area: Box, names: Sequence[str], warnings: list[str]
) -> list[Box]:
    """The given boxes, clipped to the canvas; appends warnings about unusual ones."""
    whole = Box(0, 0, *canvas)
    slots: list[Box] = []
    for index, box in enumerate(boxes):
        title = _title(index, names[index])
        inside = box.common(whole)
        if inside is None:
            raise FirstFrameError(f"{title} lies off the canvas: move its box into {canvas.width} x {canvas.height}.")
        if inside != box:
            warnings.append(f"The box of {title} reaches beyond the canvas and was clipped.")
        if inside.common(area) != inside:
            warnings.append(f"{title} leaves the part of the canvas that is meant for references.")
        warnings += [f"{title} overlaps {_title(i, names[i])}." for i, slot in enumerate(slots) if slot.common(inside)]
        slots.append(inside)
    return slots


def _title(index: int, name: str) -> str:
    """How messages call a reference."""
    return f'Reference {index + 1} "{name}"' if name else f"Reference {index + 1}"
