"""Pictures as values: boxes, cut-outs with opacity, and the way between tensors of 0..1 and 8-bit pictures.

Pixels are 8-bit: the published recipes work on 8-bit pictures, and a layout widget, a saved graph and a test must agree
on every one of them.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image

__all__ = [
    "CROP_PAD",
    "MAX_PIXELS",
    "Box",
    "PixelError",
    "Reference",
    "check_cover",
    "check_pixels",
    "from_pil",
    "to_bytes",
    "to_pil",
]

CROP_PAD = 5
"""Pixels kept around a cut-out's opaque part (FFGo's canvases, docs/methods/ffgo.md)."""
MAX_PIXELS = 2**26
"""Largest picture taken, 67 megapixels: more is a mistake upstream, and Pillow would need gigabytes for it."""
SMALL_SHARE = 0.01


class PixelError(ValueError):
    """A picture or box that cannot be used. The message is one sentence that says what to change."""


def check_cover(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises PixelError for a picture so thin that nothing is left of it when it is cut to the shape of a film.

    size, wanted: width and height in pixels. The cut is that of core's common_upscale, around the centre.
    """
    (width, height), aspect = size, wanted[0] / wanted[1]
    if width / height > aspect:
        width -= 2 * round((width - height * aspect) / 2)
    else:
        height -= 2 * round((height - width / aspect) / 2)
    if width < 1 or height < 1:
        raise PixelError(
            f"A picture of {size[0]} x {size[1]} pixels is too thin for a film of {wanted[0]} x {wanted[1]}: crop it "
            "closer to that shape."
        )


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; x and y are its left and top edge. May lie anywhere; width and height are at least 1."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if any(isinstance(side, bool) or not isinstance(side, int) for side in asdict(self).values()):
            raise PixelError("A box needs four whole numbers: x, y, width and height.")
        if self.width < 1 or self.height < 1:
            raise PixelError(f"A box needs a width and a height of at least 1, not {self.width} x {self.height}.")

    @property
    def right(self) -> int:
        """First column beyond the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row beyond the box."""
        return self.y + self.height

    def common(self, other: Box) -> Box | None:
        """What both boxes cover, None if nothing."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(x, y, right - x, bottom - y) if right > x and bottom > y else None


@dataclass(frozen=True)
class Reference:
    """A picture to be cast in the shot, with its opacity.

    rgba: width * height * 4 bytes, row by row, straight (not premultiplied) alpha; 255 is the thing itself, 0 is what
    was cut away. name: the noun the prompt uses ("mug"). description: its looks ("white enamel mug with a blue rim").
    Make one of tensors with `from_image`. Raises PixelError if nothing is opaque or the picture is too large.
    """

    width: int
    height: int
    rgba: bytes
    name: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_pixels(self.width, self.height, self.title)
        if len(self.rgba) != self.width * self.height * 4:
            raise PixelError(f"{self.title} needs {self.width} x {self.height} pixels of red, green, blue, alpha.")
        if self.picture.getchannel("A").getbbox() is None:
            raise PixelError(f"{self.title} has an empty mask: mark the thing to keep (1 = keep).")

    @classmethod
    def from_image(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        name: str = "",
        description: str = "",
        *,
        mask_marks: Literal["foreground", "background"] = "foreground",
    ) -> Reference:
        """A reference of ComfyUI tensors.

        image: [H, W, C] or [1, H, W, C], C = 3 or 4 (the fourth is opacity), 0..1. mask: [H, W] or [1, H, W], 0..1, or
        None for the image's own alpha, else all of it. mask_marks: what a 1 means. "foreground" = keep, as core's
        RemoveBackground, SAM3_Detect and ImageCompositeMasked have it; "background" for the MASK of core's LoadImage,
        which is 1 where the picture is transparent. A mask replaces the image's alpha. Raises PixelError.
        """
        title = f'Reference "{name}"' if name else "The reference"
        pixels = image[0] if image.ndim == 4 and image.shape[0] == 1 else image
        if pixels.ndim != 3 or pixels.shape[-1] not in (3, 4):
            raise PixelError(
                f"{title} must be one RGB or RGBA picture [height, width, 3 or 4], not {list(image.shape)}."
            )
        height, width = int(pixels.shape[0]), int(pixels.shape[1])
        check_pixels(width, height, title)
        if mask is not None:
            alpha = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
            if alpha.shape != (height, width):
                raise PixelError(
                    f"{title} is {width} x {height} but its mask has the shape {list(mask.shape)}: give one mask "
                    "of the picture's size."
                )
            alpha = alpha if mask_marks == "foreground" else 1.0 - alpha
        else:
            alpha = pixels[..., 3] if pixels.shape[-1] == 4 else torch.ones(height, width, device=pixels.device)
        rgba = torch.cat((pixels[..., :3], alpha.to(pixels)[..., None]), dim=-1)
        return cls(width, height, to_bytes(rgba), name, description)

    @property
    def title(self) -> str:
        """How messages call it."""
        return f'Reference "{self.name}"' if self.name else "The reference"

    @cached_property
    def picture(self) -> Image.Image:
        """The whole picture, RGBA. Do not draw on it."""
        return Image.frombytes("RGBA", (self.width, self.height), self.rgba)

    def crop_box(self, pad: int = CROP_PAD) -> Box:
        """The opaque part grown by `pad` pixels on every side, clamped to the picture (docs/methods/ffgo.md)."""
        opaque = self.picture.getchannel("A").getbbox()
        assert opaque is not None  # checked when the reference was made
        left, top = max(opaque[0] - pad, 0), max(opaque[1] - pad, 0)
        right, bottom = min(opaque[2] + pad, self.width), min(opaque[3] + pad, self.height)
        return Box(left, top, right - left, bottom - top)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the picture, one sentence each."""
        found = []
        kept = self.crop_box(pad=0)
        if kept.width * kept.height < SMALL_SHARE * self.width * self.height:
            found.append(f"{self.title} fills less than 1 % of its picture: use a closer one.")
        whole = (kept.width, kept.height) == (self.width, self.height)
        if not whole and (kept.x == 0 or kept.y == 0 or kept.right == self.width or kept.bottom == self.height):
            found.append(f"{self.title} touches the border of its picture: it is probably cut off.")
        alpha = self.picture.getchannel("A")
        corners = [alpha.getpixel((x, y)) for x in (0, self.width - 1) for y in (0, self.height - 1)]
        if all(corner == 255 for corner in corners) and alpha.histogram()[0]:
            found.append(f"{self.title} keeps all corners of its picture: its mask is probably the wrong way round.")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data; the picture is a base64 PNG."""
        file = io.BytesIO()
        self.picture.save(file, "PNG")
        picture = base64.b64encode(file.getvalue()).decode("ascii")
        return {"name": self.name, "description": self.description, "png": picture}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reference:
        """The inverse of `to_dict`. Raises PixelError for anything else."""
        try:
            name, description = str(data["name"]), str(data["description"])
            picture = Image.open(io.BytesIO(base64.b64decode(data["png"], validate=True)), formats=("PNG",))
            check_pixels(picture.width, picture.height, "The reference")
            rgba = picture.convert("RGBA")
        except (KeyError, TypeError, ValueError, OSError, SyntaxError, zlib.error) as error:
            if isinstance(error, PixelError):
                raise
            raise PixelError(f"This is not a saved reference: {error}.") from error
        return cls(rgba.width, rgba.height, rgba.tobytes(), name, description)


def check_pixels(width: int, height: int, title: str) -> None:
    """Raise PixelError unless a picture has pixels and at most MAX_PIXELS of them. title: how messages call it."""
    if width < 1 or height < 1:
        raise PixelError(f"{title} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS:
        raise PixelError(
            f"{title} is {width} x {height} pixels: scale it down to at most {MAX_PIXELS // 10**6} megapixels."
        )


def to_bytes(pixels: torch.Tensor) -> bytes:
    """8-bit values of a float tensor in 0..1, rounded to the nearest and clamped; not-a-number becomes 0."""
    levels = pixels.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round()
    return levels.to(torch.uint8).contiguous().numpy().tobytes()


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """[H, W, 3 or 4] in 0..1 as an 8-bit picture, RGB or RGBA."""
    height, width, channels = pixels.shape
    return Image.frombytes("RGB" if channels == 3 else "RGBA", (width, height), to_bytes(pixels))


def from_pil(picture: Image.Image) -> torch.Tensor:
    """An 8-bit picture, grey, RGB or RGBA, as [H, W, C] in 0..1."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(picture.height, picture.width, -1).float() / 255
