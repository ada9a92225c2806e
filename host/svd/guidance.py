"""Guidance of AID: towards the known frames and towards the words, each with a strength of its own.

    D = D(null) + s_V (D(frames) - D(null)) + s_T (D(frames, words) - D(frames))

as InstructPix2Pix has it, whose notation AID takes over (arXiv 2406.06465, section 3.5; 2211.09800, equation 3). The
weights of the three sum to 1 and D is affine in the network's output, so that combining D, epsilon or v is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

from ...film.instruction import InstructionError

__all__ = ["SpatioTemporalGuidance", "SpatioTemporalGuider"]


@dataclass(frozen=True)
class SpatioTemporalGuidance:
    """Strengths of guidance.

    frames_first, frames_last: s_V of the first and the last frame, straight in between. text: s_T, within the window of
    sampling from `start` to `end` (0..1); outside the words count plainly, as with 1. Raises InstructionError for a
    window that is none.
    """

    frames_first: float = 1.0
    frames_last: float = 2.0
    text: float = 3.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InstructionError(
                f"Text guidance from {self.start} to {self.end} is no window: set 0 <= start <= end <= 1."
            )

    def passes(self, text: float) -> tuple[bool, bool, bool]:
        """Which of null, text_null and positive must be evaluated when the words have that strength."""
        constant = self.frames_first == self.frames_last
        null = not (constant and self.frames_last == 1)
        middle = text != 1 if not null else not (constant and self.frames_last == text)
        return null, middle, text != 0

    def frame_scales(self, rows: int, like: Tensor) -> Tensor:
        """s_V of each frame, [rows, 1, 1, 1]."""
        scales = torch.linspace(self.frames_first, self.frames_last, rows, device=like.device, dtype=like.dtype)
        return scales.reshape(rows, 1, 1, 1)

    def guider(self, model: ModelPatcher, positive: Any, text_null: Any, null: Any) -> SpatioTemporalGuider:
        """A GUIDER for core's Sampler (Custom Advanced)."""
        guider = SpatioTemporalGuider(model)
        guider.guide(self, positive, text_null, null)
        return guider


class SpatioTemporalGuider(CFGGuider):
    """ComfyUI's guider of three passes, of which those that do not count are left out."""

    def guide(self, guidance: SpatioTemporalGuidance, positive: Any, text_null: Any, null: Any) -> None:
        """Set strengths and conditions."""
        self.guidance = guidance
        self.inner_set_conds({"positive": positive, "middle": text_null, "negative": null})

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided clean estimate."""
        options = model_options or {}
        guidance, sampling = self.guidance, self.inner_model.model_sampling
        sigma = float(timestep.flatten()[0])
        inside = sampling.percent_to_sigma(guidance.end) <= sigma <= sampling.percent_to_sigma(guidance.start)
        text = guidance.text if inside else 1.0
        wanted = guidance.passes(text)
        conds = [self.conds[name] if want else None for name, want in zip(("negative", "middle", "positive"), wanted)]
        null, middle, positive = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
        has_null, has_middle, has_positive = wanted
        scales = guidance.frame_scales(len(x), x)
        if not has_middle and not has_null:
            guided = positive
        elif not has_middle:
            guided = null + scales * (positive - null)
        else:
            guided = null + scales * (middle - null) if has_null else middle
            if has_positive:
                guided = guided + text * (positive - middle)
        for function in options.get("sampler_post_cfg_function", []):
            guided = function(
                {
                    "denoised": guided, "cond": conds[2] or conds[1], "uncond": conds[0], "cond_scale": text,
                    "model": self.inner_model, "uncond_denoised": null, "cond_denoised": positive, "sigma": timestep,
                    "model_options": options, "input": x,
                }
            )  # fmt: skip
        return guided
