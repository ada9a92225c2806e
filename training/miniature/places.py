"""Places of the small world without characters: plates of casts, and the background that characters are separated from.
"""

from __future__ import annotations

import torch

from ...miniature.world import Actor, Beat, Character, Scene, render


def empty_place(scene: Scene) -> torch.Tensor:
    """The place [64, 64, 3] at the first moment, without characters: from two takes with one left and one right."""

    def take(position: str) -> tuple[torch.Tensor, torch.Tensor]:
        somebody = Actor(Character("white", "ball", "beanie"), position)
        beat = Beat(0.0, ("stands",), scene.beats[0].camera)
        drawn = render(Scene(scene.place, (somebody,), (beat,)), torch.zeros(1))
        return drawn.frames[0].movedim(0, -1), drawn.masks[0, 0, :, :, None]

    (left, hidden), (right, _) = take("left"), take("right")
    return torch.where(hidden > 0, right, left)
