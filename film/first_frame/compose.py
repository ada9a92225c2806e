"""The first frame as a picture: references and plate drawn where a layout puts them.

Everything is done by Pillow on 8-bit pixels and in the published order (docs/methods/ffgo.md), so that a published
layout comes out bit for bit: crop to the opaque part, flatten on white, only then resize (Lanczos, in two stages as
`thumbnail` does), paste. The same steps draw our own layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ..pixels import Box, Reference, check_pixels, from_pil, to_pil
from .layouts import MAX_ENLARGE, Size, plan
from .values import FirstFrameError, Layout, LayoutKind, PlateFit

__all__ = ["Composition", "compose"]

WHITE = (255, 255, 255)
REDUCING_GAP = 2.0
"""Pillow's default for `thumbnail`: pictures are first reduced by whole numbers, and this decides how far."""


@dataclass(frozen=True, eq=False)
class Composition:
    """A drawn first frame.

    picture: [1, H, W, 3] fp32 in 0..1, CPU. masks: [n, H, W] fp32, one per reference in order, 1 = the reference's own
    opaque pixels that are not covered, 0 = anything else; the polarity of core's segmentation nodes and of
    ImageCompositeMasked. plate_mask: [1, H, W], 1 = plate. layout: where everything is.
    """

    picture: torch.Tensor
    masks: torch.Tensor
    plate_mask: torch.Tensor
    layout: Layout
    warnings: tuple[str, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """What each reference covers, in order."""
        return self.layout.boxes


def compose(
    references: Sequence[Reference],
    plate: torch.Tensor | None,
    layout: LayoutKind | Layout,
    size: tuple[int, int],
    *,
    boxes: Sequence[Box] = (),
    max_enlarge: float = MAX_ENLARGE,
) -> Composition:
    """Draw a first frame of exactly this size.

    references: 1 to 8, in order. plate: background [H, W, 3] or [1, H, W, 3], 0..1, or None. layout: the kind of layout
    to plan, or a planned one (for example swapped) to draw as it is. size: (width, height), even. boxes: for "manual",
    one per reference. max_enlarge: for "auto" and "manual".

    Outside all boxes the picture is exactly white. References are drawn in order, later ones over earlier ones. Raises
    FirstFrameError with one sentence; the composition's warnings hold what is allowed but unusual.
    """
    background = None if plate is None else _plate_picture(plate)
    crops = [reference.crop_box() for reference in references]
    if isinstance(layout, Layout):
        planned = _checked(layout, references, size, background is not None)
    else:
        planned = plan(
            [Size(crop.width, crop.height) for crop in crops],
            layout,
            Size(*size),
            None if background is None else Size(*background.size),
            names=[reference.name for reference in references],
            boxes=boxes,
            max_enlarge=max_enlarge,
        )

    canvas = Image.new("RGB", (planned.width, planned.height), WHITE)
    masks = np.zeros((len(references), planned.height, planned.width), np.float32)
    plate_mask = np.zeros((1, planned.height, planned.width), np.float32)
    if background is not None and planned.plate is not None:
        canvas.paste(_fit_plate(background, planned, planned.plate_fit), (planned.plate.x, planned.plate.y))
        plate_mask[0][_pixels(planned.plate)] = 1.0
    for index, (reference, crop, box) in enumerate(zip(references, crops, planned.boxes)):
        cut_out = reference.picture.crop((crop.x, crop.y, crop.right, crop.bottom))
        canvas.paste(_resized(flatten(cut_out), box), (box.x, box.y))
        covered = _pixels(box)
        for mask in (*masks, plate_mask[0]):
            mask[covered] = 0.0
        masks[index][covered] = np.asarray(_resized(cut_out.getchannel("A"), box), np.float32) / 255.0

    picture = from_pil(canvas)[None]
    return Composition(
        picture,
        torch.from_numpy(masks),
        torch.from_numpy(plate_mask),
        planned,
        (*(warning for reference in references for warning in reference.warnings), *planned.warnings),
    )


def flatten(cut_out: Image.Image) -> Image.Image:
    """An RGBA picture on white, as RGB: a * colour + (1 - a) * white, to the nearest level."""
    white = Image.new("RGB", cut_out.size, WHITE)
    white.paste(cut_out, mask=cut_out.getchannel("A"))
    return white


def _plate_picture(plate: torch.Tensor) -> Image.Image:
    """The plate as an 8-bit picture."""
    pixels = plate[0] if plate.ndim == 4 and plate.shape[0] == 1 else plate
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise FirstFrameError(f"The plate must be one RGB picture [height, width, 3], not {list(plate.shape)}.")
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    check_pixels(width, height, "The plate")
    return to_pil(pixels)


def _checked(layout: Layout, references: Sequence[Reference], size: tuple[int, int], has_plate: bool) -> Layout:
    """A given layout, if it is one for these references, this plate and this size."""
    if (layout.width, layout.height) != tuple(size):
        raise FirstFrameError(
            f"The layout is for {layout.width} x {layout.height}, not {size[0]} x {size[1]}: plan it anew."
        )
    if len(layout.placements) != len(references) or not references:
        raise FirstFrameError(f"The layout places {len(layout.placements)} references, not {len(references)}.")
    if (layout.plate is not None) != has_plate:
        raise FirstFrameError(
            "The layout has no room for a plate: plan it anew."
            if has_plate
            else "The layout needs a background plate: connect one or plan it anew."
        )
    canvas = Box(0, 0, layout.width, layout.height)
    drawn = layout.boxes if layout.plate is None else (*layout.boxes, layout.plate)
    for number, box in enumerate(drawn, start=1):
        if box.common(canvas) != box:
            title = f"Reference {number}" if number <= len(references) else "The plate"
            raise FirstFrameError(f"{title} lies off the canvas: move its box into {size[0]} x {size[1]}.")
    named = tuple(
        replace(placement, name=reference.name) for placement, reference in zip(layout.placements, references)
    )
    return replace(layout, placements=named)


def _fit_plate(plate: Image.Image, layout: Layout, plate_fit: PlateFit) -> Image.Image:
    """The plate in its box's size; "stretch" goes by way of the whole canvas, as the training canvases did."""
    assert layout.plate is not None
    if plate_fit == "stretch":
        plate = plate.resize((layout.width, layout.height), Image.Resampling.BICUBIC)
    return _resized(plate, layout.plate)


def _resized(picture: Image.Image, box: Box) -> Image.Image:
    """A picture in a box's size, as Pillow's `thumbnail` resizes."""
    return picture.resize((box.width, box.height), Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def _pixels(box: Box) -> tuple[slice, slice]:
    """A box as rows and columns of an array."""
    return slice(box.y, box.bottom), slice(box.x, box.right)
