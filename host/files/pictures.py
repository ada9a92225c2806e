"""Pictures of ComfyUI's input folder, as IMAGE tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import node_helpers
from comfy.utils import common_upscale
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...film.pixels import from_pil
from .paths import input_file

PLATE = "plate="
"""Begins the name of a shot's reference that is its background plate: `references: mug; plate=kitchen.png`."""


class PictureError(ValueError):
    """A file that is no picture; the message is one sentence that says which."""


def load_picture(name: str) -> Tensor:
    """A picture as ComfyUI's Load Image gives it: [1, H, W, 3] in 0..1, turned upright.

    Raises ValueError if there is no such file and PictureError if it holds no picture.
    """
    return _load(name, "RGB")


def load_cut_out(name: str) -> Tensor:
    """As `load_picture`, with its opacity as a fourth channel: [1, H, W, 4], 1 where it is opaque."""
    return _load(name, "RGBA")


def _load(name: str, mode: str) -> Tensor:
    try:
        picture = node_helpers.pillow(ImageOps.exif_transpose, node_helpers.pillow(Image.open, input_file(name)))
        return as_image(picture.convert(mode))
    except (OSError, UnidentifiedImageError) as error:
        raise PictureError(f"{name!r} is not a picture that can be read: choose a PNG, JPEG or WebP file.") from error


def cover(picture: Tensor, width: int, height: int) -> Tensor:
    """A picture [1, H, W, 3] scaled to cover that size and cut around its centre, as the VAE would get it."""
    covered: Tensor = common_upscale(picture.movedim(-1, 1), width, height, "bicubic", "center").clamp(0, 1)
    return covered.movedim(1, -1)


def fingerprint_files(names: Iterable[str]) -> str:
    """Changes when the content of one of these files of the input folder does, or when one comes or goes."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        try:
            digest.update(input_file(name.removeprefix(PLATE)).read_bytes())
        except (OSError, ValueError):
            digest.update(b"absent")
    return digest.hexdigest()


def as_image(picture: Image.Image) -> Tensor:
    """A Pillow picture, RGB or RGBA, as ComfyUI's IMAGE: [1, H, W, C] in 0..1."""
    return from_pil(picture)[None]
