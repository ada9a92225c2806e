"""A trace of the frames that each layer attended to during a block, as plain values: for display, never read back."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .kv import KVMemory

__all__ = ["observe"]


def observe(memory: KVMemory) -> dict[str, Any]:
    """Which frames the block just committed attended to, JSON-able. Synchronises with the device: for between blocks.

    position: latent frames filmed so far. sink, window: latent frames, the same in every layer. bank: per layer the
    remembered frames. scores: per layer {frame: its score for the prompt} of the last eviction from a full bank, empty
    before. picks: per layer {frame: heads that chose it} under sparse activation, else empty.
    """
    bank = memory.bank
    filled = bank.filled if bank else 0
    scores: list[dict[str, float]] = []
    if bank is not None and bank.judged is not None:
        held, values = (part.tolist() for part in bank.judged)
        scores = [dict(zip(map(str, at), map(_short, row), strict=True)) for at, row in zip(held, values, strict=True)]
    picks: list[dict[str, int]] = []
    for layer, chosen in sorted(memory.picked.items()):
        names = bank.positions[layer, -filled:].tolist() if bank is not None and filled else []
        names += memory.sink
        picks.append(dict(Counter(str(names[index]) for index in chosen.flatten().tolist())))
    return {
        "position": memory.position,
        "sink": sorted({frame for frame in memory.sink if frame >= 0}),
        "window": list(range(memory.position - memory.ring_count, memory.position)),
        "bank": bank.frames() if bank else [],
        "scores": scores,
        "picks": picks,
    }


def _short(score: float) -> float:
    return float(f"{score:.4g}")
