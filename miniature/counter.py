"""The counter: a small network that says how many characters a frame shows, and whether they are whole.

The attribute probe reads one character's attributes and says nothing of a second body, of a row of blobs or of a body
that has dissolved. Trained on drawn frames only (`training.counter`), never on generated ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

COUNTS = ("0", "1", "2", "3", "broken")
"""Classes: whole characters in the frame, or a frame with a body that is none: melted, smeared, a row of blobs."""


class Counter(nn.Module):
    """Frames [N, 3, 64, 64] in 0..1 to logits [N, len(COUNTS)].

    `operations` is `torch.nn` in training and tests and one of ComfyUI's `comfy.ops` classes inside it.
    """

    def __init__(self, width: int = 24, operations: Any = nn):
        super().__init__()
        widths = (3, width, width * 2, width * 3, width * 4)
        self.layers = nn.ModuleList([operations.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)])
        self.closer = nn.ModuleList([operations.Conv2d(b, b, 3, padding=1) for b in widths[1:]])
        self.norms = nn.ModuleList([operations.GroupNorm(8, b) for b in widths[1:]])
        self.neck = operations.Linear(widths[-1] * 16, 128)
        self.head = operations.Linear(128, len(COUNTS))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames * 2 - 1
        for layer, closer, norm in zip(self.layers, self.closer, self.norms, strict=True):
            x = F.gelu(norm(layer(x)))
            x = x + F.gelu(closer(x))
        logits: torch.Tensor = self.head(F.gelu(self.neck(x.flatten(1))))
        return logits

    @torch.no_grad()
    def count(self, frames: torch.Tensor) -> torch.Tensor:
        """Class numbers [N] of frames [N, 3, 64, 64] in 0..1, in the order of `COUNTS`."""
        return torch.cat([self(part).argmax(dim=1) for part in frames.split(512)])
