"""Shots of own films as the trainer reads them: latents of whole takes, keyframes encoded alone, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ....film.dual_cache import spread_frames
from ..samples import SceneShot, TrainingScene, save_scene
from .captions import Writer
from .films import Shot, take_frames

_SHEET_WIDTH = 320
_PER_ROW = 3
_LOOK = (336, 336)
"""Pixels that suffice for CLIP and for a sheet."""
_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class SceneModels:
    """The models that embed, caption and encode, as ComfyUI's loaders give them.

    embedder: the keyframe CLIP. clip, vae, latent_format: the video model's text encoder, VAE and latent scale. writer:
    a vision-language model as CLIP; None where captions are given.
    """

    embedder: Any
    clip: Any
    vae: Any
    latent_format: Any
    writer: Any = None

    @cached_property
    def marks(self) -> dict[str, str]:
        """Fingerprints of them all."""
        from ....host.model_fingerprint import fingerprint_clip, fingerprint_vae

        return {
            "embedder": self.embedder.fingerprint,
            "clip": fingerprint_clip(self.clip),
            "vae": fingerprint_vae(self.vae),
            "writer": "" if self.writer is None else fingerprint_clip(self.writer),
        }

    def asked(self) -> Writer | None:
        """The vision-language model as a function."""
        from ....host.media.ask import ask_about_picture

        writer = self.writer
        return None if writer is None else lambda *question: ask_about_picture(writer, *question)

    def likeness(self, pictures: torch.Tensor) -> Callable[[str], float]:
        """Cosine of a text, sentence by sentence, with pictures [n, H, W, 3]; the mean of both."""
        images = F.normalize(self.embedder.images(pictures).mean(0), dim=0)
        return lambda text: float(images @ F.normalize(self.embedder.text(text).mean(0), dim=0))


def frame_times(shot: Shot, fps: float, longest: float) -> list[float]:
    """Times of a take's frames: `fps` a second from the shot's start, 1 more than a multiple of 4 of them, in the
    middle of each, so that rounded times of cuts show no neighbour's frame.
    """
    start, end = shot
    count = max(int((min(end - start, longest)) * fps + 1e-6), 1)
    return [start + (number + 0.5) / fps for number in range(1 + (count - 1) // 4 * 4)]


def look(path: Path, shot: Shot, count: int = _PER_ROW) -> torch.Tensor:
    """Frames [count, H, W, 3] spread over a shot."""
    start, end = shot
    return take_frames(path, [start + (end - start) * (number + 0.5) / count for number in range(count)], _LOOK)


def embed_middles(path: Path, shots: Sequence[Shot], embedder: Any) -> torch.Tensor:
    """Unit vectors [shots, d] of the shots' middle frames, a few at a time: a film has thousands."""
    times = [(start + end) / 2 for start, end in shots]
    parts = [times[first : first + _AT_ONCE] for first in range(0, len(times), _AT_ONCE)]
    return torch.cat([embedder.images(take_frames(path, part, _LOOK)) for part in parts])


def sheet_of(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """One picture [H, W, 3] of rows of frames [n, h, w, 3] of one size and number."""
    high = round(_SHEET_WIDTH * rows[0].shape[1] / rows[0].shape[2])
    small = [F.interpolate(row.movedim(-1, 1), (high, _SHEET_WIDTH), mode="area") for row in rows]
    return torch.cat([torch.cat(list(row), dim=2) for row in small], dim=1).movedim(0, -1)


@torch.inference_mode()
def encode_scene(
    path: Path,
    shots: Sequence[tuple[Shot, str]],
    models: SceneModels,
    file: Path,
    *,
    width: int,
    height: int,
    fps: float,
    longest: float,
    keyframes: int,
) -> None:
    """Write a scene's file: its shots' times and captions in, tensors out.

    Raises UnsupportedVaeError: the VAE is none of Wan's.
    """
    encoded = []
    for shot, caption in shots:
        frames = take_frames(path, frame_times(shot, fps, longest), (width, height))
        encoded.append(_encode_shot(frames, caption, models, width, height, keyframes))
    save_scene(TrainingScene(models.marks["vae"], models.marks["clip"], tuple(encoded)), file)


def _encode_shot(
    frames: torch.Tensor, caption: str, models: SceneModels, width: int, height: int, keyframes: int
) -> SceneShot:
    from ....host.families import encode_clip

    def latents(pictures: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = models.latent_format.process_in(encode_clip(models.vae, pictures, width, height))
        return made[0].float().cpu()

    whole = latents(frames)
    chosen = frames[[4 * place for place in spread_frames(whole.shape[1], keyframes)]]
    text = models.clip.encode_from_tokens(models.clip.tokenize(caption))
    return SceneShot(
        latents=whole,
        text=(text[0] if isinstance(text, tuple) else text)[0].float().cpu(),
        caption=F.normalize(models.embedder.text(caption).mean(0), dim=0),
        keyframes=torch.stack([latents(picture[None]) for picture in chosen]),
        embeddings=models.embedder.images(chosen),
    )
