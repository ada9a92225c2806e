"""Clips of the small world drawn on the device that trains, endless, for the VAE and its decoder."""

from __future__ import annotations

import random

import torch

from ...miniature.batch import World
from ...miniature.stories import random_scene
from ...miniature.world import FPS, Scene

_SECONDS = 8.0
_MOVING = ("spins", "spins", "sways", "jumps", "stretches")
"""Who does these is drawn softly by a VAE, so clips show them more often."""


class DrawnClips:
    """`vae.Clips` out of `world`, the same for the same seed and step. cuts: share of clips that cut to another
    scene somewhere, also within a latent frame; moving: of those that show a moving action from its start.
    """

    def __init__(self, world: World, seed: int, *, cuts: float = 0.12, moving: float = 0.4):
        self.world, self.seed, self.cuts, self.moving = world, seed, cuts, moving

    def clips(self, step: int, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [B, 3, frames, h, w] in -1..1 and weights [B, 1, frames, h, w]: 1, and 4 on characters."""
        rng = random.Random(f"{self.seed}/{step}")
        chosen = [self.moment(rng, frames) for _ in range(batch)]
        pictures, masks = self._draw(chosen, frames)
        cut = [index for index in range(batch) if rng.random() < self.cuts]
        if cut:
            others = self._draw([self.moment(rng, frames) for _ in cut], frames)
            first = torch.tensor([rng.randint(1, frames - 1) for _ in cut]).to(pictures.device, non_blocking=True)
            later = torch.arange(frames, device=pictures.device) >= first[:, None]
            rows = torch.tensor(cut).to(pictures.device, non_blocking=True)
            pictures[rows] = torch.where(later[:, :, None, None, None], others[0], pictures[rows])
            masks[rows] = torch.where(later[:, :, None, None], others[1], masks[rows])
        return pictures.transpose(1, 2) * 2 - 1, 1 + 3 * masks[:, None]

    def images(self, step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for single pictures, four moments of each of `batch` / 4 scenes: [B, 3, 1, h, w] and weights."""
        rng = random.Random(f"{self.seed}/image/{step}")
        scenes = [self._scene(rng) for _ in range(batch // 4)]
        times = torch.tensor([[rng.uniform(0, _SECONDS) for _ in range(4)] for _ in scenes])
        frames, masks = self.world.render(scenes, times)
        return frames.flatten(0, 1)[:, :, None] * 2 - 1, 1 + 3 * masks.flatten(0, 1)[:, None, None]

    def moment(self, rng: random.Random, frames: int) -> tuple[Scene, float]:
        """A scene and where a clip of it begins."""
        scene = self._scene(rng)
        if rng.random() >= self.moving:
            return scene, rng.uniform(0, 6.0)
        action = rng.choice(_MOVING)
        while action not in scene.beats[0].actions:
            scene = self._scene(rng)
        end = scene.beats[1].at if len(scene.beats) > 1 else _SECONDS
        return scene, 0.0 if rng.random() < 0.3 else rng.uniform(0, max(end - frames / FPS, 0.1))

    def _scene(self, rng: random.Random) -> Scene:
        return random_scene(rng, _SECONDS, held_out=rng.random() < 0.2)

    def _draw(self, chosen: list[tuple[Scene, float]], frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.tensor([start for _, start in chosen])[:, None]
        drawn = self.world.render([scene for scene, _ in chosen], starts + torch.arange(frames) / FPS)
        return drawn.frames, drawn.masks
