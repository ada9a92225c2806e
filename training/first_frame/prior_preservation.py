"""Prior preservation: ordinary prompts, without a first frame, are to be denoised as by the base alone.

The base samples two blocks of a prompt in four steps by itself; at one of these steps the adapted model should predict
the same. So only prompts are needed, and the reference is the base's own output, not a dataset (prior preservation:
Ruiz et al., "DreamBooth", 2023, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..miniature.sequences import BLOCK, FEW_STEPS

_WEIGHT = 3.0
"""Measured: with 1, and 0.15 of the updates, the miniature's headgear lost ten points (docs/cast-lora.md)."""


class Flow(Protocol):
    """A model's velocity [B, C, F, h, w] of latents at times [B, F] in 0..1000 under texts [B, L, D]."""

    def flow(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class PriorPreservation:
    """base: the model without the adapter. texts: [N, L, D], encoded prompts. size: channels, height and width of
    latents. batch: prompts of an update.
    """

    base: Flow
    texts: torch.Tensor
    size: tuple[int, int, int]
    batch: int = 16

    def loss(self, adapted: Flow) -> torch.Tensor:
        """Mean squared difference of the velocities, of a first block or of the next one behind it, times 3."""
        text = self.texts[torch.randint(len(self.texts), (self.batch,))]
        filmed = torch.zeros(self.batch, self.size[0], 0, *self.size[1:])
        if float(torch.rand(())) < 0.5:
            filmed, _ = self._denoised(text, filmed, len(FEW_STEPS))
        x, time = self._denoised(text, filmed, int(torch.randint(len(FEW_STEPS), ())))
        with torch.no_grad():
            wanted = self.base.flow(x, time, text)
        return _WEIGHT * (adapted.flow(x, time, text) - wanted)[:, :, -BLOCK:].square().mean()

    @torch.no_grad()
    def _denoised(self, text: torch.Tensor, before: torch.Tensor, done: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`before` and a block more after `done` of four steps, noised for the next one, and their times."""
        block: Any = torch.zeros(len(text), self.size[0], BLOCK, *self.size[1:])
        for step, level in enumerate((*FEW_STEPS, 0.0)):
            noised = (1 - level) * block + level * torch.randn(block.shape).to(block)
            x = torch.cat([before.to(noised), noised], dim=2)
            time = torch.zeros(x.shape[0], x.shape[2])
            time[:, -BLOCK:] = 1000 * level
            if step == done:
                break
            v = self.base.flow(x, time, text)  # on the model's device, where the rest then is, too
            block = (x.to(v) - level * v)[:, :, -BLOCK:]
        return x, time
