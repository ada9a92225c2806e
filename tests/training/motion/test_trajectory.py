"""Trajectories by the probe, against the world's physics."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from longreel.host.files.paths import MINIATURE_WEIGHTS
from longreel.miniature.probe import Probe
from longreel.miniature.world import (
    CHARACTER_HEIGHT,
    FPS,
    GROUND,
    SIZE,
    Actor,
    Beat,
    Character,
    Scene,
    feet_and_head,
    render,
)
from longreel.training.miniature.evaluate import one_character_scene
from longreel.training.miniature.export import read_probe
from longreel.training.motion.trajectory import Tracker, fit_tracker, trajectory_error

TIMES = torch.arange(33) / FPS
WHO = Character("red", "cone", "crown")


def scene(action: str, camera: str = "still", nudge: float = 0.0) -> Scene:
    return Scene("forest", (Actor(WHO, "left", nudge),), (Beat(0.0, (action,), camera),))


def test_feet_and_head_are_where_the_world_draws_them():
    feet, head = feet_and_head(scene("stands"), 0, TIMES[:1])[0]
    assert feet.tolist() == pytest.approx([0.26, GROUND])
    assert head.tolist() == pytest.approx([0.26, GROUND - CHARACTER_HEIGHT])
    turned = feet_and_head(scene("spins"), 0, torch.tensor([0.0, 1.0]))
    assert torch.allclose(turned[1], turned[0].flip(0), atol=1e-5), "half a turn in a second"
    for action in ("walks", "jumps", "stretches"):
        moving = scene(action, "zooms in")
        mask = render(moving, TIMES).masks[:, 0]
        rows = (torch.arange(SIZE) + 0.5) / SIZE
        lowest = torch.stack([rows[each.amax(dim=1) > 0.5].max() for each in mask])
        points = feet_and_head(moving, 0, TIMES)
        assert torch.allclose(points[:, 0, 1], lowest, atol=2.5 / SIZE)


def test_error_is_to_the_nearest_start_that_the_prompt_leaves_open():
    for nudge in (0.0, -0.05, 0.03):
        points = feet_and_head(scene("walks", nudge=nudge), 0, TIMES) * SIZE
        assert trajectory_error(points, scene("walks")) == pytest.approx(0.0, abs=1e-4)
    assert trajectory_error(feet_and_head(scene("stands"), 0, TIMES) * SIZE, scene("walks")) > 5
    shifted = feet_and_head(scene("stands"), 0, TIMES) * SIZE + torch.tensor([0.0, 3.0])
    assert trajectory_error(shifted, scene("stands")) == pytest.approx(3.0, abs=1e-4)


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    probe = Probe().eval()
    read_probe(probe, MINIATURE_WEIGHTS)
    return fit_tracker(probe)


def test_the_probe_tracks_held_out_characters(tracker: Tracker):
    """Within two pixels on average where the head stays above, and far better than the trajectory of another action."""
    rng = random.Random("tracked")
    errors, others = [], []
    while len(errors) < 6:
        made = one_character_scene(rng)
        if made.beats[0].actions[0] == "spins":
            continue
        points = tracker.track(render(made, TIMES).frames.movedim(1, -1))
        assert points.shape == (33, 2, 2)
        errors.append(trajectory_error(points, made))
        action = "jumps" if made.beats[0].actions[0] != "jumps" else "walks"
        others.append(trajectory_error(points, replace(made, beats=(replace(made.beats[0], actions=(action,)),))))
    assert sum(errors) / len(errors) < 2.0
    assert sum(others) / len(others) > 2 * sum(errors) / len(errors)


def test_fitting_is_the_same_for_the_same_seed(tracker: Tracker):
    one, again, other = (fit_tracker(tracker.probe, count=12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.weights, again.weights)
    assert not torch.equal(one.weights, other.weights)
