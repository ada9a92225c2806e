"""Stable Video Diffusion: a frame to each latent frame, 4 channels, 8 pixels to a side; decoded by ComfyUI's own VAE.

Its network has the frames as rows of the batch; everywhere else a shot is [1, 4, T, h, w] as of any family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_base
from comfy import model_management
from comfy.ldm.modules.temporal_ae import VideoDecoder
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...film.reel.latent_space import LatentSpace
from .family import UnsupportedVaeError, fit

__all__ = ["VAES", "SvdFamily", "family_of", "from_rows", "to_rows"]

VAES = "that of Stable Video Diffusion (svd.safetensors)"


def family_of(vae: VAE) -> SvdFamily | None:
    """The family, if the VAE decodes with SVD's temporal decoder."""
    decoder = getattr(vae.first_stage_model, "decoder", None)
    return SvdFamily(vae) if isinstance(decoder, VideoDecoder) else None


def to_rows(latents: Tensor) -> Tensor:
    """[1, C, T, h, w] as the network has it, [T, C, h, w]."""
    return latents[0].movedim(1, 0)


def from_rows(rows: Tensor) -> Tensor:
    """[T, C, h, w] as shots are kept, [1, C, T, h, w]."""
    return rows.movedim(0, 1)[None]


@dataclass(frozen=True, eq=False)
class SvdFamily:
    """See Family."""

    vae: VAE

    @property
    def latents(self) -> LatentSpace:
        """One frame to a latent frame."""
        return LatentSpace("svd", self.vae.latent_channels, self.vae.spacial_compression_encode(), 1)

    def decoder(self) -> _Decoder:
        """ComfyUI's own decoding; nothing is remembered between the pieces of a take."""
        return _Decoder(self.vae)

    def chunks(self, latent_frames: int) -> int:
        """A piece that is given is decoded at once."""
        return 1 if latent_frames else 0

    def encode(self, frames: Tensor, width: int, height: int) -> Tensor:
        """Each frame by itself."""
        return from_rows(self.vae.encode(fit(frames, width, height)))

    def check(self, model: ModelPatcher) -> None:
        """Any image-to-video SVD."""
        if not isinstance(model.model, comfy.model_base.SVD_img2vid):
            raise UnsupportedVaeError(
                f"This VAE is Stable Video Diffusion's and the model a {type(model.model).__name__}: "
                "load model and VAE from one checkpoint."
            )

    def cell(self, model: ModelPatcher) -> int:
        """The network halves its picture at each level but the first."""
        levels = len(model.model.model_config.unet_config["channel_mult"])
        return int(self.latents.spatial * 2 ** (levels - 1))

    def text_width(self, model: ModelPatcher) -> int:
        """Of the network's cross-attention, where the picture's embedding or text is read."""
        return int(model.model.model_config.unet_config["context_dim"])


class _Decoder:
    def __init__(self, vae: VAE) -> None:
        self._vae = vae

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        channels = self._vae.latent_channels
        if latents.ndim != 5 or latents.shape[0] != 1 or latents.shape[1] != channels:
            raise ValueError(
                f"The VAE takes latents of shape [1, {channels}, frames, height, width] but got {list(latents.shape)}; "
                "use the VAE that belongs to the model."
            )
        model_management.throw_exception_if_processing_interrupted()
        yield self._vae.decode(to_rows(latents))
