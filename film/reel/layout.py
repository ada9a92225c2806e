"""The layout of a reel: what its shots have in common, and the latents of the families that filmed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..decode import DecodeError, Value, quoted
from .latent_space import WAN, LatentSpace
from .tensor_file import ReelError

__all__ = ["LATENT_FIELDS", "ReelLayout"]

LATENT_FIELDS = ("latent_channels", "spatial_compression", "temporal_compression", "vae")
"""What is the family's, and not the whole reel's."""

_SAME_MODEL = "connect the one it was filmed with, or start a new reel"
_REMEDIES = {
    "model": _SAME_MODEL,
    "vae": _SAME_MODEL,
    "width": "set the engine to the reel's width, or start a new reel",
    "height": "set the engine to the reel's height, or start a new reel",
    "fps": "set the engine to the reel's frame rate, or start a new reel",
    "latent_channels": _SAME_MODEL,
    "spatial_compression": _SAME_MODEL,
    "temporal_compression": _SAME_MODEL,
}


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

    def check(self, layout: ReelLayout) -> None:
        """Raises ReelError, saying what differs and what to do, if an engine of that layout cannot go on with a reel of
        this one.
        """
        shared = set(self.engine) & set(layout.engine)
        own = self.of_family(layout.family)
        for name, remedy in _REMEDIES.items():
            if name == "model" and not shared:
                continue  # nothing of the other model's is remembered
            if name in LATENT_FIELDS and own is None:
                continue  # the first shot of these latents
            mine, wanted = getattr(own or self, name), getattr(layout, name)
            if mine != wanted:
                what = name.replace("_", " ")
                if name in ("model", "vae"):  # fingerprints mean nothing to a user
                    raise ReelError(f"The reel was filmed with another {what.replace('vae', 'VAE')}: {remedy}.")
                raise ReelError(f"The reel was filmed with {what} {mine} and this engine has {wanted}: {remedy}.")
        for name in sorted(shared):
            mine, wanted = self.engine[name], layout.engine[name]
            if mine != wanted:
                what = name.replace("_", " ")
                raise ReelError(
                    f"The reel remembers with {what} {json.dumps(mine)} and this engine with {json.dumps(wanted)}: "
                    "use the engine it was filmed with, or start a new reel."
                )

    @classmethod
    def from_json(cls, values: Value) -> ReelLayout:
        """Inverse of to_json. Raises DecodeError for values that no version has written."""
        family, others = values.get("family"), values.get("others")
        layout = cls(
            fps=values["fps"].number(1e-3, 1e4),
            width=values["width"].integer(1, 1 << 16),
            height=values["height"].integer(1, 1 << 16),
            engine=values["engine"].object(),
            family=family.text(200) if family else WAN,
            others={name: _latent_fields(other) for name, other in others.fields().items()} if others else {},
            **_latent_fields(values),
            model=values["model"].text(),
        )
        if unknown := set(values.object()) - set(asdict(layout)):
            raise DecodeError(f"{values.where} has the unknown field {quoted(min(unknown))}")
        return layout

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a file. What only reels of several families have is left out of the others."""
        values = asdict(self)
        if self.family == WAN and not self.others:
            del values["family"], values["others"]
        return values


def _latent_fields(values: Value) -> dict[str, Any]:
    return {
        "latent_channels": values["latent_channels"].integer(1, 1 << 16),
        "spatial_compression": values["spatial_compression"].integer(1, 1 << 10),
        "temporal_compression": values["temporal_compression"].integer(1, 1 << 10),
        "vae": values["vae"].text(),
    }
