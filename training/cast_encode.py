"""Clips of a cast dataset as what the trainer learns from: latents, first frame, encoded caption; kept on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..film.first_frame import COLLAGE_FRAMES
from .cast_data import CastDataError, CastItem, fingerprint_of, pixels_of, read_frames
from .flow_matching import Example, FirstFrame

Transition = Literal["frames", "latents"]
"""How the canvas becomes the clip. "frames", as published: the collage stands in frames 0 to 3 of the video, which then
goes on with the clip's own frame 4; that cut lies within a latent frame. "latents": the canvas is the first latent
frame, and the clip's own follow, encoded as if nothing had been before: for a base that has learned cuts so, as the
miniature has.
"""
Order = tuple[int, int, int]
_AS_IT_IS: Order = (0, 1, 2)


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
    """How a clip is learned once more: ``orders``, those of its colours, clip and canvas alike, or of its cast's alone
    where the dataset says where that is; several are one for each subject. ``mirrored``: the clip left to right (its
    canvas as it was), with the caption's left and right exchanged.
    """

    orders: tuple[Order, ...] = (_AS_IT_IS,)
    mirrored: bool = False

    def fits(self, plate: bool, subjects: int) -> bool:
        """Whether the canvas still tells all: the colours of a place that change with its cast's (0 ``subjects`` are
        told apart from it) have to be pictured (``plate``), and which way round a place is must not be.
        """
        if self.mirrored:
            return not plate
        return len(self.orders) <= subjects or (len(self.orders) == 1 and (plate or self == Variant()))

    def frames(self, pixels: torch.Tensor, subjects: torch.Tensor | None = None) -> torch.Tensor:
        """The clip [T, H, W, 3]; ``subjects`` [T, H, W, 3] are 1 where each subject is, or all where any is."""
        changed = self.canvas(pixels, subjects)
        return changed.flip(2) if self.mirrored else changed

    def canvas(self, pixels: torch.Tensor, subjects: torch.Tensor | None = None) -> torch.Tensor:
        """The canvas [H, W, 3]; ``subjects`` [H, W, 3] are 1 where it shows references of each subject."""
        if subjects is None:
            return pixels[..., list(self.orders[0])]
        changed, others = pixels, torch.ones_like(subjects[..., :1])
        for number in range(subjects.shape[-1]):
            order, here = self.orders[min(number, len(self.orders) - 1)], subjects[..., number : number + 1]
            changed = torch.lerp(changed, pixels[..., list(order)], others * here)
            others = others * (1 - here)
        return changed

    def caption(self, text: str) -> str:
        """What is said of it."""
        exchanged = {"left": "right", "right": "left"}
        return re.sub(r"\b(left|right)\b", lambda found: exchanged[found[0]], text) if self.mirrored else text


PLAIN = (Variant(),)
"""Every clip as it is."""


def variants(recoloured: bool, mirrored: bool) -> tuple[Variant, ...]:
    """Each clip as it is, in the five other orders of its colours, two subjects in six pairs of two orders, and left to
    right; of each clip those that fit.
    """
    orders = [(a, b, c) for a, b, c in permutations(_AS_IT_IS)] if recoloured else []
    alike = [Variant((order,)) for order in orders] or [Variant()]
    apart = [Variant((one, other)) for one, other in zip(orders, orders[1:] + orders[:1], strict=True)]
    return (*alike, *apart, *([Variant(mirrored=True)] if mirrored else []))


def encode_dataset(
    items: Sequence[CastItem],
    encoders: Encoders,
    first_frame: FirstFrame,
    frames: int,
    size: tuple[int, int] | None,
    folder: Path,
    *,
    cut: Transition = "frames",
    shown: Sequence[Variant] = PLAIN,
    say: Callable[[str], None] = print,
) -> list[Example]:
    """Encode every clip's first ``frames`` frames at ``size`` (width, height; None: the canvas's own) into ``folder``.

    ``cut``: how the canvas becomes the clip. Files already there are kept while clip, caption, size and models stay the
    same. ``shown``: the ways in which each is learned that fits them; all clips in the first way come first.

    Raises:
        CastDataError: a clip is too short, or a side is no multiple of 16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    wanted = [
        (clip, item, way, variant)
        for way, variant in enumerate(shown)
        for clip, item in enumerate(items)
        if variant.fits(item.plate, 1 + max(item.owners, default=0) if item.subjects else 0)
    ]
    for number, (clip, item, way, variant) in enumerate(wanted, start=1):
        name = f"{item.id}.{way}" if way else item.id
        path = folder / f"{name}.safetensors"
        told = [item.text, frames, size, first_frame, encoders.name + encoders.mark, cut]
        files = [item.clip, item.canvas, *([item.subjects] if item.subjects else [])]
        mark = fingerprint_of([*told, astuple(variant)] if way else told, files)
        if not path.exists() or _mark_of(path) != mark:
            tensors = _encode(item, variant, encoders, first_frame, frames, size, cut)
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
    cut: Transition,
) -> dict[str, torch.Tensor]:
    with Image.open(item.canvas) as picture:
        picture = picture.convert("RGB")
    pictured = _cells(item, picture.size)
    if size is not None and picture.size != size:
        picture = picture.resize(size, Image.Resampling.BOX)
        pictured = F.interpolate(pictured.movedim(-1, 0)[None], size[::-1], mode="area")[0].movedim(0, -1)
    if any(side % 16 for side in picture.size):
        raise CastDataError(f"Clips of {picture.width} x {picture.height} do not fit Wan's latents: "
                            "train at a size of which both sides are multiples of 16.")  # fmt: skip
    clip, masks = read_frames(item.clip, frames, picture.size)[0], None
    if item.subjects:
        masks = read_frames(item.subjects, frames, picture.size)[0]
    canvas = variant.canvas(pixels_of(picture), None if masks is None else pictured)
    clip = variant.frames(clip, masks)
    if cut == "latents":
        latents = torch.cat([_latents(encoders, canvas[None]), _latents(encoders, clip)], dim=1)
    else:
        latents = _latents(encoders, target_frames(canvas, clip))
    text = encoders.clip.encode_from_tokens(encoders.clip.tokenize(variant.caption(item.text)))[0]
    tensors = {"latents": latents, "text": text}
    if masks is not None:
        own = latents.shape[1] - (cut == "latents")
        cast = masks.amax(dim=-1)
        seen = _coverage(cast.flip(2) if variant.mirrored else cast, (own, *latents.shape[2:]))
        tensors["subject"] = F.pad(seen, (0, 0, 0, 0, latents.shape[1] - own, 0))
    if first_frame == "concat":
        # What is not known is mid-grey to the VAE, as core's WanImageToVideo has it.
        grey = torch.full((4 * (latents.shape[1] - 1), *canvas.shape), 0.5)
        tensors["known"] = _latents(encoders, torch.cat([canvas[None], grey]))
    return {key: value.float().cpu().contiguous() for key, value in tensors.items()}


def _cells(item: CastItem, size: tuple[int, int]) -> torch.Tensor:
    """[H, W, 3], 1 where the canvas of ``size`` (width, height) shows references of each subject."""
    cells = torch.zeros(*size[::-1], 3)
    for box, owner in zip(item.boxes, item.owners, strict=True):
        cells[box.y : box.y + box.height, box.x : box.x + box.width, owner] = 1
    return cells


def _latents(encoders: Encoders, video: torch.Tensor) -> torch.Tensor:
    normalised: torch.Tensor = encoders.model.model.process_latent_in(encoders.vae.encode(video))
    return normalised[0]


def _coverage(masks: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Where masks [T, H, W] are in latents of ``shape`` (F, h, w), the first of which is one picture: [F, h, w] of
    0..1.
    """
    frames, *size = shape
    first = F.adaptive_max_pool2d(masks[:1], size)
    return torch.cat([first, F.adaptive_max_pool3d(masks[None, 1:], (frames - 1, *size))[0]])


def _mark_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("fingerprint"))
