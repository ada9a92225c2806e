"""Pictures of ComfyUI's input folder, as IMAGE tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from comfy.utils import common_upscale
from PIL import Image
from torch import Tensor

from ...film.picture_reader import on_white, read_cut_out, read_picture
from ...film.pixels import check_cover, from_pil
from .paths import input_file

PLATE = "plate="
"""Begins the name of a shot's reference that is its background plate: `references: mug; plate=kitchen.png`."""


def load_picture(name: str) -> Tensor:
    """A picture of the input folder, [1, H, W, 3] in 0..1: see read_picture.

    Raises ValueError if there is no such file and PictureError if it holds no picture.
    """
    return read_picture(input_file(name), repr(name))[None]


def load_cut_out(name: str) -> Tensor:
    """As `load_picture`, with its opacity as a fourth channel: [1, H, W, 4], 1 where it is opaque."""
    return read_cut_out(input_file(name), repr(name))[None]


def cover(picture: Tensor, width: int, height: int) -> Tensor:
    """A picture [1, H, W, 3 or 4] scaled to cover that size and cut around its centre, as the VAE would get it.

    Raises PixelError for one that is too thin to be cut so.
    """
    check_cover((picture.shape[2], picture.shape[1]), (width, height))
    covered: Tensor = common_upscale(on_white(picture).movedim(-1, 1), width, height, "bicubic", "center").clamp(0, 1)
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
