"""The layers that a joint model has more than its base: motion into the tokens, and motion out of them.

A base maps patches of C latent channels to tokens (W_in) and tokens back (W_out). The joint model's W_in+ has C more
input channels and its W_out+ C more output channels (VideoJAM, section 4.1). Kept apart from the base's own weights,
the added rows are one convolution and one projection: the base stays as it is, whatever its precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MotionLayers"]


class MotionLayers(nn.Module):
    """Motion embedding and motion head for a DiT of width `dim` over `channels` latent channels and patches `patch`.

    separate: False shares the base head's norm and modulation, which is the paper's one widened projection; True gives
    motion a modulation of its own, a second head. operations: ComfyUI's, or torch.nn; the weights are uninitialised
    until loaded or until `reset`.

    State-dict keys are the file's: embedding.weight [dim, channels, *patch], head.weight [patches * channels, dim] with
    rows in the order (t, y, x, channel), head.bias, and modulation [1, 2, dim] of a separate head.
    """

    def __init__(
        self,
        dim: int,
        channels: int,
        patch: tuple[int, int, int],
        *,
        separate: bool = False,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dim, self.channels, self.patch = dim, channels, patch
        where = {"device": device, "dtype": dtype}
        self.embedding = operations.Conv3d(channels, dim, kernel_size=patch, stride=patch, bias=False, **where)
        self.head = operations.Linear(dim, math.prod(patch) * channels, **where)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim, **where)) if separate else None  # type: ignore[arg-type]

    @property
    def separate(self) -> bool:
        """Whether motion has a head of its own."""
        return self.modulation is not None

    @torch.no_grad()
    def reset(self, base_modulation: Tensor | None = None) -> None:
        """The start of training: the joint model computes what its base computes, and predicts no motion.

        base_modulation: [1, 2, dim], where a separate head's modulation begins.
        """
        for parameter in (self.embedding.weight, self.head.weight, self.head.bias):
            parameter.zero_()
        if self.modulation is not None and base_modulation is not None:
            self.modulation.copy_(base_modulation)

    def embed(self, motion: Tensor) -> Tensor:
        """Noisy motion latents [B, channels, T, h, w] to what is added to the tokens, [B, tokens, dim].

        h, w: as the base's, padded to whole patches as ComfyUI pads them (circular).
        """
        missing = [-size % patch for size, patch in zip(motion.shape[2:], self.patch)]
        if any(missing):
            pad = [amount for size in reversed(missing) for amount in (0, size)]
            motion = F.pad(motion, pad, mode="circular")
        embedded: Tensor = self.embedding(motion)
        return embedded.flatten(2).transpose(1, 2)

    def predict(
        self, tokens: Tensor, time: Tensor, base_modulation: Tensor, grid: tuple[int, int, int], eps: float
    ) -> Tensor:
        """The motion velocity [B, channels, T, h, w] in whole patches that the last block's tokens hold.

        tokens: [B, T * rows * columns, dim]. time: time embedding [B, 1 or T, dim]. base_modulation: [1, 2, dim] of the
        base's head, on the tokens' device. grid: tokens along T, rows, columns. eps: of the base head's norm.
        """
        own = self.modulation if self.modulation is not None else base_modulation
        shift, scale = (own.to(tokens)[:, None] + time[:, :, None]).unbind(2)
        normed = F.layer_norm(tokens, (self.dim,), eps=eps).unflatten(1, (shift.shape[1], -1))
        modulated = torch.addcmul(shift[:, :, None], normed, 1 + scale[:, :, None]).flatten(1, 2)
        patches: Tensor = self.head(modulated)
        blocks = patches.view(len(patches), *grid, *self.patch, self.channels)
        sizes = [count * size for count, size in zip(grid, self.patch)]
        return torch.einsum("bfhwpqrc->bcfphqwr", blocks).reshape(len(patches), self.channels, *sizes)
