"""The layout of a reel: what its shots have in common, and the latents of the families that filmed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .latent_space import WAN, LatentSpace

__all__ = ["LATENT_FIELDS", "ReelLayout"]

LATENT_FIELDS = ("latent_channels", "spatial_compression", "temporal_compression", "vae")
"""What is the family's, and not the whole reel's."""


@dataclass(frozen=True)
class ReelLayout:
    """What all shots of a reel have in common, and an engine must share to go on.

    fps: frames a second. width, height: pixels. latent_channels: C. spatial_compression: pixels to a side of a latent
    element. temporal_compression: frames to a latent, except the first of a take, which is one frame. model, vae: their
    fingerprints. engine: JSON-able layout of what engines remember, by name. Engines that may take turns on a reel use
    names of their own ({"causal": {"layers": 30}}): only names that reel and engine both have must agree, and without
    one in common the models may differ. family: of the models whose latents these are, those of the engine that began
    the reel. others: the same, LATENT_FIELDS, of other families with shots on it.
    """

    fps: float
    width: int
    height: int
    latent_channels: int
    spatial_compression: int
    temporal_compression: int
    model: str
    vae: str
    engine: Mapping[str, Any]
    family: str = WAN
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Copies no caller can change, equal to what comes back from a file.
        for name in ("engine", "others"):
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False)))

    @property
    def latents(self) -> LatentSpace:
        """Of the family that began the reel."""
        return LatentSpace(self.family, self.latent_channels, self.spatial_compression, self.temporal_compression)

    def of_family(self, family: str) -> ReelLayout | None:
        """The part of this layout for engines of that family; None where nothing of theirs is on the reel."""
        if family == self.family:
            return self
        return replace(self, family=family, **self.others[family]) if family in self.others else None

    def joined(self, layout: ReelLayout) -> ReelLayout:
        """This layout with the latents of an engine of that layout, which begin on this reel if they are new to it."""
        if self.of_family(layout.family) is not None:
            return self
        return replace(
            self, others={**self.others, layout.family: {name: getattr(layout, name) for name in LATENT_FIELDS}}
        )

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a file. What only reels of several families have is left out of the others."""
        values = asdict(self)
        if self.family == WAN and not self.others:
            del values["family"], values["others"]
        return values
