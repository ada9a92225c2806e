"""A trace of the frames that each layer attended to during a block, as plain values: for display, never read back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from .kv import KVMemory

__all__ = ["Observation", "observe"]


@dataclass(frozen=True)
class Observation:
    """What a committed block attended to, its tensors still on the device. `read` waits for them.

    bank: the bank's frames [layers, filled], None without a bank; judged: see MemoryBank; picked: numbers of candidates
    [layers, heads, active], and names: the frame of each candidate of the bank [layers, filled], where it is sparse.
    """

    position: int
    sink: tuple[int, ...]
    window: range
    bank: torch.Tensor | None
    judged: tuple[torch.Tensor, torch.Tensor] | None
    picked: torch.Tensor | None
    names: torch.Tensor | None

    def read(self) -> dict[str, Any]:
        """JSON-able; waits for the device, so between takes rather than between blocks.

        position: latent frames filmed so far. sink, window: latent frames, the same in every layer. bank: per layer the
        remembered frames. scores: per layer {frame: its score for the prompt} of the last eviction from a full bank,
        empty before. picks: per layer {frame: heads that chose it} under sparse activation, else empty.
        """
        scores: list[dict[str, float]] = []
        if self.judged is not None:
            held, values = (part.tolist() for part in self.judged)
            scores = [
                dict(zip(map(str, at), map(_short, row), strict=True)) for at, row in zip(held, values, strict=True)
            ]
        picks: list[dict[str, int]] = []
        if self.picked is not None:
            chosen = self.picked.flatten(1).tolist()
            names = self.names.tolist() if self.names is not None else [[]] * len(chosen)
            for of_bank, numbers in zip(names, chosen, strict=True):
                frames = [*of_bank, *self.sink]
                picks.append(dict(Counter(str(frames[number]) for number in numbers)))
        return {
            "position": self.position,
            "sink": sorted({frame for frame in self.sink if frame >= 0}),
            "window": list(self.window),
            "bank": self.bank.tolist() if self.bank is not None else [],
            "scores": scores,
            "picks": picks,
        }


def observe(memory: KVMemory) -> Observation:
    """Which frames the block just committed attended to; does not wait for the device."""
    bank, picked, names = memory.bank, None, None
    if memory.picked:
        picked = torch.stack([memory.picked[layer] for layer in sorted(memory.picked)])
        if bank is not None and bank.filled:
            names = bank.positions[:, -bank.filled :].clone()
    return Observation(
        position=memory.position,
        sink=tuple(memory.sink),
        window=range(memory.position - memory.ring_count, memory.position),
        bank=bank.held() if bank is not None else None,
        judged=bank.judged if bank is not None else None,
        picked=picked,
        names=names,
    )


def _short(score: float) -> float:
    return float(f"{score:.4g}")
