"""What the composer's canvas widget shows after a run: where everything is, and small pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..film.first_frame import Composition, Reference, Size, plan
from ..film.pixels import from_pil, to_pil

THUMBNAIL = 256


def canvas_payload(
    made: Composition,
    drawn: Sequence[Reference],
    order: Sequence[int],
    plate: Tensor | None,
    node: type[io.ComfyNode],
) -> dict[str, Any]:
    """JSON-able, read by web/js/cast_canvas.js.

    drawn: references in the order they were drawn; order: the socket of each, from 0. slots: of the layout auto, for
    the canvas to snap to, whichever layout was drawn.
    """
    layout = made.layout
    crops = [reference.crop_box() for reference in drawn]
    auto = plan(
        [Size(crop.width, crop.height) for crop in crops],
        "auto",
        Size(layout.width, layout.height),
        None if plate is None else Size(plate.shape[-2], plate.shape[-3]),
    )
    pictures = [
        _thumbnail(reference.picture.crop((crop.x, crop.y, crop.right, crop.bottom)))
        for reference, crop in zip(drawn, crops)
    ]
    if layout.plate is not None:
        shown = made.picture[0, layout.plate.y : layout.plate.bottom, layout.plate.x : layout.plate.right]
        pictures.append(_thumbnail(to_pil(shown).convert("RGBA")))
    files: list[dict[str, Any]] = []
    for picture in pictures:
        files += ui.ImageSaveHelper.save_images([picture], "longreel_cast", io.FolderType.temp, node, compress_level=1)
    return {
        "width": layout.width,
        "height": layout.height,
        "references": [
            {"number": index + 1, "name": reference.name, "box": astuple(box), "thumbnail": file}
            for index, reference, box, file in zip(order, drawn, made.boxes, files)
        ],
        "slots": [astuple(placement.slot) for placement in auto.placements],
        "plate": None if layout.plate is None else {"box": astuple(layout.plate), "thumbnail": files[-1]},
        "warnings": made.warnings,
    }


def _thumbnail(picture: Image.Image) -> Tensor:
    """A picture at most 256 pixels to a side, [h, w, 4] in 0..1."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return from_pil(small)
