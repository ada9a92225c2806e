"""The joined sound of a film: as long as the film, each shot's own where its first frame is, and no step at a cut."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.sound import fade_end, fitted, join_sounds, sample_of

RATES = {16.0: Fraction(16), 24.0: Fraction(24), 29.97: Fraction(2997, 100), 23.976: Fraction(23976, 1000)}


def constant(samples: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((2, samples), value)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 60), min_size=50, max_size=50),
    fps=st.sampled_from(sorted(RATES)),
    rate=st.sampled_from([8_000, 11_025]),
)
def test_fifty_shots_do_not_drift(frames: list[int], fps: float, rate: int):
    exact = [round(sum(frames[:i]) / RATES[fps] * rate) for i in range(51)]
    sounds = [constant(stop - start, 1.0 + i) for i, (start, stop) in enumerate(pairwise(exact))]
    joined = join_sounds(frames, sounds, fps, rate, 0.0)
    assert joined.shape == (2, exact[-1])
    for i, (start, stop) in enumerate(pairwise(exact)):
        assert sample_of(sum(frames[:i]), fps, rate) == start
        assert torch.equal(joined[:, start:stop], sounds[i])


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    silent=st.sets(st.integers(0, 5)),
    lengths=st.lists(st.integers(1, 4000), min_size=6, max_size=6),
    crossfade=st.sampled_from([0.0, 0.05, 0.3, 5.0]),
)
def test_a_sound_is_heard_in_its_shot_and_the_crossfade_alone(
    frames: list[int], silent: set[int], lengths: list[int], crossfade: float
):
    rate, fps = 1000, 16.0
    borders = [sample_of(sum(frames[:i]), fps, rate) for i in range(len(frames) + 1)]
    for alone in range(len(frames)):
        sounds = [constant(lengths[i]) if i == alone and i not in silent else None for i in range(len(frames))]
        joined = join_sounds(frames, sounds, fps, rate, crossfade)
        assert joined.shape == (2, borders[-1])
        assert not joined[:, : borders[alone]].any()
        assert joined.max() <= 1
        behind = min(borders[alone] + lengths[alone], borders[alone + 1] + round(crossfade * rate))
        assert not joined[:, behind:].any()
        if alone not in silent and not crossfade:
            assert torch.equal(joined[:, borders[alone] : behind], constant(max(0, behind - borders[alone])))


def test_a_crossfade_keeps_the_power_and_begins_at_the_cut():
    rate, long = 1000, constant(3000)
    both = [join_sounds([16, 16], pair, 16.0, rate, 0.5) for pair in ([long, None], [None, long])]
    power = both[0] ** 2 + both[1] ** 2
    assert power.shape == (2, 2000)
    torch.testing.assert_close(power, constant(2000), atol=1e-5, rtol=0)
    assert torch.equal(both[0][:, :1000], constant(1000))
    assert not both[1][:, :1000].any()
    assert both[0][0, 1249] == pytest.approx(0.5**0.5, abs=2e-3)
    # A sound that ends with its shot fades out before the cut, and is not cut off.
    ends = join_sounds([16, 16], [constant(1000), None], 16.0, rate, 0.5)
    assert torch.equal(ends[:, :500], constant(500))
    assert (ends[0, 500:1000].diff() < 0).all()
    assert ends[0, 999] < 0.01
    assert not ends[:, 1000:].any()
    # One that ended before the cut has nothing to fade.
    assert torch.equal(join_sounds([16, 16], [constant(400), None], 16.0, rate, 0.5)[:, :400], constant(400))


def test_ends_and_parts():
    assert torch.equal(fitted(constant(3), 1, 5), torch.tensor([[1.0, 1, 0, 0]] * 2))
    assert torch.equal(fitted(constant(3), 7, 9), torch.zeros(2, 2))
    assert torch.equal(fitted(constant(9), 2, 5), constant(3))
    assert fade_end(constant(6), 4)[0].tolist() == [1, 1, 0.75, 0.5, 0.25, 0]
    assert fade_end(constant(2), 4)[0].tolist() == [0.5, 0]
    assert torch.equal(fade_end(constant(2), 0), constant(2))
