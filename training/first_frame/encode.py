"""Clips of a cast dataset as what the trainer learns from: latents, first frame, encoded caption; kept on disk."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import adjust_hue

from ...film.first_frame import COLLAGE_FRAMES
from ...film.picture_reader import read_picture
from ...film.pixels import from_pil, to_pil
from ...film.reel.atomic import whole_file
from .dataset import CastDataError, CastItem, fingerprint_of, read_frames
from .matcher import Example, FirstFrame

Transition = Literal["frames", "latents"]
"""How the canvas becomes the clip. "frames", as published: the collage stands in frames 0 to 3 of the video, which then
goes on with the clip's own frame 4; that cut lies within a latent frame. "latents": the canvas is the first latent
frame, and the clip's own follow, encoded as if nothing had been before: for a base that has learned cuts so, as the
miniature has.
"""
_MOST_SUBJECTS = 3
"""One for each channel of the film that says where they are."""
_PALEST = 0.8
RECOLOURED = 6
"""How many times a clip is recoloured by default: each has to be encoded."""


@dataclass(frozen=True)
class Encoders:
    """What ComfyUI's loaders give: MODEL (for its latent scale), CLIP and VAE.

    name: the base's, written into the LoRA. mark: distinguishes these models from others of that name.
    """

    model: Any
    clip: Any
    vae: Any
    name: str
    mark: str = ""


@dataclass(frozen=True)
class Tint:
    """How colours change: by `hue`, in parts of the whole circle, then `pale`, 0 to 1, towards white as bright. Black,
    white and grey stay as they are.
    """

    hue: float = 0.0
    pale: float = 0.0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` [..., H, W, 3] of 0..1 tinted."""
        turned = adjust_hue(pixels.movedim(-1, -3), (self.hue + 0.5) % 1 - 0.5).movedim(-3, -1) if self.hue else pixels
        return turned.lerp(turned.amax(dim=-1, keepdim=True), self.pale)


@dataclass(frozen=True)
class Variant:
    """How a clip is learned once more: `tints`, those of its colours, clip and canvas alike, or of its cast's alone
    where the dataset says where that is, each subject in its own. mirrored: the clip left to right (its canvas as it
    was), with the caption's left and right exchanged.
    """

    tints: tuple[Tint, ...] = (Tint(),)
    mirrored: bool = False

    def fits(self, plate: bool, subjects: bool) -> bool:
        """Whether canvas and caption still determine the clip: the colours of a place that change with its cast's (its
        `subjects` are not separated from it) have to be pictured (`plate`), and which way round a place is must not be.
        """
        return not plate if self.mirrored else plate or subjects or self == Variant()

    def frames(self, pixels: torch.Tensor, subjects: torch.Tensor | None = None) -> torch.Tensor:
        """The clip [T, H, W, 3]; `subjects` [T, H, W, 3] are 1 where each subject is, or all where any is."""
        changed = self.canvas(pixels, subjects)
        return changed.flip(2) if self.mirrored else changed

    def canvas(self, pixels: torch.Tensor, subjects: torch.Tensor | None = None) -> torch.Tensor:
        """The canvas [H, W, 3]; `subjects` [H, W, 3] are 1 where it shows references of each subject."""
        if subjects is None:
            return self.tints[0](pixels)
        changed, others = pixels, torch.ones_like(subjects[..., :1])
        for tint, here in zip(self.tints, subjects.split(1, dim=-1), strict=False):
            changed = torch.lerp(changed, tint(pixels), others * here)
            others = others * (1 - here)
        return changed

    def caption(self, text: str) -> str:
        """What is said of it."""
        exchanged = {"left": "right", "right": "left"}
        return re.sub(r"\b(left|right)\b", lambda found: exchanged[found[0]], text) if self.mirrored else text


PLAIN = (Variant(),)
"""Every clip as it is."""


def variants(recoloured: int, mirrored: bool) -> tuple[Variant, ...]:
    """Each clip as it is, `recoloured` times in other colours, half of them paler, and left to right; of each clip
    those that fit.
    """
    rng = random.Random("tints")

    def tint() -> Tint:
        return Tint(rng.random(), rng.uniform(0, _PALEST) * rng.randrange(2))

    others = [Variant(tuple(tint() for _ in range(_MOST_SUBJECTS))) for _ in range(recoloured)]
    return (Variant(), *others, *([Variant(mirrored=True)] if mirrored else []))


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
    """Encode every clip's first `frames` frames at `size` (width, height; None: the canvas's own) into `folder`.

    cut: how the canvas becomes the clip. Files already there are kept while clip, caption, size and models stay the
    same. shown: the ways in which each is learned that fits them; all clips in the first way come first.

    Raises CastDataError: a clip is too short, or a side is no multiple of 16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    wanted = [
        (clip, item, way, variant)
        for way, variant in enumerate(shown)
        for clip, item in enumerate(items)
        if variant.fits(item.plate, bool(item.subjects))
    ]
    for number, (clip, item, way, variant) in enumerate(wanted, start=1):
        name = f"{item.id}.{way}" if way else item.id
        path = folder / f"{name}.safetensors"
        told = [item.text, frames, size, first_frame, encoders.name + encoders.mark, cut]
        files = [item.clip, item.canvas, *([item.subjects] if item.subjects else [])]
        mark = fingerprint_of([*told, astuple(variant)] if way else told, files)
        way_of = partial(_encode, item, variant, encoders, first_frame, frames, size, cut)
        loaded, made = cached_tensors(path, mark, way_of)
        if made:
            say(f"encoded {number}/{len(wanted)} {name}")
        examples.append(Example(loaded["latents"], loaded["text"], loaded.get("known"), loaded.get("subject"), clip))
    return examples


def cached_tensors(
    path: Path, mark: str, make: Callable[[], Mapping[str, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors in the file `path`, in fp32, and whether they had to be made: if there is no such file, or it has
    another `mark`.
    """
    made = not path.exists() or _mark_of(path) != mark
    if made:
        tensors = {key: value.float().cpu().contiguous() for key, value in make().items()}
        with whole_file(path) as part:
            save_file(tensors, part, metadata={"fingerprint": mark})
    return load_file(path), made


def _mark_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("fingerprint"))


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
    picture = to_pil(read_picture(item.canvas))
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
    canvas = variant.canvas(from_pil(picture), None if masks is None else pictured)
    clip = variant.frames(clip, masks)
    if cut == "latents":
        latents = torch.cat([encode_video(encoders, canvas[None]), encode_video(encoders, clip)], dim=1)
    else:
        latents = encode_video(encoders, target_frames(canvas, clip))
    text = encoders.clip.encode_from_tokens(encoders.clip.tokenize(variant.caption(item.text)))[0]
    tensors = {"latents": latents, "text": text}
    if masks is not None:
        own = latents.shape[1] - (cut == "latents")
        cast = masks.amax(dim=-1)
        seen = coverage_of(cast.flip(2) if variant.mirrored else cast, (own, *latents.shape[2:]))
        tensors["subject"] = F.pad(seen, (0, 0, 0, 0, latents.shape[1] - own, 0))
    if first_frame == "concat":
        # What is not known is mid-grey to the VAE, as core's WanImageToVideo has it.
        grey = torch.full((4 * (latents.shape[1] - 1), *canvas.shape), 0.5)
        tensors["known"] = encode_video(encoders, torch.cat([canvas[None], grey]))
    return tensors


def _cells(item: CastItem, size: tuple[int, int]) -> torch.Tensor:
    """[H, W, 3], 1 where the canvas of `size` (width, height) shows references of each subject."""
    cells = torch.zeros(*size[::-1], 3)
    for box, owner in zip(item.boxes, item.owners, strict=True):
        cells[box.y : box.y + box.height, box.x : box.x + box.width, owner] = 1
    return cells


def encode_video(encoders: Encoders, video: torch.Tensor) -> torch.Tensor:
    """The latents [C, F, h, w] of frames [T, H, W, 3], as the model takes them."""
    normalised: torch.Tensor = encoders.model.model.process_latent_in(encoders.vae.encode(video))
    return normalised[0]


def coverage_of(masks: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Where masks [T, H, W] are in latents of `shape` (F, h, w), whose first is one picture: [F, h, w] of 0..1."""
    frames, *size = shape
    first = F.adaptive_max_pool2d(masks[:1], size)
    return torch.cat([first, F.adaptive_max_pool3d(masks[None, 1:], (frames - 1, *size))[0]])
