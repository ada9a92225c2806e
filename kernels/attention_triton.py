"""Run-table flash attention in Triton. Importing this file imports Triton; only `backends.py` decides whether to."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (Triton reads a kernel's annotations itself: only its compile-time parameters may carry one.)

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from .configs import AttentionConfig

__all__ = ["INTERPRETED", "attend", "frame_attention_kernel"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs this file's kernels: Triton reads the same variable as the file is imported."""


@triton.jit
def frame_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    runs_ptr,
    count_ptr,
    out_ptr,
    lse_ptr,
    scale,
    heads,
    length,
    q_block,
    tiles,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_rb,
    stride_rh,
    stride_rq,
    stride_cb,
    stride_ch,
    stride_cq,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WITH_LSE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of query rows of one head; tiles never straddle query blocks. `runs` pairs and channels are dense."""
    tile = tl.program_id(0)
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    block = tile // tiles
    first = block * q_block + (tile % tiles) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    row_ok = rows < tl.minimum((block + 1) * q_block, length)
    channels = tl.arange(0, HEAD_DIM)
    batch64 = batch.to(tl.int64)
    head64 = head.to(tl.int64)
    q_base = q_ptr + batch64 * stride_qb + head64 * stride_qh
    k_base = k_ptr + batch64 * stride_kb + head64 * stride_kh
    v_base = v_ptr + batch64 * stride_vb + head64 * stride_vh
    runs_base = runs_ptr + batch * stride_rb + head * stride_rh + block * stride_rq

    q = tl.load(q_base + rows[:, None] * stride_qm + channels[None, :], mask=row_ok[:, None], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    scale_log2 = scale * 1.4426950408889634

    for run in range(tl.load(count_ptr + batch * stride_cb + head * stride_ch + block * stride_cq)):
        start = tl.load(runs_base + 2 * run)
        size = tl.load(runs_base + 2 * run + 1)
        for at in range(0, size, BLOCK_N):
            columns = at + tl.arange(0, BLOCK_N)
            column_ok = columns < size
            keys = start + columns
            # masked values must be zeros: what lies behind a run may be NaN, and 0 * NaN would reach the sum
            k = tl.load(k_base + keys[:, None] * stride_kn + channels[None, :], mask=column_ok[:, None], other=0.0)
            v = tl.load(v_base + keys[:, None] * stride_vn + channels[None, :], mask=column_ok[:, None], other=0.0)
            if UPCAST:
                k = k.to(tl.float32)
                v = v.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            scores = tl.where(column_ok[None, :], scores, float("-inf"))
            new_best = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp2(scores - new_best[:, None])
            decay = tl.exp2(best - new_best)
            total = total * decay + tl.sum(weights, 1)
            acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            best = new_best

    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    out_rows = (batch64 * length + rows) * heads + head
    out = acc.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_rows[:, None] * HEAD_DIM + channels[None, :], out, mask=row_ok[:, None])
    if WITH_LSE:
        lse = (best + tl.log2(tl.where(empty, 1.0, total))) * 0.6931471805599453
        tl.store(lse_ptr + (batch64 * heads + head) * length + rows, lse, mask=row_ok)


def attend(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int,
    scale: float,
    with_lse: bool,
    config: AttentionConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel; arguments and results as of `ops.frame_attention`, channels contiguous."""
    batch, heads, length, head_dim = q.shape
    blocks = -(-length // q_block)
    runs = runs.contiguous().expand(batch, heads, blocks, -1, -1)
    count = count.expand(batch, heads, blocks)
    out = torch.empty((batch, length, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, length) if with_lse else (0,), dtype=torch.float32, device=q.device)
    tiles = -(-min(q_block, length) // config.block_m)
    frame_attention_kernel[(blocks * tiles, batch * heads)](
        q,
        k_arena,
        v_arena,
        runs,
        count,
        out,
        lse,
        scale,
        heads,
        length,
        q_block,
        tiles,
        *q.stride()[:3],
        *k_arena.stride()[:3],
        *v_arena.stride()[:3],
        *runs.stride()[:3],
        *count.stride(),
        HEAD_DIM=head_dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        WITH_LSE=with_lse,
        UPCAST=INTERPRETED,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out, lse
