"""The device memory that a LoRA run needs, planned before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


class Clip(Protocol):
    """Anything with latents [C, F, h, w]."""

    @property
    def latents(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, and the number of trained parameters and of tokens in one pass."""

    parameters: int
    tokens: int
    weights: int
    training: int
    activations: int
    free: int

    @property
    def total(self) -> int:
        """All that must fit: base, adapter with optimizer, activations."""
        return self.weights + self.training + self.activations

    def text(self) -> str:
        """The plan in one line, and what to change where it does not fit."""
        line = (
            f"Memory: base {_gib(self.weights)}, {self.parameters / 1e6:.2f} M trained parameters with their optimizer "
            f"{_gib(self.training)}, about {_gib(self.activations)} for {self.tokens:,} tokens at once; "
            f"{_gib(self.total)} in all, {_gib(self.free)} are there."
        )
        if self.total <= self.free:
            return line
        return f"{line} This will not fit: take a smaller rank, fewer clips at once, or smaller or shorter clips."


def plan_memory(
    dit: nn.Module, adapter: nn.Module, examples: Sequence[Clip], *, micro_batch: int, bf16: bool, checkpointing: bool
) -> MemoryPlan:
    """The plan for the largest of the examples, `micro_batch` of them in a pass.

    The base and the adapter are counted. Activations are estimated from what autograd keeps of a Wan block.
    """
    import comfy.model_management

    device = next(dit.parameters()).device
    weights = sum(p.numel() * p.element_size() for p in dit.parameters())
    parameters = sum(p.numel() for p in adapter.parameters())
    tokens = micro_batch * max(_tokens(dit, example.latents) for example in examples)
    element = 2 if bf16 else 4
    # Weight, gradient, two moments, average: five times float32.
    free = int(comfy.model_management.get_free_memory(device)) + (weights if device.type != "cpu" else 0)
    return MemoryPlan(
        parameters, tokens, weights, 20 * parameters, _activations(dit, tokens, element, checkpointing), free
    )


def _tokens(dit: Any, latents: torch.Tensor) -> int:
    _, *sizes = latents.shape
    return math.prod(math.ceil(size / patch) for size, patch in zip(sizes, dit.patch_size, strict=True))


def _activations(dit: Any, tokens: int, element: int, checkpointing: bool) -> int:
    """A block keeps about 24 vectors of its width and 2 of its inner width per token; recomputed blocks keep their
    input, and one block at a time is whole.
    """
    width, inner = dit.dim, max(getattr(layer, "out_features", 0) for layer in dit.blocks[0].modules())
    block = tokens * (24 * width + 2 * inner) * element
    layers = len(dit.blocks)
    return block + layers * tokens * width * element if checkpointing else layers * block


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
