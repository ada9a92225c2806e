"""Frame attention and QK preparation as `torch.library` operators: what the rest of the pack calls.

Words: B batch, H heads, D channels of a head, T tokens of a latent frame, S slots of an arena, F frames of a block,
L = F * T query tokens, R runs. An arena is head-major, [B, H, S * T, D]. Inference only: no gradients.
"""

from __future__ import annotations

import torch

from . import reference
from .backends import Problem, run
from .configs import attention_config, prep_config

__all__ = ["frame_attention", "frame_attention_lse", "merge_attention", "qk_prep"]


def frame_attention(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of q [B, H, L, D] over the arena tokens that a run table names: dense, windowed and sparse in one.

    runs: int32 [B | 1, H | 1, NQ | 1, R, 2], (first token, number of tokens) into the arena [B, H, S * T, D]; count:
    int32 [B | 1, H | 1, NQ | 1], how many of the R hold; q_block: query tokens of each of the NQ entries, default all;
    scale: default D ** -0.5. Tokens named twice count twice; a query without keys gets zeros. The table must stay
    inside the arena: it is on the device and is not checked. Returns [B, L, H, D] (ready for the output projection),
    dtype of q. Raises ValueError for shapes that do not fit. Source: docs/kernels.md, run tables.
    """
    return _call(q, k_arena, v_arena, runs, count, q_block, scale, False)[0]


def frame_attention_lse(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `frame_attention`, with the natural logarithm of the softmax's sum: fp32 [B, H, L], -inf without keys."""
    return _call(q, k_arena, v_arena, runs, count, q_block, scale, True)


def _call(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int | None,
    scale: float | None,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, head_dim = q.shape
    q_block = length if q_block is None else q_block
    if k_arena.shape != v_arena.shape or k_arena.shape[:2] != q.shape[:2] or k_arena.shape[3] != head_dim:
        raise ValueError(f"An arena of {tuple(k_arena.shape)} does not fit queries of {tuple(q.shape)}.")
    if q_block < 1:
        raise ValueError(f"A query block of {q_block} tokens is none.")
    entries = (batch, heads, -(-length // q_block))
    if runs.shape != (*count.shape, runs.shape[-2], 2) or any(c not in (1, n) for c, n in zip(count.shape, entries)):
        raise ValueError(
            f"Runs of {tuple(runs.shape)} with counts of {tuple(count.shape)} do not fit batch, heads and query blocks "
            f"of {entries}."
        )
    if runs.dtype != torch.int32 or count.dtype != torch.int32:
        raise ValueError("A run table is made of int32.")
    scale = head_dim**-0.5 if scale is None else scale
    out, lse = _frame_attention(q, k_arena, v_arena, runs, count, q_block, scale, with_lse)
    return out, lse


@torch.library.custom_op("longreel::frame_attention", mutates_args=())
def _frame_attention(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int,
    scale: float,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    def with_torch(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        if backend == "torch" or with_lse:
            out, lse = reference.attend(q, k_arena, v_arena, runs, count, q_block, scale)
            return out, lse.float() if with_lse else lse.new_empty(0, dtype=torch.float32)
        out = reference.attend_sdpa(q, k_arena, v_arena, runs, count, q_block, scale)
        return out, q.new_empty(0, dtype=torch.float32)

    head_dim = q.shape[3]
    return run(
        Problem.of(q, head_dim, k_arena, v_arena),
        "attention_triton",
        lambda module, capability: module.attend(
            q, k_arena, v_arena, runs, count, q_block, scale, with_lse, attention_config(capability, head_dim)
        ),
        with_torch,
    )


@_frame_attention.register_fake
def _(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int,
    scale: float,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, head_dim = q.shape
    lse = (batch, heads, length) if with_lse else (0,)
    return q.new_empty((batch, length, heads, head_dim)), q.new_empty(lse, dtype=torch.float32)


def merge_attention(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Join attention over n disjoint sets of keys: outs [n, B, L, H, D], lses fp32 [n, B, H, L] -> out, lse."""
    return reference.merge(outs, lses)


def qk_prep(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    frame_pos: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    k_desc: torch.Tensor,
    slots: torch.Tensor,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Wan's QK-norm and RoPE in one pass, keys and values written straight into arena slots.

    q, k, v: projections [B, L, H * D]; weights [H * D] of the RMS norm over all heads together; tables: of
    `reference.rope_tables`, fp32; frame_pos int32 [F]: each frame's row of the first table; slots int32 [F]: where it
    goes, all different; k_desc fp32 [B, H, S, D]: takes the mean stored key of each written frame. Returns q [B, H, L,
    D] in its dtype and each frame's mean query, fp32 [B, H, F, D]. Raises ValueError for shapes that do not fit.
    Positions and slots are on the device and are not checked. Source: docs/kernels.md, QK-norm.
    """
    batch, length, width = q.shape
    heads, head_dim = k_arena.shape[1], k_arena.shape[3]
    tokens, frames = tables[1].shape[0] * tables[2].shape[0], slots.shape[0]
    if k.shape != q.shape or v.shape != q.shape or width != heads * head_dim or k_arena.shape != v_arena.shape:
        raise ValueError(f"Projections of {tuple(q.shape)} do not fit an arena of {tuple(k_arena.shape)}.")
    if length != frames * tokens or frame_pos.shape != slots.shape or k_arena.shape[2] % tokens:
        raise ValueError(f"{length} tokens are not {frames} frames of {tokens}, or the arena's slots are not.")
    if k_desc.shape != (batch, heads, k_arena.shape[2] // tokens, head_dim):
        raise ValueError(f"Mean keys of {tuple(k_desc.shape)} do not fit an arena of {tuple(k_arena.shape)}.")
    if sum(table.shape[1] for table in tables) != head_dim // 2:
        raise ValueError(f"The RoPE tables do not turn all {head_dim // 2} channel pairs of a head.")
    q_out, q_desc = _qk_prep(q, k, v, q_weight, k_weight, list(tables), frame_pos, k_arena, v_arena, k_desc, slots, eps)
    return q_out, q_desc


@torch.library.custom_op("longreel::qk_prep", mutates_args=("k_arena", "v_arena", "k_desc"))
def _qk_prep(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    tables: list[torch.Tensor],
    frame_pos: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    k_desc: torch.Tensor,
    slots: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    time, row, column = tables
    head_dim = k_arena.shape[3]
    written = (k_arena, v_arena, k_desc, slots)
    given = (q, k, v, q_weight, k_weight, (time, row, column), frame_pos, eps, *written)
    return run(
        Problem.of(q, head_dim, k_arena, v_arena),
        "qk_prep_triton",
        lambda module, _: module.prepare(*given, prep_config(q.shape[2])),
        lambda _: reference.prepare(*given),
    )


@_qk_prep.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    tables: list[torch.Tensor],
    frame_pos: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    k_desc: torch.Tensor,
    slots: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, _ = q.shape
    heads, head_dim = k_arena.shape[1], k_arena.shape[3]
    return q.new_empty((batch, heads, length, head_dim)), k_desc.new_empty((batch, heads, slots.shape[0], head_dim))
