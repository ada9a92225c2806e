"""Scenes drawn in batches are the pictures that they are one by one."""

from __future__ import annotations

import random
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from longreel.miniature import batch, world
from longreel.miniature.stories import describe, random_scene
from longreel.miniature.world import POSITIONS, Actor, Beat, Character, Scene, position_at, render


@pytest.fixture
def textures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small random textures: what is compared is where they are shown."""

    @cache
    def sprite(*names: str) -> torch.Tensor:
        return torch.rand(4, 128, 128, generator=torch.Generator().manual_seed(sum(map(len, names))))

    @cache
    def backdrop(place: str) -> tuple[torch.Tensor, torch.Tensor]:
        far, near = torch.rand(2, 4, 256, 640, generator=torch.Generator().manual_seed(len(place)))
        return far, near

    for module, wrapped in ((world, False), (batch, True)):
        for name, make in (("sprite", sprite), ("backdrop", backdrop)):
            monkeypatch.setattr(module, name, SimpleNamespace(__wrapped__=make) if wrapped else make)


def test_batches_equal_single_scenes(textures: None):
    rng = random.Random(3)
    scenes = [random_scene(rng, 14.0, two=0.4) for _ in range(6)]
    scenes.append(Scene("night", (), (Beat(0.0, (), "zooms out"), Beat(2.0, (), "pans right"))))
    times = torch.rand(len(scenes), 4) * 16
    drawn = batch.World("cpu", 32).render(scenes, times)
    for index, (scene, at) in enumerate(zip(scenes, times, strict=True)):
        single = render(scene, at, 32)
        assert torch.allclose(drawn.frames[index], single.frames, atol=1e-3)
        masks = single.masks.amax(dim=1) if scene.actors else torch.zeros(4, 32, 32)
        assert torch.allclose(drawn.masks[index], masks, atol=1e-3)


def test_positions_after_a_change_are_said_when_asked_for():
    who = Character("red", "ball", "crown")
    scene = Scene("city", (Actor(who, "left"),), (Beat(0.0, ("walks",)), Beat(2.0, ("jumps",))))
    assert describe(scene, 2.0) == "A red ball with a crown jumps in the city."
    place = position_at(scene, 0, 2.0)
    assert place in POSITIONS
    assert place != "left", "two seconds' walk away"
    where = "in the middle" if place == "middle" else f"on the {place}"
    assert describe(scene, 2.0, positions=True) == f"A red ball with a crown jumps {where} in the city."
