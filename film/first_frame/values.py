"""Where each reference of a first frame goes and the layout of the whole, as immutable values.

Both have an exact JSON round trip, as references have (film/pixels.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, cast, get_args

from ..decode import DecodeError, Value, parse, quoted
from ..pixels import Box, PixelError

__all__ = [
    "FirstFrameError",
    "Layout",
    "LayoutKind",
    "Placement",
    "PlateFit",
    "Split",
]

LayoutKind = Literal["paper (training)", "paper (test)", "grid", "auto", "manual"]
PlateFit = Literal["stretch", "keep aspect"]
Split = Literal["columns", "rows", "whole"]

_MAX_SIDE = 10**6


class FirstFrameError(PixelError):
    """Something that no first frame can be made of. The message is one sentence that says what to change."""


@dataclass(frozen=True)
class Placement:
    """Where one reference goes. Its index is its place in the order of references.

    name: the reference's. slot: the room it was given. box: what its cropped picture covers, inside the slot, its
    aspect kept. scale: box over cropped picture, 1 = pixel for pixel.
    """

    index: int
    name: str
    slot: Box
    box: Box
    scale: float


@dataclass(frozen=True)
class Layout:
    """A whole first frame but for its pixels.

    width, height: of the canvas. placements: one per reference, in order. plate: what the plate covers, None without
    one. plate_fit: "stretch" brings the plate to the canvas' aspect first. split: references and plate lie side by
    side ("columns"), one above the other ("rows"), or there is no plate and no split ("whole"). warnings: sentences.
    """

    kind: LayoutKind
    width: int
    height: int
    placements: tuple[Placement, ...]
    plate: Box | None = None
    plate_fit: PlateFit = "keep aspect"
    split: Split = "whole"
    warnings: tuple[str, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The references' boxes, in order."""
        return tuple(placement.box for placement in self.placements)

    def swapped(self) -> Layout:
        """The layout with its halves exchanged. Raises FirstFrameError if a box lies across the middle."""
        half = {"columns": self.width // 2, "rows": self.height // 2, "whole": 0}[self.split]
        across = self.split == "columns"

        def move(box: Box) -> Box:
            start, end = (box.x, box.right) if across else (box.y, box.bottom)
            if half and start < half < end:
                raise FirstFrameError("A box lies across the middle, so the halves cannot be swapped.")
            moved = start + half if start < half else start - half
            return replace(box, x=moved) if across else replace(box, y=moved)

        placements = tuple(
            replace(placement, slot=move(placement.slot), box=move(placement.box)) for placement in self.placements
        )
        return replace(self, placements=placements, plate=None if self.plate is None else move(self.plate))

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """The inverse of `to_json`. Raises FirstFrameError for anything else."""
        try:
            data = parse(text, 1 << 20)
            if unknown := set(data.object()) - {field.name for field in fields(cls)}:
                raise DecodeError(f"it has the unknown field {quoted(min(unknown))}")
            plate = data["plate"]
            return cls(
                kind=cast(LayoutKind, data["kind"].choice(get_args(LayoutKind))),
                width=data["width"].integer(1, _MAX_SIDE),
                height=data["height"].integer(1, _MAX_SIDE),
                placements=tuple(
                    Placement(
                        index=item["index"].integer(number, number),
                        name=item["name"].text(),
                        slot=_box(item["slot"]),
                        box=_box(item["box"]),
                        scale=item["scale"].number(0.0, 1e6),
                    )
                    for number, item in enumerate(data["placements"].list(100))
                ),
                plate=None if plate.raw is None else _box(plate),
                plate_fit=cast(PlateFit, data["plate_fit"].choice(get_args(PlateFit))),
                split=cast(Split, data["split"].choice(get_args(Split))),
                warnings=tuple(warning.text() for warning in data["warnings"].list(100)),
            )
        except DecodeError as error:
            raise FirstFrameError(f"This is not a saved layout: {error}.") from error


def _box(value: Value) -> Box:
    if set(value.object()) != {"x", "y", "width", "height"}:
        raise value.fault("a box of x, y, width and height")
    x, y = (value[name].integer(-_MAX_SIDE, _MAX_SIDE) for name in ("x", "y"))
    return Box(x, y, value["width"].integer(1, _MAX_SIDE), value["height"].integer(1, _MAX_SIDE))
