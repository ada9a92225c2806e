"""Run our kernels in Triton's interpreter and print each case's error as JSON. test_interpreter.py starts it.

Its own process, because Triton reads TRITON_INTERPRET once, as a kernel is defined.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import triton
from longreel.kernels import attention_triton, qk_prep_triton, reference, runs, sparse, sparse_triton
from longreel.kernels.configs import AttentionConfig, PrepConfig
from triton.runtime import interpreter

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def mend_old_interpreter() -> None:
    """Triton 3.6 turns arrays of one element into loop bounds by int(), which numpy 2.4 refuses; later ones do not."""
    if tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6) or np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return
    patch = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The error's norm over the norm of what was wanted; NaN if anything is."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def attention(
    dtype: str,
    tokens: int,
    head_dim: int,
    spans: list[list[tuple[int, int]]] | torch.Tensor,
    q_block: int,
    tiles: tuple[int, int] = (16, 16),
    batch: int = 1,
    count: torch.Tensor | None = None,
    frames: int = 1,
    slots: int = 5,
) -> dict[str, float]:
    """One case, everything that no run names poisoned. spans: per head, shared by the query blocks; or a table."""
    heads = 2
    q = torch.randn(batch, frames * tokens, heads, head_dim).to(DTYPES[dtype]).transpose(1, 2)
    k = torch.randn(batch, heads, slots * tokens, head_dim).to(DTYPES[dtype])
    v = torch.randn(batch, heads, slots * tokens, head_dim).to(DTYPES[dtype])
    if isinstance(spans, torch.Tensor):
        assert count is not None
        table = spans
    else:
        longest = max(map(len, spans))
        padded = [[*of_head, *([(0, slots * tokens)] * (longest - len(of_head)))] for of_head in spans]
        table = torch.tensor(padded, dtype=torch.int32).reshape(1, len(spans), 1, longest, 2)
        count = torch.tensor([len(of_head) for of_head in spans], dtype=torch.int32).reshape(1, len(spans), 1)
    named = torch.zeros(batch, heads, slots * tokens, dtype=torch.bool)
    wide_table, wide_count = table.expand(batch, heads, -1, -1, -1), count.expand(batch, heads, -1)
    for b in range(batch):
        for h in range(heads):
            for n in range(wide_count.shape[2]):
                for start, size in wide_table[b, h, n, : wide_count[b, h, n]].tolist():
                    named[b, h, start : start + size] = True
    k[~named], v[~named] = torch.nan, torch.nan
    want, want_lse = reference.attend(q.double(), k.double(), v.double(), table, count, q_block, head_dim**-0.5)
    got, lse = attention_triton.attend(
        q, k, v, table, count, q_block, head_dim**-0.5, True, AttentionConfig(*tiles, warps=4, stages=2)
    )
    empty = want_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    apart = (lse.double() - want_lse).masked_fill(empty, 0).abs().max()
    return {"out": relative(got, want), "lse": float(apart)}


def permutation() -> dict[str, float]:
    """Keys rotate before they are stored, so where a frame's slot lies must not matter."""
    q, k, v = torch.randn(2, 11, 32).unsqueeze(0), torch.randn(1, 2, 6, 11, 32), torch.randn(1, 2, 6, 11, 32)
    config, outs = AttentionConfig(16, 16, warps=4, stages=2), []
    for order in (torch.arange(6), torch.randperm(6)):
        table, count = runs.slot_runs(order.argsort()[:4].reshape(1, 1, 1, 4), 11)
        arena = (k[:, :, order].flatten(2, 3), v[:, :, order].flatten(2, 3))
        outs.append(attention_triton.attend(q, *arena, table, count, 11, 0.2, False, config)[0])
    return {"out": relative(outs[1], outs[0])}


def preparation(dtype: str, heads: int, head_dim: int, tokens_per_program: int, batch: int = 1) -> dict[str, float]:
    """One case of QK preparation, into slots in no order, with the other slots left alone."""
    frames, rows, columns, slots = 2, 3, 5, 4
    shape = (batch, frames * rows * columns, heads * head_dim)
    q, k, v = (torch.randn(shape).to(DTYPES[dtype]) for _ in range(3))
    weights = [torch.rand(heads * head_dim).add(0.5).to(DTYPES[dtype]) for _ in range(2)]
    tables = reference.rope_tables(40, rows, columns, head_dim)
    frame_pos = torch.tensor([38, 7], dtype=torch.int32)
    at = torch.tensor([3, 1], dtype=torch.int32)
    arena = (batch, heads, slots * rows * columns, head_dim)

    def written(run, wide):
        out = [torch.full(arena, 7.0, dtype=wide or DTYPES[dtype]) for _ in range(2)]
        out.append(torch.full((batch, heads, slots, head_dim), 7.0, dtype=wide or torch.float32))
        given = [x.to(wide) if wide else x for x in (q, k, v, *weights)]
        out += run(*given, tables, frame_pos, 1e-6, *out, at)
        return out

    want = written(reference.prepare, torch.float64)
    config = PrepConfig(tokens_per_program, warps=4)
    got = written(lambda *given: qk_prep_triton.prepare(*given, config), None)
    assert torch.equal(got[1].double(), want[1]), "values are copied, other slots left alone"
    others = [s for s in range(slots) if s not in at.tolist()]
    assert bool((got[0].unflatten(2, (slots, -1))[:, :, others] == 7).all())
    assert bool((got[2][:, :, others] == 7).all())
    key = [x[0].unflatten(2, (slots, -1))[:, :, at.long()] for x in (got, want)]
    # against the mean of what was stored, not of what would have been without rounding
    stored = got[0].unflatten(2, (slots, -1)).float().mean(dim=3)
    assert (stored - got[2]).abs().max() < 1e-5
    return {"k": relative(*key), "q": relative(got[3], want[3]), "q_desc": relative(got[4], want[4])}


def activation(dtype: str, heads: int, head_dim: int, candidates: int, active: int, tokens: int) -> dict[str, float]:
    """Sparse activation: how many picks and copied numbers differ from PyTorch's, with ties."""
    first, window = 2, 3
    q = torch.randn(1, heads, 2 * tokens, head_dim).to(DTYPES[dtype])
    means = torch.randn(candidates, heads, head_dim)
    means[-1] = means[0]  # of equal scores the earlier is better
    picks = sparse_triton.pick(q[0].mean(dim=1, dtype=torch.float32), means, active)
    wrong = (picks != sparse.pick_frames(q, means, active)).sum()
    to, slots = first + candidates + window, first + candidates + window + active + 1
    arenas = [torch.full((1, heads, slots * tokens, head_dim), 7.0).to(DTYPES[dtype]) for _ in range(2)]
    for arena in arenas:
        arena[:, :, first * tokens : to * tokens].normal_()
    wanted = [arena.clone() for arena in arenas]
    sparse_triton.copy(*arenas, picks, first, to, tokens)
    sparse.copy_frames(*wanted, picks, first, to, tokens)
    moved = sum((a != b).sum() for a, b in zip(arenas, wanted))
    assert all((arena[:, :, -tokens:] == 7).all() for arena in arenas), "nothing behind the last slot"
    assert any((arena[:, :, to * tokens : -tokens] != 7).any() for arena in arenas)
    return {"picks": float(wrong), "copied": float(moved)}


def cases() -> dict[str, dict[str, float]]:
    """Every case's errors by its name, which begins with its dtype."""
    found = {}
    for dtype in DTYPES:
        found[f"{dtype} dense, odd sizes"] = attention(dtype, 13, 64, [[(13, 39)]], 13)
        found[f"{dtype} per head, wrapped"] = attention(dtype, 7, 32, [[(0, 14), (28, 7)], [(7, 21)]], 7)
        found[f"{dtype} preparation"] = preparation(dtype, heads=3, head_dim=32, tokens_per_program=4)
        found[f"{dtype} sparse activation"] = activation(dtype, 3, 32, candidates=6, active=3, tokens=5)
    found["fp32 two of a batch"] = attention("fp32", 7, 32, [[(3, 30)]], 7, batch=2)
    found["fp32 a head of 128"] = attention("fp32", 33, 128, [[(0, 66), (99, 33)]], 33, tiles=(32, 32))
    found["fp32 the head's list is empty"] = attention("fp32", 7, 32, [[], [(7, 14)]], 7)
    found["fp32 a run of no tokens"] = attention("fp32", 7, 32, [[(0, 0), (7, 14)]], 7)
    found["fp32 a slot twice"] = attention("fp32", 7, 32, [[(7, 7), (7, 7), (21, 7)]], 7)
    found["fp32 one token"] = attention("fp32", 1, 32, [[(2, 1)]], 1)
    picks = torch.stack([torch.stack([torch.randperm(8)[:4] for _ in range(3)]) for _ in range(2)]).unsqueeze(0)
    table, count = runs.slot_runs(picks, 15)
    table = table.movedim(-1, 0).contiguous().movedim(0, -1)  # any strides are taken
    found["fp32 a list per query block"] = attention("fp32", 15, 32, table, 20, count=count, frames=4, slots=8)
    found["fp32 slots in another order"] = permutation()
    found["fp32 one of two frames"] = activation("fp32", 2, 64, candidates=2, active=1, tokens=150)
    found["fp32 preparation of two"] = preparation("fp32", heads=2, head_dim=64, tokens_per_program=8, batch=2)
    return found


if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[1]))
    mend_old_interpreter()
    sys.stdout.write(json.dumps(cases()))
