"""The layout profile against the tables of docs/methods/filmweaver.md, and its way through files."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.dual_cache import FILMWEAVER, METADATA_KEY, Bucket, CacheError, LayoutProfile, check_profile
from longreel.film.reel.latent_space import LatentSpace

HEIGHT, WIDTH = 60, 104  # 832x480 through an 8x VAE


def test_tokens_at_832x480():
    """docs/methods/filmweaver.md: the table of token counts."""
    per_frame = FILMWEAVER.tokens(HEIGHT, WIDTH, 0, 0) // 6
    assert per_frame == 1560
    assert FILMWEAVER.tokens(HEIGHT, WIDTH, 0, 0) == 9360
    assert FILMWEAVER.tokens(HEIGHT, WIDTH, 0, 3) - 9360 == 4680
    steps = [FILMWEAVER.tokens(HEIGHT, WIDTH, history, 0) - 9360 for history in (1, 3, 19)]
    assert steps == [1560, 1560 + 780, 1560 + 780 + 832]
    assert FILMWEAVER.tokens(HEIGHT, WIDTH, 19, 3) == 17_212
    assert FILMWEAVER.tokens(HEIGHT, WIDTH, 30, 3) == 17_212


@pytest.mark.parametrize(("height", "width", "frame"), [(30, 52, 390), (44, 80, 880)])
def test_tokens_through_a_16x_vae(height: int, width: int, frame: int):
    assert FILMWEAVER.tokens(height, width, 0, 0) == 6 * frame


def test_ids_and_phases_at_832x480():
    """docs/methods/filmweaver.md: the time ids of its table."""
    target = FILMWEAVER.target_ids(HEIGHT, WIDTH)
    assert target.shape == (9360, 3)
    assert [sorted(set(column.tolist())) for column in target.T] == [list(range(6)), list(range(30)), list(range(52))]
    newest, middle, oldest = FILMWEAVER.spans(19)
    assert newest.times == (-1,)
    assert middle.times == (-3, -2)
    assert oldest.times == (-18.5, -16.5, -14.5, -12.5, -10.5, -8.5, -6.5, -4.5)
    ids = FILMWEAVER.ids(middle.times, HEIGHT, WIDTH, middle.pool)
    assert ids.shape == (780, 3)
    assert ids[:, 1].unique().tolist() == [0.5 + 2 * row for row in range(15)]
    assert ids[:, 2].unique().tolist() == [0.5 + 2 * column for column in range(26)]
    ids = FILMWEAVER.ids(oldest.times, HEIGHT, WIDTH, oldest.pool)
    assert ids.shape == (832, 3)
    assert ids[:, 1].unique().tolist() == [1.5 + 4 * row for row in range(8)]
    assert ids[:, 2].unique().tolist() == [1.5 + 4 * column for column in range(13)]
    assert [FILMWEAVER.keyframe_time(rank) for rank in range(3)] == [-24, -30, -36]
    assert [FILMWEAVER.keyframe_phase(rank) for rank in range(3)] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_ids_are_in_the_order_of_a_flattened_patch_embedding():
    ids = FILMWEAVER.ids((-3.0, -2.0), 8, 12, (1, 2, 2))
    grid = ids.reshape(2, 2, 3, 3)
    assert grid[1, 0, 0].tolist() == [-2, 0.5, 0.5]
    assert grid[0, 1, 0].tolist() == [-3, 2.5, 0.5]
    assert grid[0, 0, 1].tolist() == [-3, 0.5, 2.5]


@pytest.mark.parametrize(
    ("latents", "frames", "repeats"),
    [
        (0, [], []),
        (1, [(0, 1)], [0]),
        (2, [(1, 2), (0, 1)], [0, 0]),
        (3, [(2, 3), (0, 2)], [0, 0]),
        (4, [(3, 4), (1, 3), (0, 1)], [0, 0, 1]),
        (19, [(18, 19), (16, 18), (0, 16)], [0, 0, 0]),
        (30, [(29, 30), (27, 29), (11, 27)], [0, 0, 0]),
    ],
)
def test_bucket_boundaries(latents: int, frames: list, repeats: list):
    spans = FILMWEAVER.spans(latents)
    assert [(span.start, span.stop) for span in spans] == frames
    assert [span.repeats for span in spans] == repeats
    assert all(len(span.times) * span.pool[0] == span.stop - span.start + span.repeats for span in spans)


@given(st.integers(0, 40))
def test_spans_cover_the_newest_frames_once(latents: int):
    covered = sorted(frame for span in FILMWEAVER.spans(latents) for frame in range(span.start, span.stop))
    assert covered == list(range(max(0, latents - 19), latents))


def test_rates_are_those_of_the_paper():
    assert [math.prod(bucket.pool) for bucket in FILMWEAVER.buckets] == [1, 4, 32]
    assert [bucket.latents for bucket in FILMWEAVER.buckets] == [1, 2, 16]


def test_decoded_length_of_n_chunks():
    """docs/methods/filmweaver.md: 24n - 3 frames."""
    clock = LatentSpace("wan", 16, 8, 4).grid(24.0)
    assert [clock.frames(FILMWEAVER.chunk * n) for n in (1, 2, 5)] == [21, 45, 117]


bucket_lists = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4
)
numbers = st.floats(-100, 100)


@given(bucket_lists, numbers, numbers, numbers, st.sampled_from(["shared", "own", "zero"]), st.integers(1, 30))
def test_profiles_come_back_from_metadata(buckets, gap, start, phase, time_mode, chunk):
    profile = LayoutProfile(
        chunk=chunk,
        buckets=tuple(Bucket(n * t, (t, h, w)) for n, t, h, w in buckets),
        gap=gap,
        shot_start=start,
        phase=phase,
        time_mode=time_mode,
    )
    metadata = profile.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert LayoutProfile.from_metadata({"format": "pt", **metadata}) == profile
    check_profile(LayoutProfile.from_json(json.loads(json.dumps(profile.to_json()))), profile)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phase": 0.5}, "phase 0.5 where 0.1666"),
        ({"time_mode": "own"}, 'time mode "own" where "shared"'),
        ({"patch": (1, 1, 1)}, r"patch \[1, 1, 1\] where \[1, 2, 2\]"),
        ({"buckets": (Bucket(4, (1, 1, 1)),)}, "buckets .* is wanted: use the profile"),
    ],
)
def test_mismatch_is_refused(change: dict, words: str):
    with pytest.raises(CacheError, match=words):
        check_profile(dataclasses.replace(FILMWEAVER, **change), FILMWEAVER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2 and this Longreel knows 1"),
        ({"version": None}, "version None"),
        ({"rope": 1}, "'rope'"),
        ({"patch": [1, 2]}, "damaged"),
        ({"phase": "x"}, "damaged"),
        ({"buckets": [{"latents": 1}]}, "damaged"),
        ({"buckets": [{"latents": 3, "pool": [2, 1, 1]}]}, "cannot be pooled"),
        ({"buckets": []}, "1 or more"),
        ({"time_mode": "none"}, "time mode"),
        ({"channel_fill": "ones"}, "channel fill"),
    ],
)
def test_bad_profiles_are_refused_in_one_sentence(change: dict, words: str):
    with pytest.raises(CacheError, match=words) as refusal:
        LayoutProfile.from_json({**FILMWEAVER.to_json(), **change})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("metadata", [{}, {METADATA_KEY: "{"}, {METADATA_KEY: "[]"}])
def test_lora_without_a_profile_is_refused(metadata: dict):
    with pytest.raises(CacheError, match="LoRA"):
        LayoutProfile.from_metadata(metadata)


def test_missing_field_is_named():
    values = FILMWEAVER.to_json()
    del values["gap"]
    with pytest.raises(CacheError, match="'gap'"):
        LayoutProfile.from_json(values)


def test_ids_are_fp32():
    assert FILMWEAVER.target_ids(4, 4).dtype == torch.float32
