"""Pictures of ComfyUI's input folder, as IMAGE tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import node_helpers
import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

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
        pixels = numpy.array(picture.convert(mode), dtype=numpy.float32) / 255.0
    except (OSError, UnidentifiedImageError) as error:
        raise PictureError(f"{name!r} is not a picture that can be read: choose a PNG, JPEG or WebP file.") from error
    return torch.from_numpy(pixels)[None]


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
