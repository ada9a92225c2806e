"""The kernels' arithmetic in plain PyTorch: the oracle in float64, the fallback everywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

__all__ = ["attend", "attend_sdpa", "merge", "prepare", "rope_tables"]


def attend(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax written out, in fp32 or, of float64 tensors, in float64. Arguments as of `ops.frame_attention`.

    Returns out [B, L, H, D] in q's dtype and LSE [B, H, L] in the dtype computed in. Reads the tables on the host.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)
    for at, keys, values in _parts(k_arena, v_arena, runs, count, q_block):
        scores = q[at].to(wide) @ keys.to(wide).mT * scale
        lse[at] = scores.logsumexp(dim=-1)
        out[at] = ((scores - lse[at].unsqueeze(-1)).exp() @ values.to(wide)).to(q.dtype)
    return out.transpose(1, 2).contiguous(), lse


def attend_sdpa(
    q: torch.Tensor,
    k_arena: torch.Tensor,
    v_arena: torch.Tensor,
    runs: torch.Tensor,
    count: torch.Tensor,
    q_block: int,
    scale: float,
) -> torch.Tensor:
    """As `attend`, by PyTorch's own attention, without an LSE. A single run is read in place, several are copied."""
    out = torch.zeros_like(q)
    for at, keys, values in _parts(k_arena, v_arena, runs, count, q_block):
        out[at] = F.scaled_dot_product_attention(q[at], keys, values, scale=scale)
    return out.transpose(1, 2).contiguous()


def _parts(
    k_arena: torch.Tensor, v_arena: torch.Tensor, runs: torch.Tensor, count: torch.Tensor, q_block: int
) -> Iterator[tuple[tuple[slice, slice, slice], torch.Tensor, torch.Tensor]]:
    """Every entry of the tables that has keys: which queries it rules (batch, heads, tokens), its keys and values."""
    table, counts = runs.tolist(), count.tolist()
    for b, of_batch in enumerate(counts):
        batch = slice(b, b + 1) if len(counts) > 1 else slice(None)
        for h, of_head in enumerate(of_batch):
            heads = slice(h, h + 1) if len(of_batch) > 1 else slice(None)
            for n, used in enumerate(of_head):
                tokens = slice(n * q_block, (n + 1) * q_block) if len(of_head) > 1 else slice(None)
                spans = [(start, size) for start, size in table[b][h][n][:used] if size]
                if spans:
                    keys, values = (
                        torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
                        for parts in (
                            [arena[batch, heads].narrow(2, start, size) for start, size in spans]
                            for arena in (k_arena, v_arena)
                        )
                    )
                    yield (batch, heads, tokens), keys, values


def merge(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Join attention over n disjoint sets of keys. outs [n, B, L, H, D], lses [n, B, H, L] (natural log).

    Returns out [B, L, H, D] in outs' dtype and the joint LSE [B, H, L]; computed in the LSE's dtype. A part without
    keys (LSE = -inf) counts for nothing; where no part has any, out is 0 and LSE is -inf.
    """
    lse = lses.logsumexp(dim=0)
    shares = (lses - lse.masked_fill(lse == -torch.inf, 0.0)).exp()
    out = (outs.to(lses.dtype) * shares.transpose(2, 3).unsqueeze(-1)).sum(dim=0)
    return out.to(outs.dtype), lse


def rope_tables(
    positions: int,
    rows: int,
    columns: int,
    head_dim: int,
    theta: float = 10000.0,
    device: torch.device | None = None,
    first: int = 0,
    phases: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(cos, sin) of Wan's three RoPE axes: fp32 [positions | rows | columns, pairs of the axis, 2].

    The table of time begins with position `first`, so that it is no longer than a block however long the film is.
    phases: radians added to all temporal angles of each position, none without. Height and width take a third of a
    head's channel pairs each, rounded down; time has the rest and comes first. Angles are computed in float64 on the
    CPU. Source: docs/kernels.md, angles.
    """
    side = head_dim // 6
    tables: list[torch.Tensor] = []
    for start, size, pairs in ((first, positions, head_dim // 2 - 2 * side), (0, rows, side), (0, columns, side)):
        speed = theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = (start + torch.arange(size, dtype=torch.float64)).unsqueeze(1) * speed
        if phases and not tables:
            angles += torch.tensor(phases, dtype=torch.float64).unsqueeze(1)
        tables.append(torch.stack((angles.cos(), angles.sin()), dim=-1).float().to(device))
    return tables[0], tables[1], tables[2]


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """QK-norm, RoPE and the write into arena slots. Arguments and results as of `ops.qk_prep`.

    Computes in fp32 or, of float64 tensors, in float64, and rounds once.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, head_dim = k_arena.shape[1], k_arena.shape[3]
    time, row, column = (table.to(wide) for table in tables)
    frames, rows, columns = slots.shape[0], row.shape[0], column.shape[0]
    grid = (frames, rows, columns, -1, 2)
    phases = torch.cat(
        (
            time[frame_pos.long()][:, None, None].expand(grid),
            row[None, :, None].expand(grid),
            column[None, None].expand(grid),
        ),
        dim=3,
    ).flatten(0, 2)
    cos, sin = phases.unsqueeze(1).unbind(-1)

    def normed_and_turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = F.rms_norm(x.to(wide), (x.shape[-1],), weight.to(wide), eps).unflatten(-1, (heads, head_dim // 2, 2))
        even, odd = y.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
        return turned.to(x.dtype).transpose(1, 2).contiguous()

    q_out, k_out = normed_and_turned(q, q_weight), normed_and_turned(k, k_weight)
    by_frame = (frames, rows * columns)
    at = slots.long()
    for arena, fresh in ((k_arena, k_out), (v_arena, v.unflatten(-1, (heads, head_dim)).transpose(1, 2))):
        arena.unflatten(2, (-1, rows * columns))[:, :, at] = fresh.unflatten(2, by_frame)
    k_desc[:, :, at] = k_out.unflatten(2, by_frame).to(wide).mean(dim=3).to(k_desc.dtype)
    return q_out, q_out.unflatten(2, by_frame).to(wide).mean(dim=3).to(k_desc.dtype)
