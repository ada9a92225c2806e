"""Relative positions far into a film, against float64."""

from __future__ import annotations

import pytest
import torch
from longreel.film.kv_memory import CallKind, KVLayout, KVMemory, MemorySettings


@pytest.mark.parametrize("start", [0, 1023, 2046])
def test_relative_positions_stay_near_and_exact_far_beyond_1024_frames(start):
    """Sink and bank sit right before the window however old they are: against float64, and without drift."""
    layout, settings = KVLayout(2, 2, 16, 3, 8), MemorySettings(window=6, sink=2, bank=2, positions="relative")
    memory = KVMemory(layout, settings, frames_per_block=2, dtype=torch.float32)
    speed = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    random, raw = torch.Generator().manual_seed(0), {}

    def rotated(frame, position):
        even, odd = raw[frame][..., :8].unflatten(-1, (4, 2)).unbind(-1)
        cos, sin = (position * speed).cos(), (position * speed).sin()
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
        return torch.cat((turned, raw[frame][..., 8:]), dim=-1)

    for block in range(1100 if start == 2046 else 20):
        if block == 5:
            memory.position += start - start % 2
        frames = [memory.position, memory.position + 1]
        raw |= {frame: torch.randn(2, 3, 16, generator=random, dtype=torch.float64) for frame in frames}
        memory.begin_call(CallKind.COMMIT, 2)
        for layer in range(2):
            keys = torch.cat([rotated(frame, frame) for frame in frames], dim=1)[None].float()
            memory.write(layer, keys, keys)
        if block > 12 and block % 50 in (0, 19):
            held = memory.bank.frames()[0]
            found, _ = memory.read(0, keys)
            first = memory.position - memory.ring_count
            places = dict(zip(memory.sink, (first - len(held) - 2, first - len(held) - 1), strict=True))
            places |= {frame: first - len(held) + index for index, frame in enumerate(sorted(set(held)))}
            expected = [rotated(frame, place) for frame, place in places.items()]
            got = found[0].unflatten(1, (-1, 3)).transpose(0, 1).double()
            for key in expected if len(set(held)) == len(held) else expected[:2]:
                assert min(float((key - one).abs().max()) for one in got) < 2e-3
        memory.end_call()
    assert memory.position > 1024 or start == 0
