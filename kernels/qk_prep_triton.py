"""QK-norm, RoPE and the write into the frame arena as one Triton kernel. Importing this file imports Triton."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (Triton reads a kernel's annotations itself: only its compile-time parameters may carry one.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .configs import PrepConfig

__all__ = ["prepare", "qk_prep_kernel"]


@triton.jit
def _normed_and_turned(pointer, weight_ptr, offsets, inside, cos, sin, width, eps, SIZE: tl.constexpr):
    """One token's SIZE channels: RMS norm over the `width` real ones, pairs turned, rounded to the stored type."""
    x = tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * weight
    even, odd = tl.split(tl.reshape(x, [SIZE // 2, 2]))
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [SIZE])
    return turned.to(pointer.dtype.element_ty)


@triton.jit
def qk_prep_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_weight_ptr,
    k_weight_ptr,
    time_ptr,
    row_ptr,
    column_ptr,
    frame_pos_ptr,
    slots_ptr,
    k_arena_ptr,
    v_arena_ptr,
    q_out_ptr,
    q_sum_ptr,
    k_sum_ptr,
    frames,
    width_tokens,
    tokens,
    heads,
    eps,
    stride_xb,
    stride_xt,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    HEAD_DIM: tl.constexpr,
    PAIRS_TIME: tl.constexpr,
    PAIRS_ROW: tl.constexpr,
    PAIRS_COLUMN: tl.constexpr,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens of one frame. SIZE: the power of two that holds heads * HEAD_DIM channels."""
    chunk = tl.program_id(0)
    frame = tl.program_id(1)
    batch = tl.program_id(2)
    width = heads * HEAD_DIM
    offsets = tl.arange(0, SIZE)
    inside = offsets < width
    head = (offsets // HEAD_DIM).to(tl.int64)
    channel = offsets % HEAD_DIM
    pair = tl.arange(0, SIZE // 2) % (HEAD_DIM // 2)
    row_pair = pair - PAIRS_TIME
    column_pair = row_pair - PAIRS_ROW
    in_time = pair < PAIRS_TIME
    in_row = (row_pair >= 0) & (row_pair < PAIRS_ROW)
    in_column = (column_pair >= 0) & (column_pair < PAIRS_COLUMN)
    batch64 = batch.to(tl.int64)
    slot = tl.load(slots_ptr + frame)
    at_time = time_ptr + 2 * (tl.load(frame_pos_ptr + frame) * PAIRS_TIME + pair)
    time_cos = tl.load(at_time, mask=in_time, other=0.0)
    time_sin = tl.load(at_time + 1, mask=in_time, other=0.0)
    q_sum = tl.zeros([SIZE], tl.float32)
    k_sum = tl.zeros([SIZE], tl.float32)

    for token in range(chunk * TOKENS, tl.minimum(chunk * TOKENS + TOKENS, tokens)):
        at_row = row_ptr + 2 * ((token // width_tokens) * PAIRS_ROW + row_pair)
        at_column = column_ptr + 2 * ((token % width_tokens) * PAIRS_COLUMN + column_pair)
        cos = time_cos + tl.load(at_row, mask=in_row, other=0.0) + tl.load(at_column, mask=in_column, other=0.0)
        sin = time_sin + tl.load(at_row + 1, mask=in_row, other=0.0) + tl.load(at_column + 1, mask=in_column, other=0.0)
        place = batch64 * stride_xb + (frame * tokens + token) * stride_xt
        q = _normed_and_turned(q_ptr + place, q_weight_ptr, offsets, inside, cos, sin, width, eps, SIZE)
        k = _normed_and_turned(k_ptr + place, k_weight_ptr, offsets, inside, cos, sin, width, eps, SIZE)
        v = tl.load(v_ptr + place + offsets, mask=inside)
        q_row = (batch64 * heads + head) * frames * tokens + frame * tokens + token
        tl.store(q_out_ptr + q_row * HEAD_DIM + channel, q, mask=inside)
        row = slot * tokens + token
        tl.store(k_arena_ptr + batch64 * stride_kb + head * stride_kh + row * stride_kn + channel, k, mask=inside)
        tl.store(v_arena_ptr + batch64 * stride_vb + head * stride_vh + row * stride_vn + channel, v, mask=inside)
        q_sum += q.to(tl.float32)
        k_sum += k.to(tl.float32)

    part = ((batch64 * frames + frame) * tl.num_programs(0) + chunk) * width + offsets
    tl.store(q_sum_ptr + part, q_sum, mask=inside)
    tl.store(k_sum_ptr + part, k_sum, mask=inside)


def prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    frame_pos: torch.Tensor,
    eps: float,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    k_desc: torch.Tensor,
    slots: torch.Tensor,
    config: PrepConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel; arguments and results as of `ops.qk_prep`. Sums of chunks are added in a fixed order."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    time, row, column = tables
    batch, length, width = q.shape
    heads, head_dim = k_arena.shape[1], k_arena.shape[3]
    frames, tokens = slots.shape[0], row.shape[0] * column.shape[0]
    chunks = -(-tokens // config.tokens)
    q_out = torch.empty((batch, heads, length, head_dim), dtype=q.dtype, device=q.device)
    sums = torch.empty((2, batch, frames, chunks, heads, head_dim), dtype=torch.float32, device=q.device)
    qk_prep_kernel[(chunks, frames, batch)](
        q,
        k,
        v,
        q_weight,
        k_weight,
        time,
        row,
        column,
        frame_pos,
        slots,
        k_arena,
        v_arena,
        q_out,
        sums[0],
        sums[1],
        frames,
        column.shape[0],
        tokens,
        heads,
        eps,
        *q.stride()[:2],
        *k_arena.stride()[:3],
        *v_arena.stride()[:3],
        HEAD_DIM=head_dim,
        PAIRS_TIME=time.shape[1],
        PAIRS_ROW=row.shape[1],
        PAIRS_COLUMN=column.shape[1],
        SIZE=triton.next_power_of_2(width),
        TOKENS=config.tokens,
        num_warps=config.warps,
    )
    q_mean, k_mean = (sums.sum(dim=3) / tokens).transpose(2, 3)
    k_desc[:, :, slots.long()] = k_mean
    return q_out, q_mean.contiguous()
