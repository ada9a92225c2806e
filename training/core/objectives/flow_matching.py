"""Flow matching: x = (1 - sigma) * clean + sigma * noise, and the model learns the velocity noise - clean.

Source: Lipman et al., "Flow Matching for Generative Modeling", 2023; rectified flow as Wan has it (arXiv 2503.20314,
section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .denoiser import Denoiser, levels_of

Expert = Literal["both", "high", "low"]


@dataclass(frozen=True)
class SigmaRange:
    """The noise levels that are trained, `low` to `high` within 0..1, uniform in time before `shift`."""

    low: float = 0.0
    high: float = 1.0
    shift: float = 5.0

    @classmethod
    def of(cls, expert: Expert, boundary: float = 0.9, shift: float = 5.0) -> SigmaRange:
        """An expert's own range: `high` works from 1 down to `boundary`, `low` below; `both` is one model."""
        return cls(boundary if expert == "high" else 0.0, boundary if expert == "low" else 1.0, shift)

    @property
    def share(self) -> float:
        """The range's part of an unrestricted draw: 0.357 for A14B's high expert (shift 5, boundary 0.9)."""
        return self._time(self.high) - self._time(self.low)

    def quantile(self, q: torch.Tensor) -> torch.Tensor:
        """The noise level that far (0..1) up the range."""
        time = self._time(self.low) + q * self.share
        return self.shift * time / (1 + (self.shift - 1) * time)

    def _time(self, sigma: float) -> float:
        return sigma / (self.shift - (self.shift - 1) * sigma)


class FlowMatching(Denoiser):
    """A model that predicts velocities."""

    @staticmethod
    def add_noise(clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`clean` [B, ...] at noise levels `sigma` [B]."""
        level = levels_of(sigma, clean)
        return (1 - level) * clean + level * noise

    @staticmethod
    def guess(x: torch.Tensor, sigma: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The clean latents that the velocity at `x` [B, ...], of noise levels `sigma` [B], points to."""
        return x - levels_of(sigma, x) * velocity

    def step(
        self, x: torch.Tensor, output: torch.Tensor, here: float, there: float, noise: torch.Tensor | None
    ) -> torch.Tensor:
        return denoise_step(x, output, here, there, noise)


def denoise_step(
    x: torch.Tensor, v: torch.Tensor, here: float, there: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """From noise level `here` to `there` along the velocity v: an Euler step, or the predicted clean latents with
    `noise` (core's "lcm").
    """
    if noise is None:
        return x + (there - here) * v
    return (1 - there) * (x - here * v) + there * noise
