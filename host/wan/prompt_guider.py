"""Several prompts in one sampling run: ComfyUI prepares them all, and the block loop says which one holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch

from .shot_context import ShotContext

__all__ = ["CONTEXT", "Prompt", "PromptGuider"]

CONTEXT = -1
"""The segment of the words that earlier shots' pictures read."""


@dataclass(frozen=True)
class Prompt:
    """A conditioning (ComfyUI's CONDITIONING) that holds from latent frame `at` of the take on.

    It takes effect at the first block that starts at or after `at`.
    """

    at: int
    conditioning: list[Any]


class PromptGuider(comfy.samplers.CFGGuider):
    """A guider without guidance that holds every prompt of the take, prepared by ComfyUI, and uses one at a time."""

    def __init__(
        self, model: comfy.model_patcher.ModelPatcher, prompts: Sequence[Prompt], context: ShotContext
    ) -> None:
        super().__init__(model)
        self.segment = 0
        conds = {str(index): prompt.conditioning for index, prompt in enumerate(prompts)}
        self.inner_set_conds(conds | ({str(CONTEXT): context.conditioning()} if context.captions else {}))

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """The denoised latents under the current prompt."""
        conds = self.conds[str(self.segment)]
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, None, conds, 1.0, model_options=model_options or {}, seed=seed
        )
