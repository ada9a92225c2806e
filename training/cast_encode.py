"""Clips of a cast dataset as what the trainer learns from: latents, first frame, encoded caption; kept on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..film.first_frame import COLLAGE_FRAMES
from .cast_data import CastDataError, CastItem, fingerprint_of, pixels_of, read_frames
from .lora_recipe import Example, FirstFrame

_AS_IT_IS = (0, 1, 2)


@dataclass(frozen=True)
class Encoders:
    """What ComfyUI's loaders give: MODEL (for its latent scale), CLIP and VAE.

    ``name``: the base's, written into the LoRA. ``mark``: tells these models from others of that name.
    """

    model: Any
    clip: Any
    vae: Any
    name: str
    mark: str = ""


@dataclass(frozen=True)
class Variant:
    """How a clip is learned once more: ``channels``, the order of its colours, clip and canvas alike; ``mirrored``, the
    clip left to right (its canvas as it was), with the caption's left and right exchanged.
    """

    channels: tuple[int, int, int] = _AS_IT_IS
    mirrored: bool = False

    def fits(self, plate: bool) -> bool:
        """Whether the canvas still tells all: the colours of a place have to be pictured (``plate``), and which way
        round it is must not be.
        """
        return not self.mirrored if plate else self.channels == _AS_IT_IS

    def frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """The clip [T, H, W, 3]."""
        changed = pixels[..., list(self.channels)]
        return changed.flip(2) if self.mirrored else changed

    def canvas(self, pixels: torch.Tensor) -> torch.Tensor:
        """The canvas [H, W, 3]."""
        return pixels[..., list(self.channels)]

    def caption(self, text: str) -> str:
        """What is said of it."""
        exchanged = {"left": "right", "right": "left"}
        return re.sub(r"\b(left|right)\b", lambda found: exchanged[found[0]], text) if self.mirrored else text


PLAIN = (Variant(),)
"""Every clip as it is."""


def variants(recoloured: bool, mirrored: bool) -> tuple[Variant, ...]:
    """Each clip as it is, in the five other orders of its colours, and left to right; of each clip those that fit."""
    orders = [(a, b, c) for a, b, c in permutations(_AS_IT_IS)] if recoloured else [_AS_IT_IS]
    return (*(Variant(order) for order in orders), *([Variant(mirrored=True)] if mirrored else []))


def encode_dataset(
    items: Sequence[CastItem],
    encoders: Encoders,
    first_frame: FirstFrame,
    frames: int,
    size: tuple[int, int] | None,
    folder: Path,
    *,
    shown: Sequence[Variant] = PLAIN,
    say: Callable[[str], None] = print,
) -> list[Example]:
    """Encode every clip's first ``frames`` frames at ``size`` (width, height; None: the canvas's own) into ``folder``.

    The collage stands in frames 0 to 3, then the clip goes on with its own frame 4: nothing is moved. Files already
    there are kept while clip, caption, size and models stay the same. ``shown``: the ways in which each is learned that
    fits them; all clips in the first way come first.

    Raises:
        CastDataError: a clip is too short, or a side is no multiple of 16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    wanted = [
        (clip, item, way, variant)
        for way, variant in enumerate(shown)
        for clip, item in enumerate(items)
        if variant.fits(item.plate)
    ]
    for number, (clip, item, way, variant) in enumerate(wanted, start=1):
        name = f"{item.id}.{way}" if way else item.id
        path = folder / f"{name}.safetensors"
        told = [item.text, frames, size, first_frame, encoders.name + encoders.mark]
        files = [item.clip, item.canvas, *([item.subjects] if item.subjects else [])]
        mark = fingerprint_of([*told, astuple(variant)] if way else told, files)
        if not path.exists() or _mark_of(path) != mark:
            tensors = _encode(item, variant, encoders, first_frame, frames, size)
            part = folder / f"{name}.part"
            save_file(tensors, part, metadata={"fingerprint": mark})
            part.replace(path)
            say(f"encoded {number}/{len(wanted)} {name}")
        loaded = load_file(path)
        examples.append(Example(loaded["latents"], loaded["text"], loaded.get("known"), loaded.get("subject"), clip))
    return examples


def target_frames(canvas: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """The video [T, H, W, 3] to learn: the canvas [H, W, 3] in place of the clip's first four frames."""
    return torch.cat([canvas[None].expand(COLLAGE_FRAMES, -1, -1, -1), frames[COLLAGE_FRAMES:]])


@torch.inference_mode()
def _encode(
    item: CastItem,
    variant: Variant,
    encoders: Encoders,
    first_frame: FirstFrame,
    frames: int,
    size: tuple[int, int] | None,
) -> dict[str, torch.Tensor]:
    with Image.open(item.canvas) as picture:
        picture = picture.convert("RGB")
    if size is not None and picture.size != size:
        picture = picture.resize(size, Image.Resampling.BOX)
    if any(side % 16 for side in picture.size):
        raise CastDataError(f"Clips of {picture.width} x {picture.height} do not fit Wan's latents: "
                            "train at a size of which both sides are multiples of 16.")  # fmt: skip
    canvas = variant.canvas(pixels_of(picture))
    clip = variant.frames(read_frames(item.clip, frames, picture.size)[0])
    tensors = {
        "latents": _latents(encoders, target_frames(canvas, clip)),
        "text": encoders.clip.encode_from_tokens(encoders.clip.tokenize(variant.caption(item.text)))[0],
    }
    if item.subjects:
        masks = variant.frames(read_frames(item.subjects, frames, picture.size)[0]).amax(dim=-1)
        tensors["subject"] = _coverage(masks, tensors["latents"])
    if first_frame == "concat":
        # What is not known is mid-grey to the VAE, as core's WanImageToVideo has it.
        grey = torch.full_like(clip, 0.5)
        tensors["known"] = _latents(encoders, torch.cat([canvas[None], grey[1:]]))
    return {key: value.float().cpu().contiguous() for key, value in tensors.items()}


def _latents(encoders: Encoders, video: torch.Tensor) -> torch.Tensor:
    normalised: torch.Tensor = encoders.model.model.process_latent_in(encoders.vae.encode(video))
    return normalised[0]


def _coverage(masks: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Where masks [T, H, W] are in latents [C, F, h, w], the first of which is one picture: [F, h, w] of 0..1."""
    _, frames, *size = latents.shape
    first = F.adaptive_max_pool2d(masks[:1], size)
    return torch.cat([first, F.adaptive_max_pool3d(masks[None, 1:], (frames - 1, *size))[0]])


def _mark_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("fingerprint"))
