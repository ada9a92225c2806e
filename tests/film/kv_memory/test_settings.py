"""Memory settings, snapshots that do not fit, and drift of the relative positions."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.kv_memory import (
    LONGLIVE,
    MEMFLOW,
    PRESETS,
    UNBOUNDED,
    CallKind,
    FrameArena,
    KVLayout,
    KVMemory,
    MemoryMismatchError,
    MemorySettings,
    MemorySettingsError,
    restore,
    snapshot,
)

LAYOUT = KVLayout(layers=2, heads=2, head_dim=12, tokens=2, temporal_channels=4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sink": -1}, "0 or more"),
        ({"window": 3, "sink": 3}, "enlarge the window"),
        ({"record_interval": 0}, "at least 1"),
        ({"record": "always"}, "Unknown record rule"),
        ({"positions": "none"}, "Unknown positions"),
        ({"bank": 0, "active": 2}, "loses the sink"),
    ],
)
def test_contradictions_get_one_sentence(values, words):
    with pytest.raises(MemorySettingsError, match=words) as caught:
        MemorySettings(**values)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_block_must_fit_the_window():
    with pytest.raises(MemorySettingsError, match="set the window to 7"):
        KVMemory(LAYOUT, MemorySettings(window=6, sink=3), frames_per_block=4, dtype=torch.float32)


def test_presets_survive_json():
    for preset in PRESETS.values():
        assert MemorySettings.from_json(json.loads(json.dumps(preset.to_json()))) == preset
    with pytest.raises(MemorySettingsError, match="another version"):
        MemorySettings.from_json({"colour": 1})


def film(memory, blocks, frames=3):
    """Commit blocks of ones, turned to their positions by nobody."""
    shape = (1, memory.layout.heads, frames * memory.layout.tokens, memory.layout.head_dim)
    for _ in range(blocks):
        memory.begin_call(CallKind.COMMIT, frames)
        for layer in range(memory.layout.layers):
            memory.write(layer, torch.ones(shape), torch.ones(shape))
            memory.read(layer, torch.ones(shape))
        memory.end_call()


@pytest.mark.parametrize("change", ["layout", "block", "window", "sink", "bank", "positions"])
def test_a_snapshot_of_something_else_is_refused(change):
    memory = KVMemory(LAYOUT, MEMFLOW, frames_per_block=3, dtype=torch.float32)
    film(memory, 2)
    layout, settings, frames = LAYOUT, MEMFLOW, 3
    if change == "layout":
        layout = dataclasses.replace(LAYOUT, tokens=4)
    elif change == "block":
        frames = 2
    else:
        new = {"window": 15, "sink": 2, "bank": 4, "positions": "relative"}[change]
        settings = dataclasses.replace(MEMFLOW, **{change: new})
    with pytest.raises(MemoryMismatchError) as caught:
        restore(snapshot(memory), layout, settings, frames_per_block=frames, dtype=torch.float32)
    assert str(caught.value).endswith(".")


def test_no_snapshot_inside_a_block():
    memory = KVMemory(LAYOUT, LONGLIVE, frames_per_block=3, dtype=torch.float32)
    memory.begin_call(CallKind.DENOISE, 3)
    memory.end_call()
    with pytest.raises(RuntimeError, match="between blocks"):
        snapshot(memory)


@given(window=st.one_of(st.none(), st.integers(4, 20)), bank=st.integers(0, 3), relative=st.booleans())
def test_the_arena_takes_what_was_declared(window, bank, relative):
    positions = "relative" if relative else "absolute"
    settings = MemorySettings(window=window, sink=1, bank=bank, positions=positions)
    memory = KVMemory(LAYOUT, settings, frames_per_block=3, dtype=torch.bfloat16, capacity=9)
    tensors = [*memory.arena.k, *memory.arena.v, *(memory.sink_canonical or [])]
    if memory.bank is not None:
        tensors += memory.bank.canonical or []
    declared = FrameArena.bytes_needed(LAYOUT, settings, KVMemory.ring_frames(settings, 9), torch.bfloat16)
    assert sum(tensor.nbytes for tensor in tensors) == declared


def test_a_bounded_window_never_grows_and_an_unbounded_one_keeps_all():
    memory = KVMemory(LAYOUT, MEMFLOW, frames_per_block=3, dtype=torch.float32)
    first = [tensor.data_ptr() for tensor in memory.arena.k]
    film(memory, 100)
    assert [tensor.data_ptr() for tensor in memory.arena.k] == first
    memory = KVMemory(LAYOUT, UNBOUNDED, frames_per_block=3, dtype=torch.float32)
    film(memory, 20)
    assert memory.ring_count == 60


def test_relative_positions_do_not_drift_in_5000_frames():
    settings = MemorySettings(window=6, sink=3, bank=0, positions="relative")
    memory = KVMemory(LAYOUT, settings, frames_per_block=3, dtype=torch.float32)
    raw = torch.randn(1, 2, 6, 12, generator=torch.Generator().manual_seed(0))

    def turned(frame, position):
        """The sink frame's keys at a position, with complex numbers in float64."""
        keys = raw[0, :, 2 * frame : 2 * frame + 2].double()
        pairs = torch.view_as_complex(keys[..., :4].unflatten(-1, (2, 2)).contiguous())
        angle = position * 10000.0 ** (-torch.arange(2).double() / 2)
        pairs = torch.view_as_real(pairs * torch.polar(torch.ones(2).double(), angle)).flatten(-2)
        return torch.cat([pairs, keys[..., 4:]], dim=-1)

    sink = torch.cat([turned(frame, frame) for frame in range(3)], dim=1).unsqueeze(0).float()
    for block in range(5000 // 3):
        call = memory.begin_call(CallKind.COMMIT, 3)
        for layer in range(2):
            memory.write(layer, sink if block == 0 else torch.zeros_like(sink), torch.zeros_like(sink))
        if block % 333 == 332:
            keys, _ = memory.read(0, sink)
            for frame in range(3):
                expected = turned(frame, call.position - 3 + frame)
                assert (keys[0, :, 2 * frame : 2 * frame + 2] - expected).abs().max() < 2e-3
        memory.end_call()
    assert memory.position == 4998
