"""The interface of a model family: encoding to latents, decoding to pixels, and the sizes that differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from comfy.model_patcher import ModelPatcher
from comfy.utils import common_upscale
from torch import Tensor

from ...film.picture_reader import on_white
from ...film.pixels import check_cover
from ...film.reel.latent_space import LatentSpace

__all__ = ["Decoder", "Family", "UnsupportedVaeError", "fit"]


class UnsupportedVaeError(ValueError):
    """A VAE of no family that is known, or not of the model's. The message is one sentence for the user."""


class Decoder(Protocol):
    """Decodes one take; what it remembers of the frames before lives in it between calls."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """The next latents [1, C, T, h, w] of the take, in LATENT space, as frames [t, H, W, 3] in 0..1, a few at a
        time, on the VAE's output device. Raises ValueError for latents of another VAE, and ComfyUI's
        InterruptProcessingException.
        """


class Family(Protocol):
    """A family of models, with one VAE of it.

    latents: the VAE's latent space; its `family` is the name that reels keep.
    """

    @property
    def latents(self) -> LatentSpace: ...

    def decoder(self) -> Decoder:
        """A decoder for a take that begins with the next latents it gets."""

    def chunks(self, latent_frames: int) -> int:
        """About how many pieces the decoder gives of a fresh take of so many latent frames, for a progress bar."""

    def encode(self, frames: Tensor, width: int, height: int) -> Tensor:
        """Frames [n, H, W, 3 or more] in 0..1 as the beginning of a take, [1, C, T, h, w] in LATENT space.

        width, height: of the film in pixels; frames are scaled to cover it and cropped around their centre. Frames that
        fill no whole latent frame are left out at the end.
        """

    def check(self, model: ModelPatcher) -> None:
        """Raises UnsupportedVaeError unless the model films in this latent space."""

    def cell(self, model: ModelPatcher) -> int:
        """Pixels to a side of one token: a film's width and height are multiples of it."""

    def text_width(self, model: ModelPatcher) -> int:
        """Numbers to each row of text that the model reads."""


def fit(frames: Tensor, width: int, height: int) -> Tensor:
    """Frames [n, H, W, 3 or 4] in 0..1 scaled to cover width x height, cropped around the centre: [n, H, W, 3]; what a
    fourth channel says is transparent is white. Raises PixelError for frames too thin to be cropped so.
    """
    check_cover((frames.shape[2], frames.shape[1]), (width, height))
    scaled = common_upscale(on_white(frames).movedim(-1, 1), width, height, "bicubic", "center").clamp(0, 1)
    sized: Tensor = scaled.movedim(1, -1)
    return sized
