"""Run tables: which arena tokens each query block of each head attends to. Built on the device, without a sync."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["slot_runs", "table", "top_slots"]


def table(spans: Sequence[tuple[int, int]], device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One list of (start, length) token spans for all heads and queries: runs [1, 1, 1, R, 2], count [1, 1, 1].

    Dense attention over a contiguous range is the table of one span; a ring that wraps is one of two.
    """
    runs = torch.tensor(list(spans), dtype=torch.int32, device=device).reshape(1, 1, 1, len(spans), 2)
    return runs, torch.tensor([[[len(spans)]]], dtype=torch.int32, device=device)


def top_slots(q_desc: torch.Tensor, k_desc: torch.Tensor, candidates: torch.Tensor, k: int) -> torch.Tensor:
    """Sparse memory activation: the k candidate slots whose mean key fits the mean query best.

    q_desc [B, H, NQ, D] and k_desc [B, H, S, D]: mean queries and keys, fp32; candidates int [C]: slots, k <= C.
    Returns slots int64 [B, H, NQ, k], best first, the earlier candidate first on ties.
    """
    candidates = candidates.long()
    scores = q_desc @ k_desc[:, :, candidates].mT
    return candidates[scores.argsort(dim=-1, descending=True, stable=True)[..., :k]]


def slot_runs(slots: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The table of `slots` int [..., n] of `tokens` tokens each: runs int32 [..., n, 2], count int32 [...].

    Neighbouring slots become one run; a slot listed twice counts twice. Runs come in ascending order.
    """
    order = slots.long().sort(dim=-1).values
    new = torch.ones_like(order, dtype=torch.bool)
    new[..., 1:] = order.diff(dim=-1) != 1
    run = new.long().cumsum(dim=-1) - 1
    size = torch.zeros_like(order).scatter_add(-1, run, torch.full_like(order, tokens))
    # every slot of a run has the same start: its own slot minus the slots of the run before it
    index = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    before = index - torch.where(new, index, 0).cummax(dim=-1).values
    start = torch.zeros_like(order).scatter(-1, run, (order - before) * tokens)
    return torch.stack((start, size), dim=-1).to(torch.int32), (run[..., -1] + 1).to(torch.int32)
