"""Where each reference of a first frame goes and the layout of the whole, as immutable values.

Both have an exact JSON round trip, as references have (film/pixels.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

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
            data = json.loads(text)
            placements = tuple(
                Placement(
                    index=int(item["index"]),
                    name=str(item["name"]),
                    slot=Box(**item["slot"]),
                    box=Box(**item["box"]),
                    scale=float(item["scale"]),
                )
                for item in data["placements"]
            )
            layout = cls(
                **{
                    **data,
                    "placements": placements,
                    "plate": None if data["plate"] is None else Box(**data["plate"]),
                    "warnings": tuple(map(str, data["warnings"])),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FirstFrameError):
                raise
            raise FirstFrameError(f"This is not a saved layout: {error}.") from error
        known = (
            layout.kind in get_args(LayoutKind)
            and layout.plate_fit in get_args(PlateFit)
            and layout.split in get_args(Split)
        )
        if not known or [placement.index for placement in placements] != list(range(len(placements))):
            raise FirstFrameError("This is not a saved layout: its kind, its split or its order is unknown.")
        return layout
