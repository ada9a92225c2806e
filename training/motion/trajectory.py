"""Trajectories: where a film shows its character, against where the world's physics puts it.

A prompt of the small world decides every pose but a start shifted by a few hundredths of the frame (Actor.nudge). So a
film's error is its distance to the nearest of the prompt's trajectories. The character is located by the probe: a
linear map of its features, fitted in closed form to rendered pictures, gives feet and head.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from ...miniature.batch import World
from ...miniature.probe import Probe
from ...miniature.world import FPS, SIZE, Scene, feet_and_head
from ..miniature.evaluate import one_character_scene

__all__ = ["Tracker", "fit_tracker", "trajectory_error"]

_MOMENTS, _SECONDS = 8, 5.0
_NUDGES = torch.linspace(-0.05, 0.05, 11).tolist()
_DECAY = 1e-2
"""Of the ridge regression, as a share of the features' mean square."""


@dataclass(frozen=True, eq=False)
class Tracker:
    """Locates one character by the features of a probe. weights: [features, 4]; mean: of the features; centre: [4]."""

    probe: Probe
    weights: torch.Tensor
    mean: torch.Tensor
    centre: torch.Tensor

    @torch.no_grad()
    def track(self, film: torch.Tensor) -> torch.Tensor:
        """Feet and head in every frame of a film [T, 64, 64, 3] in 0..1, [T, 2, 2] as x and y in pixels."""
        features = _features(self.probe, film.movedim(-1, 1))
        return ((features - self.mean) @ self.weights + self.centre).unflatten(1, (2, 2)) * SIZE


@torch.no_grad()
def fit_tracker(probe: Probe, *, count: int = 200, seed: int = 0) -> Tracker:
    """Fit to moments of `count` rendered one-character scenes, none of a held-out combination."""
    rng = random.Random(f"tracker {seed}")
    scenes = [one_character_scene(rng, held_out=False) for _ in range(count)]
    times = torch.tensor([[rng.uniform(0, _SECONDS) for _ in range(_MOMENTS)] for _ in scenes])
    world = World("cpu")
    features = torch.cat(
        [
            _features(probe, world.render(scenes[at : at + 50], times[at : at + 50]).frames.flatten(0, 1))
            for at in range(0, len(scenes), 50)
        ]
    )
    points = torch.cat([feet_and_head(scene, 0, moments) for scene, moments in zip(scenes, times)]).flatten(1)
    mean, centre = features.mean(dim=0), points.mean(dim=0)
    features, points = features - mean, points - centre
    # Fewer moments than features: the dual form solves for the moments.
    products = features @ features.T
    products.diagonal().add_(_DECAY * products.diagonal().mean())
    return Tracker(probe, features.T @ torch.linalg.solve(products, points), mean, centre)


def trajectory_error(points: torch.Tensor, scene: Scene) -> float:
    """Mean distance in pixels of tracked points [T, 2, 2] to the scene's own, of the nearest of its possible starts."""
    (actor,) = scene.actors
    times = torch.arange(len(points)) / FPS
    starts = [replace(scene, actors=(replace(actor, nudge=nudge),)) for nudge in _NUDGES]
    return min(
        float(torch.linalg.vector_norm(points - feet_and_head(start, 0, times) * SIZE, dim=-1).mean())
        for start in starts
    )


def _features(probe: Probe, frames: torch.Tensor) -> torch.Tensor:
    """[N, features] of frames [N, 3, 64, 64]: the probe's maps of 8 x 8 and 4 x 4 cells, and its last features."""
    parts = []
    for part in frames.split(64):
        *_, middle, coarse, last = probe.feature_maps(part)
        parts.append(torch.cat([middle.flatten(1), coarse.flatten(1), last], dim=1))
    return torch.cat(parts)
