"""The one reader of picture files: upright, in 8 bits, with nothing in it that a viewer would not show.

What core's Load Image gives is what this gives, but for two things. Colours under transparency, which no viewer shows,
are not filmed: where a picture is read without its opacity it is laid on white. And a mirrored EXIF orientation, which
core takes for a half turn, is mirrored. Grey of 16 bits keeps its brightness (Pillow alone would clip it to white).
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, ImageFile, ImageOps

from .pixels import MAX_PIXELS, from_pil

__all__ = ["PictureError", "on_white", "read_cut_out", "read_mask", "read_picture"]

_CUT_SHORT = "truncated"
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


class PictureError(ValueError):
    """A file that is no picture; the message is one sentence that says which and what to change."""


def read_picture(source: Path | io.BytesIO, name: str = "") -> torch.Tensor:
    """A picture [H, W, 3] in 0..1, what is transparent on white. name: for messages. Raises PictureError."""
    return from_pil(_on(_upright(source, name), _WHITE))


def read_cut_out(source: Path | io.BytesIO, name: str = "") -> torch.Tensor:
    """As read_picture, as it is, with its opacity as a fourth channel: [H, W, 4], 1 where it is opaque."""
    return from_pil(_upright(source, name).convert("RGBA"))


def read_mask(source: Path | io.BytesIO, name: str = "") -> torch.Tensor:
    """A mask [H, W] in 0..1: the brightness of a picture, what is transparent being 0. Raises PictureError."""
    return from_pil(_on(_upright(source, name), _BLACK).convert("L"))[..., 0]


def on_white(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [..., 3 or 4] in 0..1 as [..., 3], what is transparent on white."""
    if pixels.shape[-1] != 4:
        return pixels[..., :3]
    return pixels[..., :3] * pixels[..., 3:] + (1 - pixels[..., 3:])


def _on(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    if picture.mode != "RGBA":
        return picture
    below = Image.new("RGBA", picture.size, (*colour, 255))
    return Image.alpha_composite(below, picture).convert("RGB")


def _upright(source: Path | io.BytesIO, name: str) -> Image.Image:
    """RGB, or RGBA where it has transparency."""
    name = name or (source.name if isinstance(source, Path) else "The picture")
    try:
        opened = Image.open(source)
        if opened.width * opened.height > MAX_PIXELS:
            raise PictureError(
                f"{name} is {opened.width} x {opened.height} pixels: scale it down to at most {MAX_PIXELS // 10**6} "
                "megapixels."
            )
        _load(opened, name)
        return _eight_bits(ImageOps.exif_transpose(opened), name)
    except PictureError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise PictureError(f"{name} cannot be read as a picture: {error.strerror}.") from error
        raise _foreign(name) from error
    except Exception as error:  # a decoder of foreign files raises whatever it met
        raise _foreign(name) from error


def _foreign(name: str) -> PictureError:
    return PictureError(f"{name} is not a picture that can be read: choose a PNG, JPEG or WebP file.")


def _load(picture: Image.Image, name: str) -> None:
    """Decode it. Harmless faults of a file (a chunk that breaks the standard) are overlooked, as by core."""
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        if _CUT_SHORT in str(error):
            raise PictureError(f"{name} is cut short: copy or download it again.") from error
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            picture.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode.startswith("I"):
        grey = torch.frombuffer(bytearray(picture.convert("I").tobytes()), dtype=torch.int32)
        if int(grey.min()) < 0 or int(grey.max()) > 0xFFFF:
            raise PictureError(f"{name} has brightnesses of 32 bits: save it with 8 or 16.")
        rounded = ((grey + 128) // 257).to(torch.uint8).numpy().tobytes()
        return Image.frombytes("L", picture.size, rounded).convert("RGB")
    if picture.mode == "F":
        raise PictureError(f"{name} has brightnesses with fractions: save it with 8 or 16 bits.")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
