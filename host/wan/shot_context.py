"""Pictures of earlier shots in a take's sink, each of which cross-attends to its own shot's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...film.kv_memory.shots import shot_phase

__all__ = ["ShotContext"]


@dataclass(frozen=True)
class ShotContext:
    """Pictures of earlier shots for the sink of a take that begins with a cut.

    take: its number, from 0. position: latent frames filmed before it. pictures: [1, C, n, h, w] in LATENT space, each
    encoded alone, n the sink; None where nothing was filmed yet: blank latents under the take's own first prompt.
    takes, frames: the take and the latent frame of the film that each picture is of. captions: its words as
    CONDITIONING; the same object for the same words saves time.
    """

    take: int = 0
    position: int = 0
    pictures: torch.Tensor | None = field(default=None, repr=False)
    takes: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    captions: tuple[list[Any], ...] = field(default=(), repr=False)

    def fault(self, shape: Sequence[int], sink: int) -> str | None:
        """What is wrong with it for latents of `shape` [1, C, T, h, w] and a sink of so many: a sentence, or None."""
        if self.pictures is None:
            return None if self.take == 0 else f"Take {self.take + 1} needs pictures of the shots before it."
        wanted = (1, shape[1], sink, *shape[3:])
        if tuple(self.pictures.shape) != wanted:
            return f"The pictures of earlier shots have shape {list(self.pictures.shape)}, not {list(wanted)}."
        if not len(self.takes) == len(self.frames) == len(self.captions) == sink:
            return f"Each of the {sink} pictures of earlier shots needs its take, its frame and its words."
        if any(len(caption) != 1 for caption in self.captions):
            return "The words of an earlier shot must be one conditioning each; remove combined and scheduled ones."
        return None

    def sink_frames(self, sink: int) -> tuple[int, ...]:
        """Latent frame of the film of each picture, -1 for a blank one."""
        return self.frames or (-1,) * sink

    def phases(self, sink: int) -> list[float]:
        """Radians that each picture's temporal angles are turned by."""
        return [shot_phase(take, context=True) for take in self.takes or (0,) * sink]

    def conditioning(self) -> list[Any]:
        """All different words, one behind the other, as one CONDITIONING."""
        words = self._words()
        (_, options), *_ = words[0]
        return [[torch.cat([caption[0][0] for caption in words], dim=1), options]]

    def rows(self) -> list[tuple[int, int]]:
        """Of each picture the rows of `conditioning` that it reads: the first, and how many."""
        words = self._words()
        lengths = [int(caption[0][0].shape[1]) for caption in words]
        spans = [(sum(lengths[:i]), length) for i, length in enumerate(lengths)]
        return [spans[[caption is other for other in words].index(True)] for caption in self.captions]

    def _words(self) -> list[list[Any]]:
        different: list[list[Any]] = []
        for caption in self.captions:
            if not any(caption is other for other in different):
                different.append(caption)
        return different
