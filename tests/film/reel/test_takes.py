"""Takes: how much to film, what to show, and when prompts change."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from longreel.film.reel.takes import (
    FrameGrid,
    ShotPlan,
    TakeError,
    plan_shot,
    plan_story,
    schedule_prompts,
    stretches,
    takes,
)
from longreel.film.storyboard.text import Shot, TimedPrompt

CLOCK = FrameGrid(fps=16.0, compression=4, block=3)


def shot(seconds: float, start: str = "cut", *times: float) -> Shot:
    prompts = tuple(TimedPrompt(at, f"at {at}") for at in (0.0, *times))
    return Shot(prompts, seconds, start=start)  # type: ignore[arg-type]


clocks = st.builds(
    FrameGrid,
    fps=st.sampled_from([8.0, 15.0, 16.0, 23.976, 24.0, 25.0, 29.97, 30.0]),
    compression=st.sampled_from([1, 4, 8]),
    block=st.integers(1, 7),
)
lengths = st.integers(150, 9000).map(lambda thousandths: thousandths / 1000)
stories = st.lists(st.tuples(lengths, st.sampled_from(["cut", "continue"])), min_size=1, max_size=12).map(
    lambda items: [shot(seconds, "cut" if i == 0 else start) for i, (seconds, start) in enumerate(items)]
)


@pytest.mark.parametrize("starts", [("cut", "cut", "cut"), ("cut", "continue", "continue"), ("cut", "continue", "cut")])
def test_thirty_seconds_in_three_shots_are_480_frames(starts: tuple[str, ...]) -> None:
    plans = plan_story([shot(10, start) for start in starts], CLOCK)
    assert [plan.frames for plan in plans] == [160, 160, 160]
    assert sum(take.frames for take in takes(plans)) == 480


def test_a_take_films_whole_blocks_that_cover_its_plan() -> None:
    # 160 frames need 41 latent frames (1 + 4 * 40 = 161), so 14 blocks of 3; the second shot needs 81 - 42, so 13 more.
    first, second, third = plan_story([shot(10), shot(10, "continue"), shot(10)], CLOCK)
    assert first == ShotPlan(10, 42, 160, True, 0, 0)
    assert second == ShotPlan(10, 39, 160, False, 42, 160)
    assert third == ShotPlan(10, 42, 160, True, 0, 0)


def test_frames_and_latent_frames_of_a_take() -> None:
    assert [CLOCK.frames(n) for n in (0, 1, 2, 21)] == [0, 1, 5, 81]
    assert [CLOCK.latent_frames(n) for n in (0, 1, 2, 5, 6, 81)] == [0, 1, 2, 2, 3, 21]


@settings(max_examples=300, deadline=None)
@given(stories, clocks)
def test_films_keep_the_storyboards_clock(shots: list[Shot], clock: FrameGrid) -> None:
    assume(all(part.seconds * clock.fps > 1.01 for part in shots))
    plans = plan_story(shots, clock)
    frames, seconds = 0, Fraction(0)
    for part, plan in zip(shots, plans, strict=True):
        frames += plan.frames
        seconds += Fraction(repr(part.seconds))
        assert abs(frames - seconds * Fraction(repr(clock.fps))) <= Fraction(1, 2)
        assert plan.frames >= 1
        assert plan.latent_frames >= clock.block
        assert plan.latent_frames % clock.block == 0
    for take in takes(plans):
        surplus = clock.frames(take.latent_frames) - take.frames
        assert surplus >= 0, "every shown frame was filmed"
        own = [shots[i] for i in take.shots]
        block_seconds = clock.block * clock.compression / clock.fps
        if all(part.seconds > block_seconds + 1 / clock.fps for part in own):
            assert surplus < clock.block * clock.compression, "never a block too many"


@settings(max_examples=200, deadline=None)
@given(stories, st.integers(0, 12))
def test_a_shots_plan_depends_only_on_the_shots_before_it(shots: list[Shot], cut: int) -> None:
    plans = plan_story(shots, CLOCK)
    assert plan_story(shots[:cut], CLOCK) == plans[:cut]
    assert plan_story(shots[cut:], CLOCK, plans[:cut]) == plans[cut:] if plans[:cut] else True


@settings(max_examples=200, deadline=None)
@given(stories, st.integers(0, 400), st.integers(0, 400))
def test_takes_show_every_frame_of_the_film_once(shots: list[Shot], start: int, stop: int) -> None:
    plans = plan_story(shots, CLOCK)
    film = takes(plans)
    assert [i for take in film for i in take.shots] == list(range(len(shots)))
    assert [plans[take.shots.start].take_start for take in film] == [True] * len(film)
    frames = [(take.start, frame) for take in film for frame in range(take.frames)]
    assert len(frames) == sum(plan.frames for plan in plans)
    assert [first + frame for first, frame in frames] == list(range(len(frames)))

    def shown(*limits: int) -> list[tuple[int, int]]:
        return [(part.take.start, i) for part in stretches(film, *limits) for i in range(part.start, part.stop)]

    assert shown() == frames
    assert shown(start) == frames[start:]
    assert shown(start, stop) == frames[start:stop]


def test_tiny_shots_still_film_a_block_each_and_the_film_stays_as_long_as_planned() -> None:
    plans = plan_story([shot(0.1), *[shot(0.1, "continue")] * 9], CLOCK)
    assert [plan.latent_frames for plan in plans] == [3] * 10
    assert sum(plan.frames for plan in plans) == 16


def test_footage_that_ran_ahead_of_the_storyboard_is_followed_by_at_least_a_frame() -> None:
    ahead = ShotPlan(1.0, 30, 100, True, 0, 0)
    assert plan_shot([ahead], shot(1), CLOCK).frames == 1


def test_shots_that_cannot_be_filmed() -> None:
    with pytest.raises(TakeError, match="Shot 1: The first shot continues nothing"):
        plan_story([shot(5, "continue")], CLOCK)
    with pytest.raises(
        TakeError, match=r"Shot 2: The shot lasts 0\.06 s, less than a frame .* make it 0\.063 s or longer"
    ):
        plan_story([shot(5), shot(0.06)], CLOCK)
    assert plan_story([shot(0.063)], CLOCK)[0].frames == 1


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def changes(part: Shot, plan: ShotPlan, clock: FrameGrid = CLOCK) -> tuple[list[tuple[int, float]], list[float]]:
    schedule = schedule_prompts(part, plan, clock)
    return [(latent, prompt.at) for latent, prompt in schedule.changes], [prompt.at for prompt in schedule.unseen]


def test_a_prompt_takes_effect_at_the_first_block_at_or_after_its_frame() -> None:
    # 2.5 s is frame 40, in latent frame 10, so the block that starts at 12; frame 33 is in latent frame 9, a block.
    part = shot(10, "cut", 33 / 16, 2.5, 5)
    (plan,) = plan_story([part], CLOCK)
    assert changes(part, plan) == ([(0, 0.0), (9, 33 / 16), (12, 2.5), (21, 5.0)], [])


def test_the_originals_default_switches() -> None:
    # Latent frames 40, 80, 120, 160, 200 of a take switch at the blocks 42, 81, 120, 162 and 201.
    times = [(1 + 4 * (k - 1)) / 16 for k in (40, 80, 120, 160, 200)]
    part = shot(60, "cut", *times)
    (plan,) = plan_story([part], CLOCK)
    assert [latent for latent, _ in changes(part, plan)[0]] == [0, 42, 81, 120, 162, 201]


def test_prompts_that_no_block_shows_are_reported() -> None:
    part = shot(5, "cut", 1.0, 1.01, 4.99)
    (plan,) = plan_story([part], CLOCK)
    assert plan.latent_frames == 21
    assert changes(part, plan) == ([(0, 0.0), (6, 1.01)], [1.0, 4.99])


def test_prompts_of_a_continued_shot_count_from_its_planned_start() -> None:
    # The first shot plans 16 frames and films 2 blocks, 21 frames: 5 frames of the second are there already.
    first, second = shot(1), shot(4, "continue", 0.25, 2.0)
    plans = plan_story([first, second], CLOCK)
    assert (plans[1].take_latents, plans[1].take_frames) == (6, 16)
    # 0.25 s is frame 20 of the take, in its latent frame 5, so in the shot's first block; 2 s is frame 48, in 12: 6 on.
    assert changes(second, plans[1]) == ([(0, 0.25), (6, 2.0)], [0.0])


@settings(max_examples=300, deadline=None)
@given(stories, clocks, st.data())
def test_schedules_keep_order_and_are_never_early_or_a_block_late(
    shots: list[Shot], clock: FrameGrid, data: st.DataObject
) -> None:
    assume(all(part.seconds * clock.fps > 1.01 for part in shots))
    i = data.draw(st.integers(0, len(shots) - 1))
    times = data.draw(st.lists(st.floats(0.001, shots[i].seconds * 0.999), unique=True, max_size=4))
    shots[i] = shot(shots[i].seconds, shots[i].start, *sorted(times))
    plan = plan_story(shots, clock)[i]
    schedule = schedule_prompts(shots[i], plan, clock)
    latents = [latent for latent, _ in schedule.changes]
    assert latents == sorted(set(latents))
    assert latents[0] == 0
    assert all(latent % clock.block == 0 and latent < plan.latent_frames for latent in latents)
    assert sorted([p.at for _, p in schedule.changes] + [p.at for p in schedule.unseen]) == [
        p.at for p in shots[i].prompts
    ]
    for latent, prompt in schedule.changes:
        wanted = plan.take_frames + math.ceil(Fraction(repr(prompt.at)) * Fraction(repr(clock.fps)))
        last_of_latent = clock.frames(plan.take_latents + latent + 1) - 1
        if latent:
            assert last_of_latent >= wanted, "not early"
            assert clock.frames(plan.take_latents + latent - clock.block + 1) - 1 < wanted, "not a block late"
