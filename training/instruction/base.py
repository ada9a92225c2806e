"""Teaching the whole UNet of a small Stable Video Diffusion, without words: what an adapter is put on.

The loss is the adapter's own (`train.Lesson`) with an adapter that has no parts, so that base and adapter learn the
same thing, and a whole UNet that learns a clip shows that objective and sampler are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...film.instruction.adapters import AidAdapter
from ...film.instruction.settings import AdapterSettings
from ..core.run import remember_settings, run_training, uses_bf16
from ..core.trainable import FullModel
from .data import Example
from .train import AidTrainable, InstructionSettings, Lesson, loss_over

__all__ = ["initialise", "train_unet", "without_words"]


def without_words(architecture: AdapterSettings) -> AdapterSettings:
    """An adapter's that has no parts at all."""
    return replace(architecture, branches="none", adapters=())


@torch.no_grad()
def initialise(network: nn.Module, seed: int, *, zero: Sequence[str] = ()) -> None:
    """Weights to begin with: normal, of variance 1 / inputs; norms 1; biases 0. ComfyUI's layers come uninitialised.

    zero: ends of names of weights that begin at zero, as of layers that end a residual branch.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            gain = 0.0 if name.endswith(tuple(zero)) else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * gain)
        else:
            value.fill_(1.0 if name.endswith("weight") else 0.0)


UNET_ZERO = ("out.2.weight", "out_layers.3.weight", "proj_out.weight")
"""Layers of the UNet that end a branch."""


def train_unet(
    model: Any,
    architecture: AdapterSettings,
    examples: Sequence[Example],
    settings: InstructionSettings,
    folder: Path,
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Train all of `model`'s UNet in place, or go on where a run in `folder` stopped. Words are not read."""
    folder.mkdir(parents=True, exist_ok=True)
    remember_settings(settings, folder)
    adapter = AidTrainable(AidAdapter(without_words(architecture), torch.nn))
    unet = model.model.diffusion_model
    lesson = Lesson(model, adapter, settings, uses_bf16(settings.precision, next(unet.parameters()).device))
    learner = lesson.base.diffusion_model  # shares its weights with `unet`
    run_training(
        "svd", learner, FullModel(learner), loss_over(lesson, examples, settings), settings, folder, {},
        sample=None, say=say,
    )  # fmt: skip
