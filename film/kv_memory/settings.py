"""Settings of the KV memory: sizes and rules, independent of any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..decode import quoted

__all__ = [
    "LONGLIVE",
    "MEMFLOW",
    "PRESETS",
    "SELF_FORCING",
    "SHOTSTREAM",
    "UNBOUNDED",
    "MemorySettings",
    "MemorySettingsError",
]


class MemorySettingsError(ValueError):
    """Settings that contradict each other; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class MemorySettings:
    """Sizes (in latent frames) and rules of the KV memory of every layer.

    window: frames of sink and recent past together, the block being denoised included; None keeps every frame.
    sink: first frames of the film, kept for ever; 0 for none.
    bank: frames a layer may keep from before the window (narrative adaptive memory); 0 turns it off.
    record_interval: blocks from one prototype of the bank to the next.
    record: "interactive" records the first frame of every record_interval-th block, "single" renews the pending
        prototype every block and only counts every record_interval-th one (the two pipelines of the original).
    active: sparse memory activation, how many of the sink and bank frames each head reads; 0 reads them all.
    positions: "absolute" keeps every frame at the position it was filmed at; "relative" places sink and bank directly
        before the window, so distances never leave the range [0, window + bank).
    keep_sink: False renews the sink from the recached frames when the prompt changes.
    sink_from: "film" makes the film's first frames the sink; "shots" gives it single pictures spread over the shots
        before, anew at each cut, at positions right before the window (ShotStream).
    mask_padding: leave the empty text rows out of the bank's scores.
    fresh_text: score with the new prompt at a prompt change (the original scores with zeros there).
    fold_once: let each recorded prototype enter the bank once (the original offers it again in every block).

    The last three depart from the published behaviour, which is the default. Source: docs/methods/memflow.md, the bank.
    Raises MemorySettingsError.
    """

    window: int | None = 12
    sink: int = 3
    bank: int = 3
    record_interval: int = 3
    record: Literal["interactive", "single"] = "interactive"
    active: int = 0
    positions: Literal["absolute", "relative"] = "absolute"
    keep_sink: bool = True
    mask_padding: bool = False
    fresh_text: bool = False
    fold_once: bool = False
    sink_from: Literal["film", "shots"] = "film"

    def __post_init__(self) -> None:
        if min(self.sink, self.bank, self.active) < 0:
            raise MemorySettingsError("Sink, bank and active frames must be 0 or more; raise the negative one.")
        if self.window is not None and self.window <= self.sink:
            raise MemorySettingsError(
                f"A window of {self.window} frames cannot hold a sink of {self.sink}; "
                "enlarge the window or shrink the sink."
            )
        if self.record_interval < 1:
            raise MemorySettingsError("The record interval must be at least 1 block.")
        if self.record not in ("interactive", "single"):
            raise MemorySettingsError(f"Unknown record rule {quoted(self.record)}; choose 'interactive' or 'single'.")
        if self.positions not in ("absolute", "relative"):
            raise MemorySettingsError(f"Unknown positions {quoted(self.positions)}; choose 'absolute' or 'relative'.")
        if self.sink_from not in ("film", "shots"):
            raise MemorySettingsError(f"Unknown sink {quoted(self.sink_from)}; choose 'film' or 'shots'.")
        if self.sink_from == "shots" and (not self.sink or self.bank or self.active):
            raise MemorySettingsError(
                "A sink of pictures from earlier shots needs 1 frame or more and goes without bank and active frames; "
                "set these to 0."
            )
        if self.active and not self.bank and self.active < self.sink:
            raise MemorySettingsError("Sparse activation without a bank only loses the sink; set active frames to 0.")

    def check_block(self, frames_per_block: int) -> None:
        """Raise MemorySettingsError when the window has no room for one block of `frames_per_block` frames."""
        if self.window is not None and self.window - self.sink < frames_per_block:
            raise MemorySettingsError(
                f"A window of {self.window} frames with a sink of {self.sink} has no room for a block of "
                f"{frames_per_block}; set the window to {self.sink + frames_per_block} or more."
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of every field, but for a usual sink_from: films made before it stay the same films."""
        values = asdict(self)
        if self.sink_from == "film":
            del values["sink_from"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MemorySettings:
        """Inverse of to_json. Raises MemorySettingsError on an unknown field or a contradiction."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise MemorySettingsError(f"Unknown memory setting {quoted(min(unknown))}; it comes from another version.")
        return cls(**values)


SELF_FORCING = MemorySettings(window=21, sink=0, bank=0)
LONGLIVE = MemorySettings(window=12, sink=3, bank=0)
MEMFLOW = MemorySettings(window=12, sink=3, bank=3)
UNBOUNDED = MemorySettings(window=None, sink=0, bank=0)
# 6 pictures and a window of 21 behind them; a take beyond these 21 is seated as its authors' option for long ones does
SHOTSTREAM = MemorySettings(window=27, sink=6, bank=0, positions="relative", sink_from="shots")

PRESETS: Mapping[str, MemorySettings] = {
    "Self-Forcing": SELF_FORCING,
    "LongLive": LONGLIVE,
    "MemFlow": MEMFLOW,
    "unbounded": UNBOUNDED,
    "ShotStream": SHOTSTREAM,
}
