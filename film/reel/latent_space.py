"""The latent space of a model family: what its VAE makes of a clip."""

from __future__ import annotations

from dataclasses import dataclass

from .takes import FrameGrid

__all__ = ["WAN", "LatentSpace"]

WAN = "wan"
"""The family of reels and shots of before there were others."""


@dataclass(frozen=True)
class LatentSpace:
    """What the latents of one VAE are.

    family: the name of the models' family; shots of one family on a reel share a VAE. channels: of a latent. spatial:
    pixels to a side of one. temporal: frames to each latent frame, but to a take's first, which is one frame; with 1
    every latent frame is a frame.
    """

    family: str
    channels: int
    spatial: int
    temporal: int

    def grid(self, fps: float, block: int = 1, lead: int = 0) -> FrameGrid:
        """How time is counted in it at a rate, in blocks of so many latent frames; lead: see FrameGrid."""
        return FrameGrid(fps, self.temporal, block, lead)

    def shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int, int]:
        """[1, C, frames, h, w] of so many latent frames of a film of width x height pixels."""
        return 1, self.channels, frames, height // self.spatial, width // self.spatial
