"""Clips of a cast dataset as what the trainer learns from: latents, first frame, encoded caption; kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..film.first_frame import COLLAGE_FRAMES
from .cast_data import CastDataError, CastItem, fingerprint_of, pixels_of, read_frames
from .lora_recipe import Example, FirstFrame


@dataclass(frozen=True)
class Encoders:
    """What ComfyUI's loaders give: MODEL (for its latent scale), CLIP and VAE; ``name`` tells them from others."""

    model: Any
    clip: Any
    vae: Any
    name: str


def encode_dataset(
    items: Sequence[CastItem],
    encoders: Encoders,
    first_frame: FirstFrame,
    frames: int,
    size: tuple[int, int] | None,
    folder: Path,
    *,
    say: Callable[[str], None] = print,
) -> list[Example]:
    """Encode every clip's first ``frames`` frames at ``size`` (width, height; None: the canvas's own) into ``folder``.

    The collage stands in frames 0 to 3, then the clip goes on with its own frame 4: nothing is moved. Files already
    there are kept while clip, caption, size and models stay the same.

    Raises:
        CastDataError: a clip is too short, or a side is no multiple of 16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, item in enumerate(items, start=1):
        path = folder / f"{item.id}.safetensors"
        mark = fingerprint_of([item.text, frames, size, first_frame, encoders.name], [item.clip, item.canvas])
        if not path.exists() or _mark_of(path) != mark:
            tensors = _encode(item, encoders, first_frame, frames, size)
            part = path.with_suffix(".part")
            save_file(tensors, part, metadata={"fingerprint": mark})
            part.replace(path)
            say(f"encoded {number}/{len(items)} {item.id}")
        loaded = load_file(path)
        examples.append(Example(loaded["latents"], loaded["text"], loaded.get("known")))
    return examples


def target_frames(canvas: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """The video [T, H, W, 3] to learn: the canvas [H, W, 3] in place of the clip's first four frames."""
    return torch.cat([canvas[None].expand(COLLAGE_FRAMES, -1, -1, -1), frames[COLLAGE_FRAMES:]])


@torch.inference_mode()
def _encode(
    item: CastItem, encoders: Encoders, first_frame: FirstFrame, frames: int, size: tuple[int, int] | None
) -> dict[str, torch.Tensor]:
    with Image.open(item.canvas) as picture:
        picture = picture.convert("RGB")
    if size is not None and picture.size != size:
        picture = picture.resize(size, Image.Resampling.BOX)
    if any(side % 16 for side in picture.size):
        raise CastDataError(f"Clips of {picture.width} x {picture.height} do not fit Wan's latents: "
                            "train at a size of which both sides are multiples of 16.")  # fmt: skip
    canvas = pixels_of(picture)
    clip, _ = read_frames(item.clip, frames, picture.size)
    tensors = {
        "latents": _latents(encoders, target_frames(canvas, clip)),
        "text": encoders.clip.encode_from_tokens(encoders.clip.tokenize(item.text))[0],
    }
    if first_frame == "concat":
        # What is not known is mid-grey to the VAE, as core's WanImageToVideo has it.
        grey = torch.full_like(clip, 0.5)
        tensors["known"] = _latents(encoders, torch.cat([canvas[None], grey[1:]]))
    return {key: value.float().cpu().contiguous() for key, value in tensors.items()}


def _latents(encoders: Encoders, video: torch.Tensor) -> torch.Tensor:
    normalised: torch.Tensor = encoders.model.model.process_latent_in(encoders.vae.encode(video))
    return normalised[0]


def _mark_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("fingerprint"))
