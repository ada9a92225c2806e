"""Tiny decoders of Wan's latents (the TAEHV architecture, `lighttaew2_1` and `lighttaew2_2`), used as a stream.

Core's VAE loader lists them from `models/vae_approx`. They are Wan's family with a smaller network: a film can be
decoded with one in place of the full VAE, at a fraction of its time and memory and with softer detail. Each block of
the decoder reads the frame before, at its own frame rate; the stream keeps that frame between calls, so the frames are
those of one `VAE.decode` over the whole take.

Source: the architecture is ComfyUI's comfy/taesd/taehv.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy import model_management
from comfy.latent_formats import HunyuanVideo
from comfy.sd import VAE
from comfy.taesd.taehv import TAEHV, MemBlock
from torch import Tensor

from .family import UnsupportedVaeError
from .wan import WanFamily

__all__ = ["TinyWanFamily", "family_of"]

_CHANNELS = (16, 48)
"""Of Wan 2.1's and Wan 2.2 TI2V 5B's latents; other models' tiny decoders have others."""
_CHUNK = 8
"""Latent frames decoded at once: 32 frames."""


def family_of(vae: VAE) -> TinyWanFamily | None:
    """The family, if the VAE is a tiny one for latents of Wan's channels.

    Raises UnsupportedVaeError: core takes the file for HunyuanVideo's and would scale Wan's latents as that model's.
    """
    network = vae.first_stage_model
    if not isinstance(network, TAEHV) or vae.latent_channels not in _CHANNELS:
        return None
    if network.latent_format is HunyuanVideo:
        raise UnsupportedVaeError(
            "ComfyUI takes a tiny VAE in fp16 with 16 channels for HunyuanVideo's: load lighttaew2_1.safetensors for "
            "Wan's latents."
        )
    return TinyWanFamily(vae)


@dataclass(frozen=True, eq=False)
class TinyWanFamily(WanFamily):
    """See Family. Its latent space is that of the full VAE with as many channels."""

    def decoder(self) -> _TinyDecoder:  # type: ignore[override]
        """A stream over a take."""
        return _TinyDecoder(self.vae)

    def chunks(self, latent_frames: int) -> int:
        """Exact for a take that is decoded in one call."""
        return -(-latent_frames // _CHUNK)


class _TinyDecoder:
    """Decodes one take; the last frame before each block lives here between calls."""

    def __init__(self, vae: VAE) -> None:
        self._vae = vae
        self._before: dict[int, Tensor] = {}
        self._begun = False

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """See Decoder; t is up to 32."""
        vae, channels = self._vae, self._vae.latent_channels
        if latents.ndim != 5 or latents.shape[0] != 1 or latents.shape[1] != channels:
            raise ValueError(
                f"The VAE takes latents of shape [1, {channels}, frames, height, width] but got {list(latents.shape)}; "
                "use the VAE that belongs to the model."
            )
        shape = (1, channels, _CHUNK, *latents.shape[3:])
        memory = vae.memory_used_decode(shape, vae.vae_dtype)
        model_management.load_models_gpu([vae.patcher], memory_required=memory, force_full_load=vae.disable_offload)
        for chunk in latents.split(_CHUNK, dim=2):
            model_management.throw_exception_if_processing_interrupted()
            yield self._decode_chunk(chunk)

    @torch.no_grad()
    def _decode_chunk(self, latents: Tensor) -> Tensor:
        vae, network = self._vae, self._vae.first_stage_model
        with model_management.cuda_device_context(vae.device):
            z = latents.to(device=vae.device, dtype=vae.vae_dtype)
            x = network.process_in(z)[0].movedim(0, 1)
            for number, block in enumerate(network.decoder):
                x = self._with_frame_before(number, block, x) if isinstance(block, MemBlock) else block(x)
            if network.patch_size > 1:
                x = F.pixel_shuffle(x, network.patch_size)
            x = x if self._begun else x[network.frames_to_trim :]
            self._begun = True
            x = x.to(device=vae.output_device, dtype=vae.vae_output_dtype(), copy=True)
        return x.clamp_(0, 1).movedim(1, -1)

    def _with_frame_before(self, number: int, block: MemBlock, x: Tensor) -> Tensor:
        """Frames [t, C, h, w] with those one earlier beside them; before a take there are zeros."""
        before = self._before.get(number)
        first = torch.zeros_like(x[:1]) if before is None else before
        self._before[number] = x[-1:].clone()
        result: Tensor = block(x, torch.cat((first, x[:-1])))
        return result
