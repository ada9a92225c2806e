"""The operators on the CPU: run tables, the PyTorch twins, schemas and fakes, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.kernels import backends, ops, reference, runs, sparse

HEADS, TOKENS, SLOTS, DIM = 3, 5, 6, 16


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)


def arena(batch: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (batch, HEADS, SLOTS * TOKENS, DIM)
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def queries(frames: int = 2, batch: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, HEADS, frames * TOKENS, DIM, dtype=dtype)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention [B, L, H, D] over all of k and v, in float64, written independently of the twins."""
    weights = (torch.einsum("bhld,bhmd->bhlm", q.double(), k.double()) / DIM**0.5).softmax(dim=-1)
    return torch.einsum("bhlm,bhmd->blhd", weights, v.double())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=3))
def test_runs_name_each_slot_as_often_as_it_was_picked(picks: list[list[int]]):
    table, count = runs.slot_runs(torch.tensor(picks), TOKENS)
    assert table.dtype == count.dtype == torch.int32
    for picked, spans, used in zip(picks, table.tolist(), count.tolist()):
        named = [token for start, size in spans[:used] for token in range(start, start + size)]
        assert sorted(named) == sorted(slot * TOKENS + t for slot in picked for t in range(TOKENS))
        ordered = sorted(picked)
        assert used == 1 + sum(b - a != 1 for a, b in itertools.pairwise(ordered)), "neighbours make one run"


def test_top_slots_are_the_best_by_brute_force_and_the_first_on_ties():
    q, k = torch.randn(1, HEADS, 2, DIM), torch.randn(1, HEADS, SLOTS, DIM)
    k[:, :, 4] = k[:, :, 1]
    candidates = [5, 1, 4, 0]
    found = runs.top_slots(q, k, torch.tensor(candidates, dtype=torch.int32), 3)
    for h in range(HEADS):
        for n in range(2):
            scores = [(-float(q[0, h, n] @ k[0, h, s]), i, s) for i, s in enumerate(candidates)]
            scores = [(round(score, 4), i, s) for score, i, s in scores]
            assert found[0, h, n].tolist() == [s for _, _, s in sorted(scores)[:3]]


def test_the_table_of_sparse_activation_names_what_the_sorted_one_does():
    picks, first, window = torch.tensor([[0, 2], [1, 2], [0, 1]]), 1, range(4, 6)
    slots = torch.cat((picks + first, torch.tensor(list(window)).expand(3, -1)), dim=1)
    q, (k, v) = queries(), arena()
    got = ops.frame_attention(q, k, v, *sparse.sparse_runs(picks, first, window, TOKENS))
    want = ops.frame_attention(q, k, v, *runs.slot_runs(slots[None, :, None], TOKENS))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_picks_are_the_best_by_brute_force_in_ascending_order_and_the_first_on_ties():
    q, means = queries(), torch.randn(SLOTS, HEADS, DIM)
    means[5] = means[0]
    picks = sparse.pick_frames(q, means, 3)
    for h in range(HEADS):
        query = q[0, h].mean(dim=0)
        scores = [(-round(float(query @ means[c, h]), 4), c) for c in range(SLOTS)]
        assert picks[h].tolist() == sorted(c for _, c in sorted(scores)[:3])


@pytest.mark.parametrize("backend", ["sdpa", "torch"])
def test_dense_is_ordinary_attention_over_the_range(monkeypatch: pytest.MonkeyPatch, backend: str):
    monkeypatch.setenv(backends.VARIABLE, backend)
    q, (k, v) = queries(batch=2), arena(batch=2)
    got = ops.frame_attention(q, k, v, *runs.table([(TOKENS, 3 * TOKENS)]))
    torch.testing.assert_close(got.double(), by_hand(q, k[:, :, 5:20], v[:, :, 5:20]), rtol=0, atol=1e-6)
    assert got.is_contiguous()


@pytest.mark.parametrize("backend", ["sdpa", "torch"])
def test_each_head_and_query_block_has_its_own_frames(monkeypatch: pytest.MonkeyPatch, backend: str):
    """Frames nobody named are NaN and must not leak; one that is named twice weighs double."""
    monkeypatch.setenv(backends.VARIABLE, backend)
    picks = torch.tensor([[[[0, 2, 3], [4, 4, 1]], [[3, 2, 5], [0, 1, 2]], [[1, 3, 5], [5, 5, 5]]]])
    q, (k, v) = queries(), arena()
    out = ops.frame_attention(q, k, v, *runs.slot_runs(picks, TOKENS), q_block=TOKENS)
    for h in range(HEADS):
        for n in range(2):
            named = torch.cat([torch.arange(TOKENS) + s * TOKENS for s in picks[0, h, n].tolist()])
            mine = slice(n * TOKENS, (n + 1) * TOKENS)
            part = (q[:, h : h + 1, mine], k[:, h : h + 1, named], v[:, h : h + 1, named])
            torch.testing.assert_close(out[:, mine, h : h + 1].double(), by_hand(*part), rtol=0, atol=1e-6)
    unnamed = torch.ones(SLOTS * TOKENS, dtype=torch.bool)
    unnamed[5:20] = False
    window = runs.table([(5, 10), (15, 5)])
    clean = ops.frame_attention(q, k, v, *window)
    k[:, :, unnamed], v[:, :, unnamed] = torch.nan, torch.nan
    assert torch.equal(ops.frame_attention(q, k, v, *window), clean)


def test_no_keys_give_zeros_and_an_lse_of_minus_infinity():
    q, (k, v) = queries(), arena()
    for table in (runs.table([]), runs.table([(5, 0)])):
        out, lse = ops.frame_attention_lse(q, k, v, *table)
        assert not out.any()
        assert bool((lse == -torch.inf).all())
        assert not ops.frame_attention(q, k, v, *table).any()


def test_attention_over_parts_merges_into_attention_over_all():
    q, (k, v) = queries(), arena()
    spans = [(0, 10), (10, 5), (20, 10), (0, 0)]
    parts = [ops.frame_attention_lse(q, k, v, *runs.table([span])) for span in spans]
    outs, lses = (torch.stack(of) for of in zip(*parts))
    out, lse = ops.merge_attention(outs, lses)
    want, want_lse = ops.frame_attention_lse(q, k, v, *runs.table(spans))
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-6)
    nothing, empty = ops.merge_attention(outs[3:], lses[3:])
    assert not nothing.any()
    assert bool((empty == -torch.inf).all())


def preparation(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Arguments of qk_prep for two frames of a grid of 1x5, into slots 4 and 0."""
    rows, columns, dim = 1, 5, DIM
    given = [torch.randn(1, 2 * TOKENS, HEADS * dim, dtype=dtype) for _ in range(3)]
    given += [torch.rand(HEADS * dim, dtype=dtype) for _ in range(2)]
    k, v = arena(dtype=dtype)
    rest = {
        "tables": reference.rope_tables(9, rows, columns, dim),
        "frame_pos": torch.tensor([3, 8], dtype=torch.int32),
        "k_arena": k,
        "v_arena": v,
        "k_desc": torch.zeros(1, HEADS, SLOTS, dim),
        "slots": torch.tensor([4, 0], dtype=torch.int32),
    }
    return given, rest


def test_preparation_is_norm_rotation_and_copy():
    """Against complex multiplication in float64, the way the literature writes RoPE."""
    (q, k, v, q_weight, k_weight), rest = preparation()
    k_before = rest["k_arena"].clone()
    q_out, q_desc = ops.qk_prep(q, k, v, q_weight, k_weight, **rest)
    side = DIM // 6
    time = DIM // 2 - 2 * side
    speeds = [10000.0 ** -(torch.arange(n, dtype=torch.float64) / n) for n in (time, side, side)]
    angles = torch.stack(
        [
            torch.cat((frame * speeds[0], 0 * speeds[1], column * speeds[2]))
            for frame in (3, 8)
            for column in range(TOKENS)
        ]
    )
    spin = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)

    def wanted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.double()
        normed = x * (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
        pairs = torch.view_as_complex(normed.unflatten(-1, (HEADS, DIM // 2, 2)).contiguous())
        return torch.view_as_real(pairs * spin).flatten(-2).transpose(1, 2)

    torch.testing.assert_close(q_out.double(), wanted(q, q_weight), rtol=0, atol=2e-6)
    want = wanted(k, k_weight)
    for frame, slot in enumerate((4, 0)):
        stored, of = slice(slot * TOKENS, (slot + 1) * TOKENS), slice(frame * TOKENS, (frame + 1) * TOKENS)
        torch.testing.assert_close(rest["k_arena"][:, :, stored].double(), want[:, :, of], rtol=0, atol=2e-6)
        assert torch.equal(rest["v_arena"][:, :, stored], v[:, of].unflatten(-1, (HEADS, DIM)).transpose(1, 2))
        mean = rest["k_arena"][:, :, stored].mean(dim=2)
        torch.testing.assert_close(rest["k_desc"][:, :, slot], mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(q_desc[:, :, frame], q_out[:, :, of].mean(dim=2), rtol=0, atol=1e-6)
    assert torch.equal(rest["k_arena"][:, :, 5:20], k_before[:, :, 5:20]), "other slots are left alone"


def test_schemas_and_fakes():
    q, (k, v) = queries(), arena()
    table, count = runs.table([(0, 10), (20, 5)])
    utilities = ("test_schema", "test_faketensor")
    op = torch.ops.longreel.frame_attention.default
    for with_lse in (False, True):
        torch.library.opcheck(op, (q, k, v, table, count, 10, 0.25, with_lse), test_utils=utilities)
    given, rest = preparation()
    tables = list(rest.pop("tables"))
    arguments = (*given, tables, *rest.values(), 1e-6)
    torch.library.opcheck(torch.ops.longreel.qk_prep.default, arguments, test_utils=utilities)


def test_traced_whole_and_new_tables_need_no_new_trace():
    traces = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        traces.append(graph)
        return graph.forward

    compiled = torch.compile(ops.frame_attention, backend=backend, fullgraph=True)
    q, (k, v) = queries(), arena()
    for spans in ([(0, 10)], [(15, 15)]):
        table = runs.table(spans)
        assert torch.equal(compiled(q, k, v, *table), ops.frame_attention(q, k, v, *table))
    assert len(traces) == 1


def test_shapes_that_do_not_fit_are_refused():
    q, (k, v) = queries(), arena()
    table, count = runs.table([(0, 5)])
    with pytest.raises(ValueError, match="does not fit queries"):
        ops.frame_attention(q, k[:, :2], v[:, :2], table, count)
    with pytest.raises(ValueError, match="do not fit batch, heads and query blocks"):
        ops.frame_attention(q, k, v, table.expand(-1, 2, -1, -1, -1), count.expand(-1, 2, -1))
    with pytest.raises(ValueError, match="int32"):
        ops.frame_attention(q, k, v, table.long(), count)
    with pytest.raises(ValueError, match="is none"):
        ops.frame_attention(q, k, v, table, count, q_block=0)
    given, rest = preparation()
    with pytest.raises(ValueError, match="not 1 frames of 5"):
        ops.qk_prep(*given, **rest | {"slots": rest["slots"][:1], "frame_pos": rest["frame_pos"][:1]})
    with pytest.raises(ValueError, match="Mean keys"):
        ops.qk_prep(*given, **rest | {"k_desc": rest["k_desc"][:, :, :2]})
    with pytest.raises(ValueError, match="channel pairs"):
        ops.qk_prep(*given, **rest | {"tables": (*rest["tables"][:2], rest["tables"][2][:, :1])})


def test_half_precision_stays_within_one_rounding():
    q, (k, v) = queries(dtype=torch.bfloat16), arena(dtype=torch.bfloat16)
    want = by_hand(q, k, v)
    got = ops.frame_attention(q, k, v, *runs.table([(0, SLOTS * TOKENS)]))
    assert got.dtype == torch.bfloat16
    assert F.mse_loss(got.double(), want).sqrt() / want.pow(2).mean().sqrt() < 5e-3
