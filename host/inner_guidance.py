"""Inner guidance for a model with a motion adapter: the pass without motion, and what the adapter's file says of it.

Beside guidance by the prompt it adds w2 (u(x, d, y) - u(x, no motion, y)), with u the prediction for appearance x,
motion d and prompt y (VideoJAM, section 4.3). guidance.py has the arithmetic, guider.py runs it: all evaluations of a
step in one batch where memory permits, as a GUIDER or as a patch of the MODEL.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.motion import FlowGate, MotionError
from .guidance import Cfg, Conds, Formula, InnerGuidance, Step, Term
from .guider import Guider, patch_guidance
from .wan.joint_latent import DROP, drop_condition, joint_of

__all__ = ["MotionGuidance", "guide", "inner_guider"]

_NAMESPACE = uuid.UUID("6f1c2a52-9a53-4b0e-8f3e-2f6f5d0c7a11")


@dataclass(frozen=True)
class MotionGuidance(InnerGuidance):
    """Inner guidance of a joint latent; of any other latent it asks nothing.

    rescale: 0..1, how far the result's contrast is brought back to that of the conditional prediction, on the
    appearance. motion_half: "cfg_only" keeps the motion half of the latent out of it. mode: "inner" as published;
    "ip2p" nests as InstructPix2Pix does (Brooks et al., 2023), weaker in the paper's ablation. gate: lowers the scale
    at noise levels where the adapter predicts motion badly; None ignores that. curve: factors of the scale, evenly
    spread from the first step to the last; without any it is constant.
    """

    rescale: float = 0.0
    motion_half: Literal["full", "cfg_only"] = "full"
    mode: Literal["inner", "ip2p"] = "inner"
    gate: FlowGate | None = None
    curve: tuple[float, ...] = ()

    def at(self, step: Step) -> Formula:
        """Its term inside the window, where the predicted motion is good enough."""
        channels = step.model.latent_format.latent_channels
        scale = self.scale * (1.0 if self.gate is None else self.gate.weight(step.sigma))
        if self.curve:
            scale *= self.curve[round(step.index / max(step.steps - 1, 1) * (len(self.curve) - 1))]
        # A second stage that was not given its motion goes on with the appearance alone.
        if not scale or step.shape[1] != 2 * channels or not self.window.holds(step):
            return Formula(None)
        weight: float | Tensor = scale
        if self.motion_half == "cfg_only":
            weight = torch.tensor([scale] * channels + [0.0] * channels).view(1, -1, 1, 1, 1)
        return Formula(None, (Term(weight, "positive" if self.mode == "inner" else "negative", "nomotion"),))

    def derive(self, conds: Conds) -> Conds:
        """All conditionings say whether their motion is dropped, so that they run in one batch; "nomotion" is the
        positive without motion, in ip2p mode the negative.

        Raises MotionError where there is none to make it of.
        """
        source = conds.get("positive" if self.mode == "inner" else "negative")
        if source is None:
            raise MotionError("The ip2p mode reads the negative prompt and this guider has none: choose mode inner.")
        told = {name: _told(cond, False) for name, cond in conds.items() if cond is not None}
        return {**conds, **told, "nomotion": _told(source, True)}

    def finish(self, denoised: Tensor, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """The guided prediction rescaled."""
        if not self.rescale or not self.at(step).terms:
            return denoised
        over, count = tuple(range(1, denoised.ndim)), denoised.shape[1] // 2
        wanted, found = (each[:, :count].std(dim=over, keepdim=True) for each in (predictions["positive"], denoised))
        return denoised * (self.rescale * wanted / found + 1 - self.rescale)


def guide(model: ModelPatcher, guidance: MotionGuidance) -> ModelPatcher:
    """A clone of a model with a motion adapter that is guided, whatever samples it; several such patches add up.

    Raises MotionError for a model without an adapter.
    """
    _check(model)
    return patch_guidance(model, guidance)


def inner_guider(model: ModelPatcher, positive: Any, negative: Any, cfg: float, guidance: MotionGuidance) -> Guider:
    """Both kinds of guidance as a GUIDER. cfg: 1 + w1, the model's own usual value. Raises as `guide` does."""
    _check(model)
    return Guider(model, (Cfg(cfg), guidance), {"positive": positive, "negative": negative})


def _check(model: ModelPatcher) -> None:
    if joint_of(model) is None:
        raise MotionError("Inner guidance needs a model that predicts motion: connect Apply Motion Adapter before it.")


def _told(cond: list[Any], dropped: bool) -> list[Any]:
    """A prepared conditioning that says whether its motion is dropped.

    A dropped one gets an id of its own, the same in every step: caches of other nodes go by it.
    """
    told = []
    for part in cond:
        if dropped or DROP not in part["model_conds"]:
            part = {**part, "model_conds": {**part["model_conds"], DROP: drop_condition(dropped)}}
        if dropped and part.get("uuid") is not None:
            part["uuid"] = uuid.uuid5(_NAMESPACE, str(part["uuid"]))
        told.append(part)
    return told
