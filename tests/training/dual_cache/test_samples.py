"""FilmWeaver's samples: the four modes, who is remembered, how much noise, nothing from the future."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from longreel.film.dual_cache import FILMWEAVER, CacheError, Mode
from longreel.training.dual_cache.samples import (
    TEMPORAL_ONLY,
    Curriculum,
    SceneShot,
    TrainingScene,
    draw_sample,
    load_scenes,
    rank_keyframes,
    save_scene,
)

PROFILE = FILMWEAVER


def shot(scene, number, frames=30, keyframes=3, size=4):
    """Every value says where it comes from: 100 * scene + 10 * shot, and the frame's number in thousandths."""
    origin = 100.0 * scene + 10.0 * number
    time = torch.arange(frames, dtype=torch.float32)[None, :, None, None] / 1000
    generator = torch.Generator().manual_seed(10 * scene + number)
    return SceneShot(
        (origin + time).expand(2, frames, size, size),
        torch.full((3, 5), origin),
        torch.randn(8, generator=generator),
        torch.stack([torch.full((2, 1, size, size), origin + one) for one in range(keyframes)])
        if keyframes
        else torch.zeros(0, 2, 1, size, size),
        torch.randn(keyframes, 8, generator=generator),
        subject=time[0].expand(frames, size, size) if number % 2 else None,
        shown=torch.tensor([0.0, 1.0]) if number else None,
    )


def scenes(count=3, shots=4, **options):
    return [TrainingScene("vae", "text", tuple(shot(s, n, **options) for n in range(shots))) for s in range(count)]


@pytest.fixture(scope="module")
def samples():
    material, rng = scenes(), random.Random(0)
    return [draw_sample(material, rng, Curriculum(), PROFILE) for _ in range(3000)]


def near(share, wanted, samples):
    """Within four standard errors."""
    return abs(share - wanted) < 4 * (wanted * (1 - wanted) / samples) ** 0.5


def test_modes_come_as_often_as_asked(samples):
    drawn = Counter(sample.mode for sample in samples)
    for mode, rate in zip(Mode, Curriculum().modes, strict=True):
        assert near(drawn[mode] / len(samples), rate, len(samples))
    rng = random.Random(1)
    first = [draw_sample(scenes(), rng, Curriculum(modes=TEMPORAL_ONLY), PROFILE) for _ in range(300)]
    assert {sample.mode for sample in first} == {Mode.NONE, Mode.TEMPORAL}
    assert not any(segment.kind == "shot" for s in first if s.payload for segment in s.payload.segments)


def test_the_caches_are_those_of_the_mode(samples):
    for sample in samples:
        kinds = {segment.kind for segment in sample.payload.segments} if sample.payload else set()
        if sample.payload is None:
            continue
        wanted = {Mode.TEMPORAL: {"temporal"}, Mode.SHOT: {"shot"}, Mode.FULL: {"shot", "temporal"}}
        assert kinds == wanted[sample.mode]
        assert (sample.start > 0) == ("temporal" in kinds)
    dropped = [s.payload is None for s in samples if s.mode is not Mode.NONE]
    assert near(sum(dropped) / len(dropped), 0.1, len(dropped))
    assert all(s.payload is None for s in samples if s.mode is Mode.NONE)
    assert near(sum(s.text is None for s in samples) / len(samples), 0.1, len(samples))


def test_targets_are_whole_chunks_and_history_lies_right_before_them(samples):
    lengths = Counter()
    for sample in samples:
        assert sample.target.shape == (2, PROFILE.chunk, 4, 4)
        origin = 100 * sample.scene + 10 * sample.shot
        assert sample.target[0, 0, 0, 0].item() == pytest.approx(origin + sample.start / 1000)
        if sample.text is not None:
            assert sample.text[0, 0] == origin
        temporal = [s for s in sample.payload.segments if s.kind == "temporal"] if sample.payload else []
        frames = [v for segment in reversed(temporal) for v in segment.latent[0, :, 0, 0].tolist()]
        # Oldest first; an odd count in the oldest bucket repeats its oldest frame.
        numbers = [round((value - origin) * 1000) for value in frames]
        unique = sorted(set(numbers))
        assert numbers == sorted(numbers)
        assert unique == list(range(sample.start - len(unique), sample.start))
        lengths[len(unique)] += bool(unique)
    assert set(lengths) - {0} == set(range(1, PROFILE.history + 1))


def test_keyframes_are_of_earlier_shots_or_of_other_scenes(samples):
    own = strangers = alone = 0
    for sample in samples:
        if not sample.keyframes:
            assert sample.mode in (Mode.NONE, Mode.TEMPORAL)
            continue
        assert 1 <= len(sample.keyframes) <= PROFILE.keyframes
        foreign = [scene != sample.scene for scene, _, _ in sample.keyframes]
        strangers += sum(foreign)
        own += len(foreign) - sum(foreign)
        alone += all(foreign)
        assert all(other or number < sample.shot for other, (_, number, _) in zip(foreign, sample.keyframes))
        if sample.payload:
            shots = [segment for segment in sample.payload.segments if segment.kind == "shot"]
            for rank, (segment, (scene, number, one)) in enumerate(zip(shots, sample.keyframes, strict=True)):
                assert segment.latent[0, 0, 0, 0] == 100 * scene + 10 * number + one
                assert segment.times == (PROFILE.keyframe_time(rank),)
                assert segment.phase == PROFILE.keyframe_phase(rank)
    assert 0.15 < strangers / (own + strangers) < 0.27
    assert 0 < alone < 0.1 * sum(bool(s.keyframes) for s in samples)


def test_without_negatives_the_best_are_taken_in_any_order():
    material = scenes(1)
    plain = Curriculum(modes=(0, 0, 1, 0), ranked=1.0, counts=(0, 0, 1), drop_cache=0)
    orders = Counter()
    for seed in range(60):
        sample = draw_sample(material, random.Random(seed), plain, PROFILE)
        best = rank_keyframes(material[0], sample.shot)[:3]
        taken = [place[1:] for place in sample.keyframes]
        assert sorted(taken) == sorted(best)
        orders[tuple(best.index(place) for place in taken)] += 1
    assert len(orders) > 3
    anyhow = replace(plain, ranked=0.0)
    drawn = [draw_sample(material, random.Random(seed), anyhow, PROFILE) for seed in range(60)]
    assert any(sorted(p[1:] for p in s.keyframes) != sorted(rank_keyframes(material[0], s.shot)[:3]) for s in drawn)


def test_ranking_is_by_cosine():
    scene = scenes(1)[0]
    shots = list(scene.shots)
    shots[0] = replace(
        shots[0], embeddings=torch.stack([-shots[2].caption, shots[2].caption * 9, shots[2].caption.roll(1)])
    )
    order = rank_keyframes(replace(scene, shots=tuple(shots)), 2)
    assert order[0] == (0, 1)
    assert order[-1] == (0, 0)
    assert len(order) == 6


def test_noise_is_asymmetric_and_each_segments_own(samples):
    shot_sigmas, temporal_sigmas, clean, noisy = [], [], 0, 0
    for sample in samples:
        if sample.payload is None:
            continue
        sigmas = [segment.sigma for segment in sample.payload.segments]
        if not any(sigmas):
            clean += 1
            continue
        noisy += 1
        assert len(set(sigmas)) == len(sigmas)
        seeds = [segment.noise_seed for segment in sample.payload.segments]
        assert len(set(seeds)) == len(seeds)
        for segment in sample.payload.segments:
            (shot_sigmas if segment.kind == "shot" else temporal_sigmas).append(segment.sigma)
    assert 0.1 <= min(shot_sigmas) < 0.12 < 0.38 < max(shot_sigmas) <= 0.4
    assert 0.0 <= min(temporal_sigmas) < 0.01 < 0.09 < max(temporal_sigmas) <= 0.1
    assert near(clean / (clean + noisy), 0.1, clean + noisy)


def test_the_same_state_gives_the_same_sample():
    material = scenes()
    one, two = (draw_sample(material, random.Random("7"), Curriculum(), PROFILE) for _ in range(2))
    assert (one.mode, one.scene, one.shot, one.start, one.keyframes) == (
        two.mode, two.scene, two.shot, two.start, two.keyframes,
    )  # fmt: skip
    if one.payload:
        for a, b in zip(one.payload.segments, two.payload.segments, strict=True):
            assert torch.equal(a.pooled(PROFILE.patch), b.pooled(PROFILE.patch))


def test_material_that_a_mode_cannot_use():
    rng = random.Random(0)
    short = scenes(frames=6)
    assert draw_sample(short, rng, Curriculum(modes=(1, 0, 0, 0)), PROFILE).start == 0
    with pytest.raises(CacheError, match="Mode 2 needs a shot of 7 latent frames: add"):
        draw_sample(short, rng, Curriculum(modes=(0, 1, 0, 0)), PROFILE)
    with pytest.raises(CacheError, match="Mode 3 needs a shot of 6 latent frames that follows"):
        draw_sample(scenes(shots=1), rng, Curriculum(modes=(0, 0, 1, 0)), PROFILE)
    with pytest.raises(CacheError, match="Mode 4"):
        draw_sample(scenes(keyframes=0), rng, Curriculum(modes=(0, 0, 0, 1)), PROFILE)
    mixed = [*scenes(1), *scenes(2, size=6)[1:]]
    rng = random.Random(2)
    for _ in range(50):
        sample = draw_sample(mixed, rng, Curriculum(modes=(0, 0, 1, 0), negative=1.0), PROFILE)
        assert all(scene == sample.scene for scene, _, _ in sample.keyframes), "strangers of another size do not fit"


def test_scenes_on_disk(tmp_path):
    material = scenes(2)
    for number, scene in enumerate(material):
        save_scene(scene, tmp_path / f"scene-{number}.safetensors")
    loaded = load_scenes(tmp_path)
    assert [(s.vae, s.text_encoder, len(s.shots)) for s in loaded] == [("vae", "text", 4)] * 2
    for before, after in zip(material[1].shots, loaded[1].shots, strict=True):
        assert torch.equal(before.caption, after.caption)
        assert torch.equal(before.keyframes.bfloat16().float(), after.keyframes)
        assert torch.equal(before.latents.bfloat16().float(), after.latents)
        assert (before.subject is None) == (after.subject is None)
        assert before.shown.tolist() == after.shown.tolist() if before.shown is not None else after.shown is None
        assert before.subject is None or torch.equal(before.subject.bfloat16().float(), after.subject)
    save_scene(replace(material[0], vae="other"), tmp_path / "scene-9.safetensors")
    with pytest.raises(CacheError, match=r"scene-9\.safetensors was made by other models"):
        load_scenes(tmp_path)
    with pytest.raises(CacheError, match="has no encoded scenes"):
        load_scenes(tmp_path / "nothing")


def test_a_targets_subject_is_cut_out_with_it(samples):
    known = [sample for sample in samples if sample.subject is not None]
    assert {sample.shot % 2 for sample in known} == {1}
    for sample in known:
        origin = 100.0 * sample.scene + 10.0 * sample.shot
        assert torch.allclose(sample.subject, sample.target[0] - origin, atol=1e-4)
