"""Measures of motion."""

from __future__ import annotations

import math

import pytest
import torch
from longreel.film.motion import MotionError, flow_errors, measure_flow
from longreel.miniature.world import Actor, Beat, Character, Scene, render


@pytest.fixture(scope="module")
def walk():
    scene = Scene("beach", (Actor(Character("red", "ball", "crown")),), (Beat(0.0, ("walks",)),))
    return render(scene, torch.arange(9) / 16)


def still(count: int = 4, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(1, side, side, 3).expand(count, -1, -1, -1), torch.zeros(count - 1, 2, side, side)


def test_a_still_video_does_not_move_and_is_smooth():
    report = measure_flow(*still(), fps=16.0)
    assert (report.speed, report.fast, report.dynamic_degree, report.acceleration) == (0, 0, 0, 0)
    assert report.smoothness == pytest.approx(1.0, abs=1e-6)


def test_uniform_motion_has_no_acceleration_and_the_right_speed():
    frames, flow = still(5, 32)
    flow = flow + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    report = measure_flow(frames, flow, fps=8.0)
    assert report.speed == pytest.approx(100 * 5 * 8 / math.hypot(32, 32), rel=1e-5)
    assert report.acceleration == 0
    assert report.dynamic_degree == 1.0
    assert len(report.speeds) == 4
    assert len(report.errors) == 3


def test_the_worlds_motion_is_smooth_and_shuffled_frames_are_not(walk):
    frames, flow = walk.frames.movedim(1, -1), walk.flow[:-1]
    there = measure_flow(frames, flow, fps=16.0)
    order = torch.tensor([0, 4, 1, 6, 2, 8, 3, 7, 5])
    shuffled = measure_flow(frames[order], flow, fps=16.0)
    assert there.smoothness > 0.98
    assert 1 - shuffled.smoothness > 2 * (1 - there.smoothness)


def test_errors_of_a_prediction(walk):
    flow = walk.flow[:-1]
    exact = flow_errors(flow, flow)
    assert exact.endpoint == 0
    assert exact.direction < 0.1
    none = flow_errors(torch.zeros_like(flow), flow)
    assert none.endpoint == none.trivial == pytest.approx(exact.trivial)
    turned = flow_errors(flow.flip(1) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1), flow)
    assert turned.direction == pytest.approx(90.0, abs=0.1)
    assert 0 < exact.moving < 1
    report = measure_flow(walk.frames.movedim(1, -1), flow, 16.0, predicted=flow)
    assert report.figures()["predicted motion: endpoint error, pixels"] == 0


def test_refusals():
    frames, flow = still()
    with pytest.raises(MotionError, match="two frames"):
        measure_flow(frames[:1], flow[:0], 16.0)
    with pytest.raises(MotionError, match="16x16"):
        measure_flow(frames, torch.zeros(3, 2, 8, 8), 16.0)
    with pytest.raises(MotionError, match="3 flows between"):
        measure_flow(frames, flow[:1], 16.0)
    with pytest.raises(MotionError, match="one size"):
        flow_errors(flow[:1], flow)
