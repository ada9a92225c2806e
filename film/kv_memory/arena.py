"""The tensors behind a KV memory: one preallocated row of frame slots per layer, keys and values head-major."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .settings import MemorySettings

__all__ = ["FrameArena", "KVLayout", "temporal_angles", "turn"]


@dataclass(frozen=True)
class KVLayout:
    """The numbers a KV memory takes from its model and latent size.

    layers, heads: of the model; head_dim: channels of one head; tokens: of one latent frame after patching;
    temporal_channels: leading channels of a head that RoPE rotates with time; theta: RoPE base.
    """

    layers: int
    heads: int
    head_dim: int
    tokens: int
    temporal_channels: int
    theta: float = 10000.0

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of every field."""
        return asdict(self)


class FrameArena:
    """Frame slots `[pending | bank | sink | ring | scratch]` of every layer; slot s holds tokens s*T to (s+1)*T.

    k[l], v[l]: [1, heads, slots * tokens, head_dim]. The bank is filled from its right end so that bank, sink and ring
    always make one contiguous range, which dense attention reads in place: attention over keys that already carry their
    rotation does not depend on their order. `pending` is the bank's next prototype, `scratch` takes the frames that
    sparse activation picks, right behind the ring. Source: docs/kernels.md, slots.
    """

    def __init__(
        self, layout: KVLayout, settings: MemorySettings, ring: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layout = layout
        self.ring = ring
        self.bank_base = 1 if settings.bank else 0
        self.sink_base = self.bank_base + settings.bank
        self.ring_base = self.sink_base + settings.sink
        self.slots = self.ring_base + ring + settings.active
        shape = (1, layout.heads, self.slots * layout.tokens, layout.head_dim)
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.layers)]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.layers)]

    @staticmethod
    def bytes_needed(layout: KVLayout, settings: MemorySettings, ring: int, dtype: torch.dtype) -> int:
        """Bytes of an arena before it is made, the relative mode's second copy of sink and bank keys included."""
        frames = 2 * ((1 if settings.bank else 0) + settings.bank + settings.sink + ring + settings.active)
        if settings.positions == "relative":
            frames += settings.bank + settings.sink
        return frames * layout.layers * layout.heads * layout.tokens * layout.head_dim * dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return self.k[0].dtype

    @property
    def device(self) -> torch.device:
        """Where keys and values live."""
        return self.k[0].device

    def span(self, layer: int, first: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of keys and values of `frames` slots from `first`: [1, heads, frames * tokens, head_dim] each."""
        start, length = first * self.layout.tokens, frames * self.layout.tokens
        return self.k[layer].narrow(2, start, length), self.v[layer].narrow(2, start, length)

    def by_frame(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of keys and values with the slots as a dimension: [heads, slots, tokens, head_dim] each."""
        shape = (self.layout.heads, self.slots, self.layout.tokens, self.layout.head_dim)
        return self.k[layer].view(shape), self.v[layer].view(shape)


def temporal_angles(layout: KVLayout, frames: torch.Tensor) -> torch.Tensor:
    """RoPE angles in radians, fp32 [..., temporal_channels / 2], of a shift in time by `frames` latent frames [...]."""
    half = layout.temporal_channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=frames.device) / half
    return frames.to(torch.float32).unsqueeze(-1) * layout.theta**-exponent


def turn(keys: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the temporal channel pairs of `keys` [..., head_dim] by `angles` [..., pairs] (broadcast), in fp32.

    Pairs are interleaved and come first in a head, as in Wan. Returns keys' shape and dtype.
    """
    channels = 2 * angles.shape[-1]
    even, odd = keys[..., :channels].float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((turned.to(keys.dtype), keys[..., channels:]), dim=-1)
