"""Wan: its sizes, and its VAE used as a stream: latents in blocks of any size, frames out chunk by chunk.

ComfyUI's `VAE.decode` keeps the decoder's feature cache (the last two time steps of every causal convolution's input)
only for the length of one call, so a film decoded in pieces would flicker at every seam. `StreamingDecoder` keeps the
cache between calls. The frames are those of one `VAE.decode` over the whole take, and memory does not grow with the
take's length.

Two families have this structure: the Wan 2.1 VAE (also used by Wan 2.2 14B; compression 4 x 8 x 8, 16 channels) and
the Wan 2.2 TI2V 5B VAE (4 x 16 x 16, 48 channels). In both the first latent frame of a take becomes one frame and
every later one four.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from comfy import model_management
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...film.reel.latent_space import WAN, LatentSpace
from .family import UnsupportedVaeError, fit

__all__ = ["MASK_CHANNELS", "PLAIN", "VAES", "StreamingDecoder", "WanFamily", "family_of", "is_plain"]

# ComfyUI asks for less memory when a clip has four latent frames or fewer. With a cache that is already full, even a
# short block costs what a chunk of a long clip costs, so the estimate is always taken for a clip of this length.
_LONG_CLIP = 8


VAES = "a Wan VAE (wan_2.1_vae.safetensors, or wan2.2_vae.safetensors for Wan 2.2 TI2V 5B)"
PLAIN = (WanModel, CausalWanModel)
"""Wan's networks without inputs beside text, latents and pictures."""
MASK_CHANNELS = 4
"""An image-to-video Wan says which frames are known in so many channels, before those of the frames themselves."""


def is_plain(model: ModelPatcher) -> bool:
    """Whether a model is a Wan without inputs beside text, latents and pictures."""
    return type(getattr(model.model, "diffusion_model", None)) in PLAIN


def family_of(vae: VAE) -> WanFamily | None:
    """The family, if the VAE is one of Wan's two."""
    return WanFamily(vae) if isinstance(vae.first_stage_model, (wan21.WanVAE, wan22.WanVAE)) else None


@dataclass(frozen=True, eq=False)
class WanFamily:
    """See Family. The Wan 2.1 VAE has 16 channels and 8 pixels to a side, the 2.2 TI2V 5B one 48 and 16."""

    vae: VAE

    @property
    def latents(self) -> LatentSpace:
        """Four frames to a latent frame."""
        spatial, temporal = self.vae.spacial_compression_encode(), self.vae.temporal_compression_decode()
        return LatentSpace(WAN, self.vae.latent_channels, spatial, temporal)

    def decoder(self) -> StreamingDecoder:
        """A stream over a take."""
        return StreamingDecoder(self.vae)

    def chunks(self, latent_frames: int) -> int:
        """Exact for a take that is decoded in one call."""
        if isinstance(self.vae.first_stage_model, wan22.WanVAE):
            return latent_frames
        return 1 + latent_frames // 2 if latent_frames > 0 else 0

    def encode(self, frames: Tensor, width: int, height: int) -> Tensor:
        """Of the frames after the first only whole groups of four are used: T = 1 + (n - 1) // 4."""
        encoded: Tensor = self.vae.encode(fit(frames, width, height))
        return encoded

    def check(self, model: ModelPatcher) -> None:
        """Latents of as many channels."""
        channels = model.model.latent_format.latent_channels
        if self.vae.latent_channels != channels:
            fitting = "wan2.2_vae.safetensors" if channels == 48 else "wan_2.1_vae.safetensors"
            raise UnsupportedVaeError(
                f"The model's latents have {channels} channels and the VAE's {self.vae.latent_channels}: "
                f"load {fitting} with this model."
            )

    def cell(self, model: ModelPatcher) -> int:
        """A patch of the network."""
        return int(self.latents.spatial * max(model.model.diffusion_model.patch_size[1:]))

    def text_width(self, model: ModelPatcher) -> int:
        """Of the text encoder's rows (umt5_xxl: 4096)."""
        return int(model.model.diffusion_model.text_dim)


class StreamingDecoder:
    """Decodes one take; the feature cache lives in this object between calls.

    A take that begins with a cut gets a new decoder; a shot that continues the take goes on with the decoder of the
    shot before. If a chunk fails half-way (out of memory, ComfyUI's own interrupt check inside a layer), the cache is
    lost and the decoder refuses to go on; an interrupt between two chunks loses nothing.
    """

    def __init__(self, vae: VAE) -> None:
        """Take a Wan VAE as it is; nothing is loaded before the first `decode`."""
        self._vae = vae
        self._is_22 = isinstance(vae.first_stage_model, wan22.WanVAE)
        decoder = vae.first_stage_model.decoder
        count = wan22.count_conv3d if self._is_22 else wan21.count_cache_layers
        self._cache: list[Tensor | str | None] | None = [None] * count(decoder)
        self.latent_frames = 0
        """Latent frames decoded so far in this take."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode the next block of the take.

        latents: [1, C, T, h, w], T >= 1, in the space of ComfyUI's LATENT type (what `VAE.decode` takes). Yields [t, H,
        W, channels] in 0..1 on the VAE's output device, t = 1, 4 or 8. Only one chunk is alive at a time unless the
        caller keeps more. The block is decoded as it is consumed. Raises ValueError: latents of another shape than this
        VAE takes; RuntimeError: an earlier chunk of this take failed;
        comfy.model_management.InterruptProcessingException: checked before every chunk.
        """
        channels = self._vae.latent_channels
        if latents.ndim != 5 or latents.shape[0] != 1 or latents.shape[1] != channels:
            raise ValueError(
                f"The VAE takes latents of shape [1, {channels}, frames, height, width] but got {list(latents.shape)}; "
                "use the VAE that belongs to the model."
            )
        self._load(latents)
        start = 0
        while start < latents.shape[2]:
            size = 1 if self.latent_frames == 0 or self._is_22 else 2
            chunk = latents[:, :, start : start + size]
            model_management.throw_exception_if_processing_interrupted()
            yield self._decode_chunk(chunk)
            start += size

    def park(self) -> None:
        """Move the feature cache to where the VAE's weights go when they are not in use.

        Worth it when another large model runs before the next block: at 832x480 the Wan 2.1 cache holds about 2 GB.
        The decoder fetches each part when its layer runs, so nothing needs to undo this.
        """
        cache = self._held_cache()
        device = self._vae.patcher.offload_device
        # Entries are views of larger activations; clones let those go.
        self._cache = [x.to(device, copy=True) if isinstance(x, Tensor) else x for x in cache]

    @property
    def nbytes(self) -> int:
        """Size of the feature cache in bytes (0 before the first block)."""
        return sum(x.nbytes for x in self._held_cache() if isinstance(x, Tensor))

    def _load(self, latents: Tensor) -> None:
        vae = self._vae
        shape = (1, latents.shape[1], _LONG_CLIP, *latents.shape[3:])
        memory = vae.memory_used_decode(shape, vae.vae_dtype)
        model_management.load_models_gpu([vae.patcher], memory_required=memory, force_full_load=vae.disable_offload)

    def _held_cache(self) -> list[Tensor | str | None]:
        if self._cache is None:
            raise RuntimeError("Decoding of this take failed before; decode the take again from its start.")
        return self._cache

    # Outside ComfyUI's executor autograd is on, and a cache with a graph would keep every earlier chunk alive.
    @torch.no_grad()
    def _decode_chunk(self, latents: Tensor) -> Tensor:
        vae = self._vae
        cache, self._cache = self._held_cache(), None  # a layer that fails leaves a half-written cache: drop it
        with model_management.cuda_device_context(vae.device):
            z = vae.first_stage_model.conv2(latents.to(device=vae.device, dtype=vae.vae_dtype))
            pixels = self._run_22(z, cache) if self._is_22 else self._run_21(z, cache)
            pixels = pixels[0].to(device=vae.output_device, dtype=vae.vae_output_dtype(), copy=True)
        self._cache = cache
        self.latent_frames += latents.shape[2]
        return vae.process_output(pixels).movedim(0, -1)

    def _run_21(self, z: Tensor, cache: list[Tensor | str | None]) -> Tensor:
        # The decoder caches the last two frames *of the chunk*. It is only meant for one frame at the start or at the
        # very end, so after a one-frame chunk the layers that run at the latent frame rate cache one frame and would
        # put zeros before it. Give them back the frame before. They are the layers at the latents' size: the first
        # upsampling is both temporal and spatial.
        earlier: dict[int, Tensor] = {}
        if z.shape[2] == 1:
            earlier = {
                i: x[:, :, -1:].clone()
                for i, x in enumerate(cache)
                if isinstance(x, Tensor) and x.shape[3:] == z.shape[3:]
            }
        pieces = self._vae.first_stage_model.decoder(z, feat_cache=cache, feat_idx=[0])
        for i, frame in earlier.items():
            latest = cache[i]
            assert isinstance(latest, Tensor)
            cache[i] = torch.cat([frame.to(latest.device), latest], dim=2)
        return torch.cat(pieces, dim=2)

    def _run_22(self, z: Tensor, cache: list[Tensor | str | None]) -> Tensor:
        # This decoder takes one latent frame at a time and completes one-frame caches by itself.
        first = self.latent_frames == 0
        out = self._vae.first_stage_model.decoder(z, feat_cache=cache, feat_idx=[0], first_chunk=first)
        return wan22.unpatchify(out, patch_size=2)
