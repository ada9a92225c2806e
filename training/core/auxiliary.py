"""Auxiliary losses of a recipe, on the predicted clean latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class AuxiliaryLoss(Protocol):
    """A further loss of a recipe on predicted clean latents [B, C, F, h, w]."""

    @property
    def weights(self) -> dict[str, float]:
        """What a run remembers of it, by the options' names."""
        ...

    def loss(self, guess: torch.Tensor, named: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Against labels: each of the latents shows what `named` says; None is left out."""
        ...

    def likeness(self, guess: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Against the features of `clean`, where there are no labels."""
        ...


@dataclass(frozen=True)
class AuxiliaryLosses:
    """Several as one."""

    parts: tuple[AuxiliaryLoss, ...]

    @property
    def weights(self) -> dict[str, float]:
        return {name: weight for part in self.parts for name, weight in part.weights.items()}

    def loss(self, guess: torch.Tensor, named: Sequence[torch.Tensor | None]) -> torch.Tensor:
        return torch.stack([part.loss(guess, named) for part in self.parts]).sum()

    def likeness(self, guess: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.likeness(guess, clean) for part in self.parts]).sum()
