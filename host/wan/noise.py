"""The noise of a rollout: its own generator, so that a shot's noise does not depend on what was filmed before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

__all__ = ["Noise", "SeededNoise"]

Noise = Callable[[int, int, Sequence[int]], torch.Tensor]
"""(block in the take, step, shape) -> standard normal noise of that shape."""


class SeededNoise:
    """Normal noise from the CPU, a function of (seed, block, step) alone; ComfyUI's global generator is not touched.

    first_block: number of the take's first block here, for a take filmed in parts. given: noise [1, C, T, h, w] whose
    frames serve as each block's first noise.
    """

    def __init__(self, seed: int, first_block: int = 0, given: torch.Tensor | None = None) -> None:
        self.seed, self.first_block, self.given = seed, first_block, given

    def __call__(self, block: int, step: int, shape: Sequence[int]) -> torch.Tensor:
        """Noise of `shape`, fp32."""
        if step == 0 and self.given is not None:
            return self.given[:, :, block * shape[2] : (block + 1) * shape[2]]
        # hashed, so that neighbouring seeds, blocks and steps share no stream
        name = f"{self.seed}/{self.first_block + block}/{step}".encode()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)
        return torch.randn(tuple(shape), generator=generator)
