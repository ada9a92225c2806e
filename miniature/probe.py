"""The attribute probe: a small network that reads from frames what a film shows.

It judges films of one character: colour, body, headgear and place from every frame, the action from how frames follow
each other. Trained on rendered clips only (`training.miniature.probe`), never on generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .world import ACTIONS, BODIES, COLOURS, HEADGEAR, PLACES

ATTRIBUTES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "body": BODIES, "headgear": HEADGEAR, "place": PLACES}
"""What is read from single frames; `action` is read from clips."""

SPACING = 2
"""Pixel frames from one input frame of the probe to the next: it reads 8 of a second's 16."""
SIGHT = 16
"""Input frames of an action's classification: 2 seconds."""


@dataclass(frozen=True)
class Reading:
    """Class numbers: `frames[attribute]` [T] for every pixel frame, `action` [W] for windows of 2 seconds, half
    overlapping.
    """

    frames: dict[str, torch.Tensor]
    action: torch.Tensor

    def accuracy(self, attribute: str, expected: str) -> float:
        """Share of frames (of windows, for the action) in which `attribute` is read as `expected`."""
        if attribute == "action":
            return (self.action == ACTIONS.index(expected)).float().mean().item()
        return (self.frames[attribute] == ATTRIBUTES[attribute].index(expected)).float().mean().item()

    def verdict(self, attribute: str) -> str:
        """What most frames say."""
        numbers = self.action if attribute == "action" else self.frames[attribute]
        names = ACTIONS if attribute == "action" else ATTRIBUTES[attribute]
        return names[int(numbers.mode().values)]


def half(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The left (0) or right (1) half of pictures [N, C, H, W], its inner edge drawn out to their width: of two
    characters, who are left and right, a probe of one classifies each by itself.
    """
    width = pictures.shape[-1]
    middle = width // 2
    if side == 0:
        return F.pad(pictures[..., :middle], (0, width - middle, 0, 0), mode="replicate")
    return F.pad(pictures[..., middle:], (middle, 0, 0, 0), mode="replicate")


class Probe(nn.Module):
    """Convolutions per frame, heads for attributes, and a temporal network over frame features for the action."""

    def __init__(self, width: int = 32, operations: Any = nn):
        super().__init__()
        widths = (3, width, width * 2, width * 4, width * 4)
        self.layers = nn.ModuleList([operations.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)])
        self.norms = nn.ModuleList([operations.GroupNorm(8, b) for b in widths[1:]])
        self.closer = operations.Conv2d(width * 4, width * 4, 3, padding=1)
        features = widths[-1] * 16
        self.neck = operations.Linear(features, 256)
        self.heads = nn.ModuleDict({name: operations.Linear(256, len(values)) for name, values in ATTRIBUTES.items()})
        self.temporal = nn.ModuleList(
            [operations.Conv1d(512, 128, 3, padding=1), operations.Conv1d(128, 128, 3, padding=1)]
        )
        self.action = operations.Linear(128, len(ACTIONS))

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """[N, 256] of frames [N, 3, 64, 64] in 0..1."""
        return self.feature_maps(frames)[-1]

    def feature_maps(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """All that is made of frames, from the finest maps to `features`."""
        x, seen = frames * 2 - 1, []
        for level, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = F.gelu(norm(layer(x)))
            if level == 2:
                # outlines of bodies: one more stage at 8 x 8, where a body is two or three cells wide
                x = x + F.gelu(self.closer(x))
            seen.append(x)
        return [*seen, F.gelu(self.neck(x.flatten(1)))]

    def read_action(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [B, 6] of features [B, SIGHT, 256], spaced `SPACING` pixel frames."""
        # What does not move says nothing about the action: differences stand beside the features.
        change = F.pad(features[:, 1:] - features[:, :-1], (0, 0, 1, 0))
        x = torch.cat([features, change], dim=2).transpose(1, 2)
        for layer in self.temporal:
            x = F.gelu(layer(x))
        return self.action(x.amax(dim=2))

    @torch.no_grad()
    def read(self, film: torch.Tensor) -> Reading:
        """Read a film [T, H, W, 3] in 0..1 (ComfyUI's IMAGE), T at least 2 seconds (31 frames)."""
        frames = film.movedim(-1, 1)
        if frames.shape[-2:] != (64, 64):
            frames = F.interpolate(frames, size=(64, 64), mode="area")
        features = torch.cat([self.features(part) for part in frames.split(64)])
        reading = {name: head(features).argmax(dim=1) for name, head in self.heads.items()}
        span = (SIGHT - 1) * SPACING + 1
        starts = range(0, len(film) - span + 1, span // 2)
        windows = torch.stack([features[start : start + span : SPACING] for start in starts])
        return Reading(reading, self.read_action(windows).argmax(dim=1))
