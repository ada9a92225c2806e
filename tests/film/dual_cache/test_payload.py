"""What the model is given: rates, ids, noise, history strength."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from longreel.film import dual_cache as fw
from longreel.film.dual_cache import FILMWEAVER, CacheError, CacheNoise, Segment, StoryCache, build_payload

from .conftest import make_keyframe

PATCH = FILMWEAVER.patch
CLEAN = CacheNoise(shot=0.0)


def filled(frames: int = 19, keyframes: int = 3) -> StoryCache:
    story = StoryCache("v", 2, 4, 4, bank=tuple(make_keyframe(seed) for seed in range(keyframes)))
    generator = torch.Generator().manual_seed(9)
    return fw.push_chunk(story, torch.randn(2, frames, 4, 4, generator=generator)) if frames else story


def test_full_caches():
    story = filled()
    payload = build_payload(story, story.bank, noise_seed=7)
    assert [segment.kind for segment in payload.segments] == ["shot"] * 3 + ["temporal"] * 3
    assert [segment.times for segment in payload.segments[:5]] == [(-24,), (-30,), (-36,), (-1,), (-3, -2)]
    assert [segment.phase for segment in payload.segments] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0, 0, 0])
    assert [segment.sigma for segment in payload.segments] == [0.1] * 3 + [0.0] * 3
    assert payload.tokens == FILMWEAVER.tokens(4, 4, 19, 3) - FILMWEAVER.tokens(4, 4, 0, 0)
    assert payload.cost == 5
    assert payload != dataclasses.replace(payload), "samplers compare payloads: equality must be identity"


def test_at_832x480_every_segment_matches_its_ids():
    """17 212 tokens with the target, 11 full latents in cost."""
    latent = torch.zeros(16, 1, 60, 104)
    frame = fw.Keyframe.of(torch.zeros(4, 4, 3), latent, torch.ones(2))
    story = fw.push_chunk(StoryCache("v", 16, 60, 104), latent.expand(-1, 19, -1, -1))
    payload = build_payload(story, [frame] * 3)
    for segment in payload.segments:
        pooled = segment.pooled(PATCH)
        tokens = pooled.shape[2] * pooled.shape[3] // PATCH[1] * pooled.shape[4] // PATCH[2]
        assert tokens == segment.ids(FILMWEAVER).shape[0]
    assert payload.tokens + FILMWEAVER.target_ids(60, 104).shape[0] == 17_212
    assert payload.cost + FILMWEAVER.chunk == 11


def test_nothing_remembered_is_no_payload():
    assert build_payload(filled(0, 0), []) is None
    story = filled()
    assert build_payload(story, [], CacheNoise(history_strength=0.0)) is None


def test_too_many_keyframes_are_refused():
    story = filled(keyframes=4)
    with pytest.raises(CacheError, match="4 keyframes are given and the layout has places for 3"):
        build_payload(story, story.bank)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 18, 19, 30])
def test_segments_hold_the_newest_frames(frames: int):
    numbered = torch.arange(frames).float()[None, :, None, None].expand(2, -1, 4, 4)
    story = fw.push_chunk(StoryCache("v", 2, 4, 4), numbered)
    segments = build_payload(story, []).segments
    order = [value for segment in reversed(segments) for value in segment.latent[0, :, 0, 0].tolist()]
    newest = list(range(max(0, frames - 19), frames))
    odd = max(0, min(frames, 19) - 3) % 2
    assert order == [newest[0]] * odd + newest


def segment(latent: torch.Tensor, pool=(2, 4, 4), sigma: float = 0.0) -> Segment:
    return Segment("temporal", latent, pool, (0.0,) * (latent.shape[1] // pool[0]), 0.0, sigma, 3)


@pytest.mark.parametrize("pool", [(1, 1, 1), (1, 2, 2), (2, 4, 4)])
def test_pooling_is_a_wider_patch_embedding(pool):
    """Average pool, then the base's patch embedding: one strided convolution, weights repeated and shared."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, *PATCH, generator=generator)
    latent = torch.randn(2, 4, 16, 24, generator=generator)
    ours = F.conv3d(segment(latent, pool).pooled(PATCH), weight, stride=PATCH)
    wide = weight
    for axis, times in enumerate(pool, start=2):
        wide = wide.repeat_interleave(times, dim=axis) / times
    stride = tuple(p * q for p, q in zip(PATCH, pool))
    assert torch.allclose(ours, F.conv3d(latent[None], wide, stride=stride), atol=1e-5)


def test_a_constant_latent_gives_the_same_token_at_every_rate():
    """Also where rows and columns are padded: 60 rows are 7.5 kernels of 8."""
    weight = torch.randn(5, 2, *PATCH)
    tokens = [
        F.conv3d(segment(torch.full((2, 4, 10, 12), 0.7), pool).pooled(PATCH), weight, stride=PATCH)
        for pool in ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    ]
    reference = tokens[0][0, :, 0, 0, 0]
    for token in tokens:
        assert torch.allclose(token, reference[None, :, None, None, None].expand_as(token), atol=1e-5)


def test_padding_repeats_the_edge():
    latent = torch.zeros(1, 2, 12, 8)
    latent[:, :, 8:] = torch.arange(4.0)[:, None]
    pooled = segment(latent).pooled(PATCH)
    assert pooled.shape == (1, 1, 1, 4, 2)
    assert pooled[0, 0, 0, :, 0].tolist() == [0, 0, 1.5, 3]


def test_noise_is_mixed_by_sigma_and_fixed():
    latent = torch.ones(2, 2, 64, 64)
    clean, noisy = segment(latent).pooled(PATCH), segment(latent, sigma=0.4)
    first = noisy.pooled(PATCH)
    assert torch.equal(first, noisy.pooled(PATCH))
    assert torch.equal(clean, torch.ones_like(clean))
    noise = (first - 0.6) / 0.4
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_keyframe_keeps_its_noise_at_any_rank_and_seed():
    story = filled()
    a, b, _ = story.bank
    early = build_payload(story, [a, b], noise_seed=1).segments[0]
    late = build_payload(story, [b, a], noise_seed=2).segments[1]
    assert torch.equal(early.pooled(PATCH), late.pooled(PATCH))
    other = build_payload(story, [b, a]).segments[0]
    assert not torch.equal(early.pooled(PATCH), other.pooled(PATCH))


def test_history_noise_follows_the_seed():
    story = filled()
    noise = CacheNoise(temporal=0.1)
    top = 2**64 - 1
    ours, again, other = (build_payload(story, [], noise, seed).segments for seed in (top, top, 5))
    for mine, same, different in zip(ours, again, other):
        assert torch.equal(mine.pooled(PATCH), same.pooled(PATCH))
        assert not torch.equal(mine.pooled(PATCH), different.pooled(PATCH))
    assert len({segment.noise_seed for segment in ours}) == 3


@pytest.mark.parametrize(
    ("strength", "frames", "sigma"), [(1.0, 19, 0.0), (0.5, 10, 0.05), (0.01, 1, 0.099), (0.0, 0, 0.1)]
)
def test_history_strength(strength: float, frames: int, sigma: float):
    noise = CacheNoise(history_strength=strength)
    assert noise.history_frames(19) == frames
    assert noise.history_sigma == pytest.approx(sigma)
    payload = build_payload(filled(), [], noise)
    if frames:
        newest = payload.segments[0]
        assert torch.equal(newest.latent, filled().history[:, -1:])
        assert [segment.sigma for segment in payload.segments] == pytest.approx([sigma] * len(payload.segments))


def test_weaker_history_never_lowers_its_noise():
    assert CacheNoise(temporal=0.3, history_strength=0.2).history_sigma == 0.3


@pytest.mark.parametrize("bad", [{"shot": 1.5}, {"temporal": -0.1}, {"history_strength": 2.0}])
def test_noise_out_of_range_is_refused(bad: dict):
    with pytest.raises(CacheError, match="choose 0 to 1"):
        CacheNoise(**bad)


@pytest.mark.parametrize(("mode", "sigmas"), [("shared", (0.8, 0.8)), ("own", (0.1, 0.0)), ("zero", (0.0, 0.0))])
def test_time_modes(mode: str, sigmas: tuple[float, float]):
    story = dataclasses.replace(filled(), profile=dataclasses.replace(FILMWEAVER, time_mode=mode))
    payload = build_payload(story, story.bank)
    assert (
        payload.modulation_sigma(payload.segments[0], 0.8),
        payload.modulation_sigma(payload.segments[-1], 0.8),
    ) == sigmas


def test_order_of_segments_means_nothing_to_attention():
    """Rotated keys carry their place: permuting whole segments permutes nothing in the target's output."""
    payload = build_payload(filled(), filled().bank, CLEAN)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 2, *PATCH, generator=generator, dtype=torch.float64)
    query = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(torch.complex128)

    def attend(segments) -> torch.Tensor:
        keys, values = [], []
        for part in segments:
            tokens = F.conv3d(part.pooled(PATCH).double(), weight, stride=PATCH).flatten(2)[0].T
            angle = part.ids(FILMWEAVER).double() * torch.tensor([1.0, 0.3, 0.3]) + torch.tensor([part.phase, 0, 0])
            keys.append(
                torch.view_as_complex(tokens.unflatten(1, (3, 2)).contiguous())
                * torch.polar(torch.ones(1).double(), angle)
            )
            values.append(tokens)
        scores = (query @ torch.cat(keys).conj().T).real
        return scores.softmax(-1) @ torch.cat(values)

    assert torch.allclose(attend(payload.segments), attend(payload.segments[::-1]), atol=1e-9)
