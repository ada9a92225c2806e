"""What a motion adapter's file says of itself, and when its prediction is good enough to guide with.

The file is safetensors: `videojam.patch_embedding.motion.weight`, `videojam.head.motion.weight` and `.bias` (and
`.modulation` for a separate head) beside a LoRA of the trunk in ComfyUI's generic names, so that ComfyUI's own LoRA
loader loads the trunk's part alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

from ..decode import parse, quoted
from .codec import FlowCodec
from .values import MotionError

__all__ = ["FILE_KEYS", "FORMAT", "PREFIX", "AdapterInfo", "FlowGate", "GateLevel"]

FORMAT = 1
_MOST_LEVELS, _MOST_PATCH, _MOST_WIDTH = 1000, 64, 1 << 16
PREFIX = "videojam."

FILE_KEYS = {
    "embedding.weight": f"{PREFIX}patch_embedding.motion.weight",
    "head.weight": f"{PREFIX}head.motion.weight",
    "head.bias": f"{PREFIX}head.motion.bias",
    "modulation": f"{PREFIX}head.motion.modulation",
}
"""A tensor's name in the file by its name in MotionLayers."""

_FULL_BELOW = 0.8


@dataclass(frozen=True)
class GateLevel:
    """How good the predicted motion is at one noise level, on held-out clips.

    sigma: in 0..1. error: mean endpoint error of the predicted flow in pixels. trivial: that of predicting no motion.
    direction: mean angle between predicted and true motion in degrees where things move, 0..180.
    """

    sigma: float
    error: float
    trivial: float
    direction: float

    @property
    def weight(self) -> float:
        """1 where the error is at most 0.8 of the trivial one, 0 where it is no smaller, a line between."""
        ratio = self.error / self.trivial if self.trivial > 0 else 1.0
        return min(max((1.0 - ratio) / (1.0 - _FULL_BELOW), 0.0), 1.0)


@dataclass(frozen=True)
class FlowGate:
    """Measured quality of the predicted motion by noise level; without levels nothing is known."""

    levels: tuple[GateLevel, ...] = ()

    def weight(self, sigma: float) -> float:
        """How much guidance by the predicted motion is warranted at a noise level, 0..1; 1 where nothing is known.

        Linear between the measured levels, the nearest beyond them.
        """
        known = sorted(self.levels, key=lambda level: level.sigma)
        if not known:
            return 1.0
        if sigma <= known[0].sigma:
            return known[0].weight
        for low, high in pairwise(known):
            if sigma <= high.sigma:
                share = (sigma - low.sigma) / (high.sigma - low.sigma)
                return low.weight + share * (high.weight - low.weight)
        return known[-1].weight

    def warning(self) -> str | None:
        """One sentence where the prediction is worse than a trivial one somewhere, else None."""
        worse = [level.sigma for level in self.levels if level.weight == 0.0]
        if not worse:
            return None
        levels = ", ".join(f"{sigma:.2f}" for sigma in worse)
        return (
            f"At noise levels {levels} this adapter predicts motion no better than none at all; there guidance by it "
            "cannot help: keep the gate on auto, or train the adapter longer."
        )

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps([asdict(level) for level in self.levels])

    @classmethod
    def from_json(cls, text: str) -> FlowGate:
        """The inverse of `to_json`. Raises MotionError for other text."""
        try:
            levels = (level.fields() for level in parse(text).list(_MOST_LEVELS))
            return cls(tuple(GateLevel(**{name: value.number() for name, value in level.items()}) for level in levels))
        except (ValueError, TypeError) as error:
            raise MotionError(f"The adapter's flow gate cannot be read ({error}): save the adapter anew.") from error


_CODEC, _UNKNOWN = FlowCodec(), FlowGate()


@dataclass(frozen=True)
class AdapterInfo:
    """The metadata of an adapter file.

    base_model, base_sha256: what it was trained on; latent_channels, patch, dim: what a model must have to take it.
    flow_*: how flow became pictures. motion_latent_scale: what motion latents were multiplied with before noise came
    in. head: "single" or "separate". full: whether the trunk's part is differences of whole weights, not a LoRA.
    training: everything else a reader may want to know of the run, as text.
    """

    base_model: str
    latent_channels: int
    dim: int
    patch: tuple[int, int, int] = (1, 2, 2)
    base_sha256: str = ""
    latent_format: str = ""
    head: str = "single"
    full: bool = False
    codec: FlowCodec = _CODEC
    flow_model: str = ""
    flow_direction: str = "forward"
    flow_pad: str = "zero_first"
    flow_fps: float = 16.0
    motion_latent_scale: float = 1.0
    recommended_w2: float = 3.0
    recommended_window: tuple[float, float] = (0.0, 0.5)
    gate: FlowGate = _UNKNOWN
    license: str = ""
    training: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata, strings to strings."""
        plain = {
            name: str(getattr(self, name))
            for name in (
                "base_model", "base_sha256", "latent_format", "latent_channels", "dim", "head", "flow_model",
                "flow_direction", "flow_pad", "license",
            )
        }  # fmt: skip
        plain |= {
            "format": str(FORMAT),
            "prediction": "eps_minus_x0",
            "patch_size": json.dumps(self.patch),
            "full": json.dumps(self.full),
            "flow_encoding": self.codec.encoding,
            "flow_sigma": repr(self.codec.sigma),
            "flow_fps": repr(self.flow_fps),
            "motion_latent_scale": repr(self.motion_latent_scale),
            "recommended_w2": repr(self.recommended_w2),
            "recommended_window": json.dumps(self.recommended_window),
            "flow_gate": self.gate.to_json(),
        }
        return {PREFIX + name: value for name, value in ({**self.training} | plain).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> AdapterInfo:
        """The inverse of `to_metadata`.

        Raises MotionError if the file is no motion adapter, of a later format, or lacks something.
        """
        said = {key.removeprefix(PREFIX): value for key, value in (metadata or {}).items() if key.startswith(PREFIX)}
        if "format" not in said:
            raise MotionError("This file is no motion adapter: choose one made by Train Motion Adapter.")
        if said["format"] != str(FORMAT):
            raise MotionError(f"The adapter has format {said['format']}, newer than this pack reads: update Longreel.")
        try:
            return cls(**_parsed(said))
        except (KeyError, ValueError, TypeError) as error:
            if isinstance(error, MotionError):
                raise
            raise MotionError(f"The adapter's metadata cannot be read ({quoted(error)}): save it anew.") from error


def _number(said: Mapping[str, str], name: str) -> float:
    return parse(said[name]).number()


def _parsed(said: Mapping[str, str]) -> dict[str, Any]:
    """Constructor arguments from metadata without its prefix."""
    own = {each.name for each in fields(AdapterInfo)}
    values: dict[str, Any] = {name: value for name, value in said.items() if name in own - {"training"}}
    start, end = (value.number() for value in parse(said["recommended_window"]).list(2, 2))
    time, rows, columns = (value.integer(1, _MOST_PATCH) for value in parse(said["patch_size"]).list(3, 3))
    values |= {
        "latent_channels": parse(said["latent_channels"]).integer(1, _MOST_WIDTH),
        "dim": parse(said["dim"]).integer(1, _MOST_WIDTH),
        "patch": (time, rows, columns),
        "full": parse(said["full"]).flag(),
        "codec": FlowCodec(said["flow_encoding"], _number(said, "flow_sigma")),  # type: ignore[arg-type]
        "flow_fps": _number(said, "flow_fps"),
        "motion_latent_scale": _number(said, "motion_latent_scale"),
        "recommended_w2": _number(said, "recommended_w2"),
        "recommended_window": (start, end),
        "gate": FlowGate.from_json(said["flow_gate"]),
    }
    told = {"format", "prediction", "patch_size", "flow_encoding", "flow_sigma", "flow_gate"}
    values["training"] = {name: value for name, value in said.items() if name not in own | told}
    return values
