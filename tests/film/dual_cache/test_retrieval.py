"""Which keyframes are given for a prompt, and which frames become keyframes."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.dual_cache import (
    CacheError,
    ChoicePolicy,
    Keyframe,
    Picture,
    RetrievalPolicy,
    choose_keyframes,
    retrieve,
    sharpness,
    split_sentences,
    spread_frames,
)

from .conftest import make_keyframe

TEXT = torch.tensor([1.0, 0.0])


def at(degrees: float, seed: int = 0, **options) -> Keyframe:
    """A keyframe whose cosine with TEXT is that of the angle."""
    radians = math.radians(degrees)
    return make_keyframe(seed, [3 * math.cos(radians), 3 * math.sin(radians)], **options)


def verdicts(retrieval) -> list[str]:
    return [ranked.verdict for ranked in retrieval.ranking]


def test_the_largest_cosines_are_given_best_first():
    bank = [at(80), at(10), at(50), at(30), at(20)]
    found = retrieve(bank, TEXT)
    assert found.keyframes == (bank[1], bank[4], bank[3])
    assert [ranked.score for ranked in found.ranking] == sorted((r.score for r in found.ranking), reverse=True)
    assert found.ranking[0].score == pytest.approx(math.cos(math.radians(10)), abs=1e-5)
    assert verdicts(found) == ["chosen"] * 3 + ["outranked"] * 2


def test_pins_come_first_and_bans_are_out():
    near, far, banned, both = at(5), at(85).marked(pinned=True), at(0).marked(banned=True), at(1)
    both = both.marked(pinned=True, banned=True)
    found = retrieve([near, banned, both, far], TEXT)
    assert found.keyframes == (far, near)
    assert verdicts(found) == ["pinned", "chosen", "banned", "banned"]


def test_more_pins_than_places_leave_the_best_pins():
    bank = [at(angle, pinned=True) for angle in (40, 10, 30, 20)] + [at(0)]
    found = retrieve(bank, TEXT)
    assert found.keyframes == (bank[1], bank[3], bank[2])
    assert retrieve(bank, TEXT, RetrievalPolicy(count=0)).keyframes == ()


def test_fewer_than_k_and_none():
    assert len(retrieve([at(5)], TEXT).keyframes) == 1
    assert retrieve([], TEXT).keyframes == ()


def test_quota_leaves_places_to_others():
    ada = [at(angle, characters=("Ada",)) for angle in (1, 2, 3)]
    bob, nobody = at(60, characters=("Bob",)), at(70)
    found = retrieve([*ada, bob, nobody], TEXT, RetrievalPolicy(per_character=1))
    assert found.keyframes == (ada[0], bob, nobody)
    assert verdicts(found) == ["chosen"] * 3 + ["quota"] * 2
    together = at(5, characters=("Bob", "Ada"))
    assert retrieve([ada[0], together, bob], TEXT, RetrievalPolicy(per_character=1)).keyframes == (ada[0], bob)
    pinned = [frame.marked(pinned=True) for frame in ada[:2]]
    found = retrieve([*pinned, ada[2], bob], TEXT, RetrievalPolicy(per_character=1))
    assert found.keyframes == (*pinned, bob)


def test_floor_spares_pins():
    pin, low, high = at(80, pinned=True), at(70), at(20)
    found = retrieve([pin, low, high], TEXT, RetrievalPolicy(min_score=0.5))
    assert found.keyframes == (pin, high)
    assert verdicts(found)[-1] == "below floor"


def test_sentences_by_mean_or_best():
    both, one = at(45), at(0)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert retrieve([one, both], text).keyframes[0] is both
    assert retrieve([one, both], text, RetrievalPolicy(sentences="max")).keyframes[0] is one


def test_another_clip_model_is_refused():
    with pytest.raises(CacheError, match="3 numbers and a keyframe's 2"):
        retrieve([at(0)], torch.ones(3))
    with pytest.raises(CacheError, match="not finite"):
        make_keyframe(0, [1.0, math.nan])


@pytest.mark.parametrize("bad", [{"count": -1}, {"per_character": -1}, {"sentences": "sum"}])
def test_bad_policies_are_refused(bad: dict):
    with pytest.raises(CacheError):
        RetrievalPolicy(**bad)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 2), st.sampled_from([(), ("A",), ("B",), ("A", "B")]), st.booleans()
        ),
        max_size=8,
    ),
    st.integers(0, 4),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
def test_ranking_does_not_depend_on_the_bank_order(entries, count: int, quota: int, shuffler: random.Random):
    """Many equal embeddings: ties are broken by shot, frame and uid alone."""
    bank = [
        at(30 * angle, seed, shot=shot, frame=seed, characters=cast, pinned=pinned)
        for seed, (angle, shot, cast, pinned) in enumerate(entries)
    ]
    shuffled = shuffler.sample(bank, len(bank))
    policy = RetrievalPolicy(count=count, per_character=quota)
    found = retrieve(bank, TEXT, policy)
    assert [r.keyframe.uid for r in retrieve(shuffled, TEXT, policy).ranking] == [r.keyframe.uid for r in found.ranking]
    assert len(found.ranking) == len(bank)
    assert len(found.keyframes) <= count
    if quota:
        for name in "AB":
            free = [kept for kept in found.keyframes if name in kept.characters and not kept.pinned]
            pins = [kept for kept in found.keyframes if name in kept.characters and kept.pinned]
            assert len(free) <= max(0, quota - len(pins))


def test_ties_go_to_the_earlier_shot_and_frame():
    late, early, first = (at(0, seed, shot=s, frame=f) for seed, (s, f) in enumerate([(1, 0), (0, 9), (0, 1)]))
    assert retrieve([late, early, first], TEXT).keyframes == (first, early, late)


def test_character_returns_after_two_shots_away():
    """Retrieval goes past the shots in between: nothing favours the newest."""
    bank = [at(angle, shot=shot) for shot, angle in enumerate((10, 85, 80))]
    assert retrieve(bank, TEXT, RetrievalPolicy(count=1)).keyframes[0].shot == 0


def test_split_sentences():
    assert split_sentences("A cat. It runs!\n\nNight; rain? 3.5 m") == (
        "A cat.",
        "It runs!",
        "Night;",
        "rain?",
        "3.5 m",
    )
    assert split_sentences("\u732b\u3002\u8dd1") == ("\u732b\u3002", "\u8dd1")
    assert split_sentences("no stop") == ("no stop",)


def test_spread():
    assert spread_frames(117) == (0, 58, 116)
    assert spread_frames(2, 3) == (0, 1)
    assert spread_frames(1) == spread_frames(117, 1) == (0,)


def test_near_copies_and_blurred_frames_do_not_become_keyframes():
    sharp, copy, other = at(0, 0, quality=100.0), at(10, 1, quality=100.0), at(60, 2, quality=90.0)
    blurred = at(90, 3, quality=5.0)
    assert choose_keyframes([blurred, sharp, copy, other]) == (sharp, other)
    assert choose_keyframes([sharp, copy, other], ChoicePolicy(similarity=0.999)) == (sharp, copy, other)
    assert choose_keyframes([sharp, other], ChoicePolicy(count=1)) == (sharp,)
    assert choose_keyframes([blurred]) == (blurred,), "at least one stays"
    assert choose_keyframes([at(0, 0, quality=0.0), at(0, 1, quality=0.0)])[0].quality == 0
    assert choose_keyframes([]) == ()


def test_sharpness_falls_with_blur_and_ignores_brightness():
    image = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    soft = torch.nn.functional.avg_pool2d(image.movedim(-1, 0), 3, 1, 1).movedim(0, -1)
    assert sharpness(torch.full((8, 8, 3), 0.4)) == pytest.approx(0, abs=1e-6)
    assert sharpness(soft) < 0.1 * sharpness(image)
    assert sharpness(image + 0.3) == pytest.approx(sharpness(image), rel=1e-3)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1)])
def test_pictures_come_back(size: tuple[int, int]):
    """Luma to half an 8-bit step, smooth colour to a few."""
    rows = torch.linspace(0.2, 0.8, size[0])[:, None, None]
    image = (rows * torch.tensor([1.0, 0.5, 0.3])).expand(*size, 3)
    back = Picture.of(image).image()
    assert back.shape == image.shape
    assert (back - image).abs().max() < 0.08
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert ((back - image) @ weights).abs().max() < 1 / 255
    flat = torch.tensor([1.0, 0.0, 0.5]).expand(*size, 3)
    assert (Picture.of(flat).image() - flat).abs().max() < 3 / 255


def test_large_pictures_keep_their_aspect():
    picture = Picture.of(torch.rand(1080, 1920, 3))
    height, width = picture.luma.shape
    assert height * width <= 832 * 480
    assert width / height == pytest.approx(16 / 9, rel=0.01)


def test_the_same_frame_has_the_same_name_and_noise():
    one, same, other = make_keyframe(1, shot=2), make_keyframe(1, shot=2), make_keyframe(1, shot=3)
    assert (one.uid, one.noise_seed) == (same.uid, same.noise_seed)
    assert one.uid != other.uid
    assert one.noise_seed < 2**53
    assert (one.source, make_keyframe(1).source) == ("generated", "user")


def test_video_is_not_a_keyframe():
    with pytest.raises(CacheError, match="one picture alone"):
        Keyframe.of(torch.rand(4, 4, 3), torch.zeros(2, 3, 4, 4), torch.ones(2))
