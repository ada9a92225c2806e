"""The judge of long takes: what it draws, how it sums up, that it reads the world as told and sees a second body."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from longreel.miniature.batch import World
from longreel.miniature.counter import COUNTS, Counter
from longreel.miniature.probe import Probe
from longreel.miniature.stories import is_held_out
from longreel.miniature.world import Actor
from longreel.training.__main__ import WEIGHTS
from longreel.training.causal import long_evaluate
from longreel.training.miniature.counter import draw_frame, read_counter
from longreel.training.miniature.export import read_probe


@pytest.fixture(scope="module")
def judge() -> long_evaluate.Judge:
    probe, counter = Probe().eval(), Counter().eval()
    read_probe(probe, WEIGHTS)
    read_counter(counter, WEIGHTS)
    return long_evaluate.Judge(probe, counter, World("cpu"))


def test_takes_are_held_out_and_change_as_often_as_asked():
    for film in long_evaluate.draw_takes(4, 60, 4, 0):
        (scene,) = film.scenes
        assert len(scene.beats) == 5
        assert is_held_out(scene.actors[0].character, scene.place)
        assert film.latents == 240
    (film,) = long_evaluate.draw_cut_films(1, 60, 0)
    assert film.starts == (0, 39, 78, 117, 156, 195)
    shots, times = long_evaluate.times_of(film)
    assert len(shots) == 6 * (1 + 4 * 38)
    assert float(times[shots == 3][0]) == 0.0


def test_the_first_and_the_last_seconds_are_told_apart():
    row = dict.fromkeys(long_evaluate.READ, 1.0)
    film = [row, row, row | {"body": 0.5}, row | {"number": 0.0, "likeness": 3.0}]
    ends = long_evaluate.first_and_last([film, film])
    assert ends["first 10 s"]["body"] == 1.0
    assert ends["last 10 s"]["body"] == 0.75
    assert ends["worst 5 s"]["number"] == 0.0
    assert ends["worst 5 s"]["likeness"] == 3.0
    table = long_evaluate.by_window([film, [{name: 0.0 for name in row if name != "action"}] * 4])
    assert table["0-5 s"]["action"] == 1.0, "what could not be read does not count"
    assert table["0-5 s"]["colour"] == 0.5


def test_the_world_itself_is_read_as_told(judge):
    (film,) = long_evaluate.draw_takes(1, 12, 1, 3)
    read = judge.read(film, long_evaluate.render_film(judge.world, film))
    for row in read:
        assert min(row[name] for name in long_evaluate.READ if name in row and name != "likeness") > 0.95
        assert row["likeness"] < 1.5


def test_two_where_one_is_told_and_nobody_are_seen(judge):
    (film,) = long_evaluate.draw_takes(1, 9, 0, 3)
    (scene,) = film.scenes
    who = scene.actors[0].character
    two = replace(
        scene,
        actors=(Actor(who, "left"), Actor(who, "right")),
        beats=tuple(replace(beat, actions=beat.actions * 2) for beat in scene.beats),
    )
    nobody = replace(scene, actors=(), beats=tuple(replace(beat, actions=()) for beat in scene.beats))
    for other in (two, nobody):
        frames = long_evaluate.render_film(judge.world, replace(film, scenes=(other,)))
        assert judge.read(film, frames)[0]["number"] < 0.1


def test_broken_frames_are_told_from_whole_ones(judge):
    torch.manual_seed(0)
    rng = random.Random(5)
    for kind, bar in (("1", 0.85), ("broken", 0.75)):
        drawn = torch.stack([draw_frame(rng, kind) for _ in range(40)])
        assert float((judge.counter.count(drawn) == COUNTS.index(kind)).float().mean()) >= bar
