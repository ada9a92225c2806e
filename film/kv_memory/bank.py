"""The memory bank (narrative adaptive memory): which earlier frames each layer keeps."""

from __future__ import annotations

from typing import Any

import torch

from .arena import FrameArena
from .settings import MemorySettings

__all__ = ["MemoryBank"]


class MemoryBank:
    """Per layer up to `settings.bank` remembered frames and one pending prototype, all in the arena's slots.

    Counters are host integers; what each layer chose stays on the device, so that a block never waits for it. `order`
    [layers, bank] maps the original's slot order to arena slots (relative to the bank's base), `positions` [layers,
    bank] the latent frame each arena slot holds, `means` [layers, bank, heads, head_dim] its mean key. Frames in
    `pinned` are never evicted. `judged` keeps the last scoring: frames and their scores, [layers, bank] each.
    """

    def __init__(self, arena: FrameArena, settings: MemorySettings, means: torch.Tensor) -> None:
        """means: where the mean keys go, zeros [layers, bank, heads, head_dim] fp32, perhaps a view."""
        layout, size = arena.layout, settings.bank
        self.settings = settings
        self.recorded = 0
        self.filled = 0
        self.pending: int | None = None
        self.pending_is_new = False
        self.order = torch.arange(size - 1, -1, -1, device=arena.device).repeat(layout.layers, 1)
        self.positions = torch.full((layout.layers, size), -1, dtype=torch.long, device=arena.device)
        self.means = means
        self.pending_mean = torch.zeros((layout.layers, layout.heads, layout.head_dim), device=arena.device)
        self.pinned: tuple[int, ...] = ()
        self.judged: tuple[torch.Tensor, torch.Tensor] | None = None
        self.canonical: list[torch.Tensor] | None = None
        if settings.positions == "relative":
            shape = (layout.heads, size, layout.tokens, layout.head_dim)
            self.canonical = [torch.zeros(shape, dtype=arena.dtype, device=arena.device) for _ in range(layout.layers)]

    def record(self, arena: FrameArena, block: int, position: int, keys: list[torch.Tensor], slot: int) -> None:
        """Make the first frame of `block` the pending prototype if the record rule says so.

        keys: per layer [heads, tokens, head_dim], rotated at the absolute `position`; slot: where its values lie.
        """
        due = block % self.settings.record_interval == 0
        if not due and self.settings.record == "interactive":
            return
        for layer, key in enumerate(keys):
            k, v = arena.by_frame(layer)
            k[:, 0].copy_(key)
            v[:, 0].copy_(v[:, slot])
            self.pending_mean[layer] = key.float().mean(dim=1)
        self.pending, self.pending_is_new = position, True
        self.recorded += due

    def fold(self, arena: FrameArena, text: torch.Tensor | None) -> None:
        """Fold the pending prototype into the bank; when it is full, the frame with the lowest score for the prompt is
        evicted.

        text: mean cross-attention keys [layers, heads, head_dim] fp32, None where the original would score with zeros.
        Ties go to the lowest slot of the original's order.
        """
        if self.recorded == 0 or self.pending is None or (self.settings.fold_once and not self.pending_is_new):
            return
        size = self.settings.bank
        if self.recorded <= size:
            entered = self.order[:, self.recorded - 1]
        else:
            layout = arena.layout
            index = self.order[:, :, None, None].expand(-1, -1, layout.heads, layout.head_dim)
            means = self.means.gather(1, index)
            if text is None:
                text = torch.zeros_like(self.pending_mean)
            scores = torch.einsum("lhd,lbhd->lb", text, means) / (layout.heads * layout.head_dim**0.5)
            held = self.positions.gather(1, self.order)
            self.judged = (held, scores)
            if self.pinned:
                stays = torch.isin(held, torch.tensor(self.pinned, device=arena.device))
                scores = scores.masked_fill(stays, torch.inf)
            ranking = scores.argsort(dim=1, descending=True, stable=True)
            self.order = self.order.gather(1, ranking)
            entered = self.order[:, -1]
        rows = torch.arange(arena.layout.layers, device=arena.device)
        for layer in range(arena.layout.layers):
            k, v = arena.by_frame(layer)
            target = entered[layer : layer + 1]
            # the slot number stays on the device: index_copy_ needs no synchronisation
            k.index_copy_(1, arena.bank_base + target, k[:, :1])
            v.index_copy_(1, arena.bank_base + target, v[:, :1])
            if self.canonical is not None:
                self.canonical[layer].index_copy_(1, target, k[:, :1])
        self.means[rows, entered] = self.pending_mean
        self.positions[rows, entered] = self.pending
        self.pending_is_new = False
        self.filled = min(self.recorded, size)

    def held(self) -> torch.Tensor:
        """Latent frame numbers [layers, filled], in the original's slot order."""
        return self.positions.gather(1, self.order)[:, : self.filled]

    def frames(self) -> list[list[int]]:
        """The same as a list. Synchronises with the device."""
        return self.held().tolist()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a snapshot must keep besides the arena."""
        kept = {
            "order": self.order,
            "positions": self.positions,
            "means": self.means,
            "pending_mean": self.pending_mean,
        }
        if self.canonical is not None:
            kept["canonical"] = torch.stack(self.canonical)
        return kept

    def meta(self) -> dict[str, Any]:
        """JSON-able counters of a snapshot."""
        return {
            "recorded": self.recorded,
            "pending": self.pending,
            "pending_is_new": self.pending_is_new,
            "filled": self.filled,
            "pinned": list(self.pinned),
        }

    def load(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Inverse of tensors() and meta()."""
        self.order.copy_(tensors["order"])
        self.positions.copy_(tensors["positions"])
        self.means.copy_(tensors["means"])
        self.pending_mean.copy_(tensors["pending_mean"])
        if self.canonical is not None:
            for target, source in zip(self.canonical, tensors["canonical"], strict=True):
                target.copy_(source)
        self.recorded, self.pending = meta["recorded"], meta["pending"]
        self.pending_is_new, self.filled = meta["pending_is_new"], meta["filled"]
        self.pinned = tuple(meta.get("pinned", ()))
