"""Clips of the small world in which the same first frame goes with every action: only the sentence decides.

A clip has 16 frames of 2 seconds, which is what the action probe reads. The camera stands still and one character is
there: it stands in the first frame and then does what the instruction says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...film.instruction import State, States
from ...miniature.batch import World
from ...miniature.world import ACTIONS, Beat, Scene
from ..miniature.evaluate import one_character_scene
from .data import Clip

__all__ = ["FRAMES", "RATE", "STATES", "Pool", "draw_pool", "instruction_of", "scenes", "states_of"]

FRAMES, RATE = 16, 8
"""Frames of a clip, and a second's."""
STATES = 2


@dataclass(frozen=True, eq=False)
class Pool:
    """Clips by picture and action. scenes: P of them. frames: [P, 6, 16, 3, 64, 64] uint8; masks: [P, 6, 16, 64, 64]
    uint8, coverage by the character in 0..255.
    """

    scenes: Sequence[Scene]
    frames: Tensor
    masks: Tensor

    def clips(self, pictures: int) -> Iterator[Clip]:
        """Those of the first `pictures` scenes with instruction and states, six of each."""
        for number in range(pictures):
            for index, action in enumerate(ACTIONS):
                pixels = self.frames[number, index].float().movedim(1, -1) / 255
                yield Clip(f"{number}-{action}", pixels, instruction_of(action), states_of(action))


def scenes(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """Characters in places; held_out: combinations that training never shows, or only those that it does."""
    rng = random.Random(f"instruction {seed} {held_out}")
    return [one_character_scene(rng, held_out=held_out) for _ in range(count)]


def draw_pool(scenes: Sequence[Scene], world: World) -> Pool:
    """Every scene with every action."""
    times = torch.arange(FRAMES) / RATE
    frames, masks = [], []
    for scene in scenes:
        drawn = world.render([_doing(scene, action) for action in ACTIONS], times.expand(len(ACTIONS), -1))
        pictures = drawn.frames.clone()
        pictures[:, 0] = pictures[ACTIONS.index("stands"), 0]  # who walks to the left is mirrored from the start
        frames.append((pictures * 255).round().byte())
        masks.append((drawn.masks * 255).round().byte())
    return Pool(scenes, torch.stack(frames), torch.stack(masks))


def instruction_of(action: str) -> str:
    """The sentence: "It jumps.". Who and where is in the picture; a sentence that repeats it teaches more slowly."""
    return f"It {action}."


def states_of(action: str) -> States:
    """As a planner would tell them: standing, as the picture shows, then the action."""
    states = tuple(State(instruction_of(one), at) for one, at in (("stands", 0.0), (action, 1.0)))
    return States(instruction_of(action), states)


def _doing(scene: Scene, action: str) -> Scene:
    return Scene(scene.place, scene.actors, (Beat(0.0, (action,)),))
