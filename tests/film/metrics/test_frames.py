"""What is noted of frames: motion, colour, cuts, on pictures whose truth is known."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from longreel.film.metrics import (
    FrameStats,
    MetricsError,
    Span,
    Watcher,
    block_motion,
    colour_distance,
    cut_sharpness,
    find_cuts,
    keyframe_positions,
    lab,
    small,
    spans_of,
)


def texture(height: int = 72, width: int = 128, seed: int = 1) -> torch.Tensor:
    """Soft random structure [height, width] in 0..1."""
    noise = torch.rand(1, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0, 0].clamp(0, 1)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 0), (0, -5), (-7, 6), (1, 1)])
def test_a_moved_picture_is_found_where_it_went(right: int, down: int):
    big = texture(96, 160)
    before = big[12:84, 16:144]
    after = big[12 - down : 84 - down, 16 - right : 144 - right]
    flow, left = block_motion(before, after)
    inner = flow[:, 1:-1, 1:-1]
    for found, wanted in zip(inner, (right, down)):
        assert (found - wanted).abs().max() < 0.3
        assert found.mean() == pytest.approx(wanted, abs=0.03)
    assert left[1:-1, 1:-1].max() < 2e-3


def test_half_a_pixel_is_seen():
    big = texture(96, 160)
    half = (big[:, 1:] + big[:, :-1]) / 2
    flow, _ = block_motion(big[12:84, 16:144], half[12:84, 16 - 1 : 144 - 1])
    assert flow[0, 1:-1, 1:-1].mean() == pytest.approx(0.5, abs=0.1)


def test_noise_is_no_motion_and_a_new_picture_is_not_explained():
    still = texture()
    noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(2)) / 255
    assert torch.equal(block_motion(still, still + noise)[0], torch.zeros(2, 9, 16))
    assert torch.equal(block_motion(torch.full((72, 128), 0.3), torch.full((72, 128), 0.3))[0], torch.zeros(2, 9, 16))
    assert block_motion(still, texture(seed=9))[1].mean() > 0.05


def test_signs_of_a_pan():
    big = texture(64, 200)
    frames = torch.stack([big[:, 2 * t : 2 * t + 96] for t in range(8)])[..., None].expand(-1, -1, -1, 3)
    watcher = Watcher()
    watcher.see(frames[:3])
    watcher.see(frames[3:])
    diagonal = math.hypot(64, 96)
    assert watcher.signs[0].motion == watcher.signs[0].difference == 0
    for t in range(1, 8):
        # The blocks at the edge from which the picture comes in have nothing to match.
        assert watcher.signs[t].motion == pytest.approx(100 * 2 / diagonal, rel=0.1)
        assert watcher.signs[t].difference == pytest.approx(float((frames[t] - frames[t - 1]).abs().mean()))


def test_colours_are_cielab():
    """Against published values of the sRGB primaries under D65."""
    corners = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])[..., None, None]
    wanted = [(100, 0, 0), (53.24, 80.09, 67.20), (87.74, -86.18, 83.18), (32.30, 79.19, -107.86), (0, 0, 0)]
    assert torch.allclose(lab(corners)[..., 0, 0], torch.tensor(wanted), atol=0.02)
    assert colour_distance((50, 3, 0), (50, 0, 4)) == 5


def test_contrast_is_the_spread_of_lightness():
    checks = torch.zeros(1, 8, 8, 3)
    checks[:, ::2] = 1
    watcher = Watcher()
    watcher.see(checks)
    assert watcher.signs[0].contrast == pytest.approx(50, abs=1e-3)
    assert watcher.signs[0].colour[0] == pytest.approx(50, abs=1e-3)


def test_frames_are_made_small_and_never_larger():
    assert small(torch.rand(2, 480, 832, 3)).shape == (2, 3, 74, 128)
    assert small(torch.rand(1, 832, 480, 4)).shape == (1, 3, 128, 74)
    frame = torch.rand(1, 20, 30, 3)
    assert torch.equal(small(frame), frame.movedim(-1, 1))


def quiet(*jumps: float) -> list[FrameStats]:
    return [FrameStats(jump, jump, 0, 0, (0, 0, 0), 0) for jump in jumps]


def test_cuts_are_found_in_films_of_many_shots():
    """Shots of random length, each panning over a picture of its own with grain on it."""
    chance = random.Random(3)
    for trial in range(5):
        lengths = [chance.randint(6, 20) for _ in range(5)]
        shots = []
        for number, length in enumerate(lengths):
            big = texture(48, 200, seed=100 * trial + number)
            pan = torch.stack([big[:, 3 * t : 3 * t + 80] for t in range(length)])
            shots.append(pan[..., None].expand(-1, -1, -1, 3))
        film = torch.cat(shots)
        film = (film + torch.randn(film.shape, generator=torch.Generator().manual_seed(trial)) * 0.01).clamp(0, 1)
        watcher = Watcher()
        watcher.see(film)
        wanted = tuple(sum(lengths[:n]) for n in range(1, 5))
        assert find_cuts(watcher.signs) == wanted


def test_what_is_no_cut():
    assert find_cuts(quiet(*[0.0] * 30)) == ()
    assert find_cuts(quiet(*[0.2] * 30)) == (), "a restless film is not cut at every frame"
    assert find_cuts(quiet(*[0.001] * 10, 0.03, *[0.001] * 10)) == (), "a small change is none"
    assert find_cuts(quiet(0.0, 0.0, 0.3, *[0.0] * 20)) == (), "nor is the first blink of a film"
    flash = quiet(*[0.001] * 10, 0.3, 0.31, *[0.001] * 10)
    assert len(find_cuts(flash)) <= 1, "a flash makes no shot of one frame"
    assert find_cuts(quiet(*[0.001] * 10, 0.3, *[0.001] * 10)) == (10,)
    fade = [torch.lerp(texture(seed=1), texture(seed=2), t / 20) for t in range(21)]
    watcher = Watcher()
    watcher.see(torch.stack(fade)[..., None].expand(-1, -1, -1, 3))
    assert find_cuts(watcher.signs) == ()


def test_sharpness_is_a_ratio():
    # 0.04 is usual on both sides, the cut is 0.4; what lies farther away than 8 frames does not count.
    signs = quiet(0.9, *[0.9] * 5, *[0.04] * 9, 0.4, *[0.04] * 9, *[0.9] * 5)
    assert cut_sharpness(signs, Span(0, 15), Span(15, 29)) == pytest.approx(10)
    still = quiet(0, 0, 0, 0.4, 0, 0)
    assert cut_sharpness(still, Span(0, 3), Span(3, 6)) == pytest.approx(0.4 * 255)
    assert cut_sharpness(quiet(0, 0.2), Span(0, 1), Span(1, 2)) == pytest.approx(0.2 * 255)


def test_spans_and_their_keyframes():
    assert spans_of((3, 7), 10) == (Span(0, 3), Span(3, 7), Span(7, 10))
    with pytest.raises(MetricsError, match="no frames"):
        spans_of((), 0)
    assert keyframe_positions(Span(10, 15), 1) == (12,)
    assert keyframe_positions(Span(0, 12), 3) == (2, 6, 10)
    assert keyframe_positions(Span(4, 6), 5) == (4, 5)
    assert keyframe_positions(Span(7, 8), 1) == (7,)
