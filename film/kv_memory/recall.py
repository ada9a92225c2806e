"""Retrieval from the KV memory: the score of each held frame for a prompt, by the bank's own measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["RetrievedFrame", "recall"]


@dataclass(frozen=True)
class RetrievedFrame:
    """A frame held in the memory. frame: latent frame of the film; role: "sink" or "bank"; layers: share of the model's
    layers that hold it, 0..1; score: for the prompt, the mean over those layers; pinned: it is never evicted.
    """

    frame: int
    role: str
    layers: float
    score: float
    pinned: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of every field."""
        return asdict(self)


def recall(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], text: torch.Tensor) -> list[RetrievedFrame]:
    """The frames of sink and bank, the best fitting first (ties: the earliest first).

    tensors: a snapshot's `sink.means` and, with a bank, `bank.means` and `bank.positions`; meta: its metadata; text:
    the prompt's mean cross-attention keys [layers, heads, head_dim] fp32. Scores are those that decide which frame is
    evicted from a full bank: mean dot product over heads, over the root of head_dim. Source: MemFlow, arXiv 2512.14699,
    Narrative Adaptive Memory; without its softmax, as released.
    """
    _, heads, width = text.shape
    scale = heads * width**0.5
    bank = meta["bank"]
    pinned = set(bank.get("pinned", ())) if bank else set()
    found = []
    sink = torch.einsum("lhd,lshd->ls", text, tensors["sink.means"]) / scale
    for index, frame in enumerate(meta["sink"]):
        found.append(RetrievedFrame(frame, "sink", 1.0, float(sink[:, index].mean()), False))
    if bank:
        scores = torch.einsum("lhd,lbhd->lb", text, tensors["bank.means"]) / scale
        held = tensors["bank.positions"]
        for frame in sorted({int(frame) for frame in held.flatten() if frame >= 0}):
            here = held == frame
            share = float(here.any(dim=1).float().mean())
            found.append(RetrievedFrame(frame, "bank", share, float(scores[here].mean()), frame in pinned))
    return sorted(found, key=lambda item: -item.score)
