"""Sparse activation's two Triton kernels. Importing this file imports Triton."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (Triton reads a kernel's annotations itself: only its compile-time parameters may carry one.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["copy", "copy_kernel", "pick", "pick_kernel"]

_BLOCK = 8192
"""Elements that a program copies: 16 KB of bf16, so that a few thousand programs keep every multiprocessor busy."""


@triton.jit
def pick_kernel(
    query_ptr,
    means_ptr,
    picks_ptr,
    candidates,
    heads,
    active,
    HEAD_DIM: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One head. SIZE: the power of two that holds the candidates.

    A candidate's rank is how many are better; who ranks below `active` is picked, at the place that the picked before
    it leave. That needs no sort and gives ascending order at once.
    """
    head = tl.program_id(0)
    number = tl.arange(0, SIZE)
    channel = tl.arange(0, HEAD_DIM)
    there = number < candidates
    query = tl.load(query_ptr + head * HEAD_DIM + channel)
    rows = means_ptr + (number[:, None] * heads + head) * HEAD_DIM + channel[None, :]
    means = tl.load(rows, mask=there[:, None], other=0.0)
    scores = tl.where(there, tl.sum(means * query[None, :], 1), float("-inf"))
    theirs = scores[None, :]
    mine = scores[:, None]
    better = (theirs > mine) | ((theirs == mine) & (number[None, :] < number[:, None]))
    picked = (tl.sum(better.to(tl.int32), 1) < active) & there
    place = tl.cumsum(picked.to(tl.int32), 0) - 1
    tl.store(picks_ptr + head * active + place, number.to(tl.int64), mask=picked)


@triton.jit
def copy_kernel(
    k_ptr,
    v_ptr,
    picks_ptr,
    first,
    to,
    active,
    frame,
    stride_kh,
    stride_vh,
    BLOCK: tl.constexpr,
):
    """BLOCK elements of one picked frame of one head, of keys (program axis 2 even) or of values (odd).

    frame: elements of a frame, which lie side by side.
    """
    place = tl.program_id(1)
    head = (tl.program_id(2) // 2).to(tl.int64)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < frame
    source = (tl.load(picks_ptr + head * active + place) + first) * frame + offsets
    target = (to + place).to(tl.int64) * frame + offsets
    if tl.program_id(2) % 2 == 0:
        base = k_ptr + head * stride_kh
        tl.store(base + target, tl.load(base + source, mask=inside), mask=inside)
    else:
        base = v_ptr + head * stride_vh
        tl.store(base + target, tl.load(base + source, mask=inside), mask=inside)


def pick(query: torch.Tensor, means: torch.Tensor, active: int) -> torch.Tensor:
    """Launch the kernel: query [H, D] fp32; the rest and the result as of `sparse.pick_frames`."""
    candidates, heads, head_dim = means.shape
    picks = torch.empty((heads, active), dtype=torch.int64, device=query.device)
    size = triton.next_power_of_2(candidates)
    pick_kernel[(heads,)](query, means, picks, candidates, heads, active, HEAD_DIM=head_dim, SIZE=size, num_warps=4)
    return picks


def copy(k: torch.Tensor, v: torch.Tensor, picks: torch.Tensor, first: int, to: int, tokens: int) -> None:
    """Launch the kernel; arguments as of `sparse.copy_frames`."""
    heads, active = picks.shape
    frame = tokens * k.shape[3]
    grid = (triton.cdiv(frame, _BLOCK), active, 2 * heads)
    copy_kernel[grid](k, v, picks, first, to, active, frame, k.stride(1), v.stride(1), BLOCK=_BLOCK, num_warps=8)
