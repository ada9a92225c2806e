"""Inner guidance: a joint model guided by its own prediction of the motion.

With u(x, d, y) the prediction for appearance x, motion d and prompt y (VideoJAM, section 4.3):

    (1 + w1 + w2) u(x, d, y) - w1 u(x, d, no prompt) - w2 u(x, no motion, y)

that is, guidance by the prompt with cfg = 1 + w1 as any sampler does it, plus w2 (u(x, d, y) - u(x, no motion, y)).
Weights sum to 1, so it holds for denoised latents as for velocities. All evaluations of a step run in one batch where
memory permits. It is a patch of the MODEL and so works with any sampler; the GUIDER form is core's on a patched model.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.motion import FlowGate, MotionError
from .wan.joint_latent import DROP, drop_condition, joint_of

__all__ = ["InnerGuidance", "Window", "guide", "inner_guider"]

_STASH = "longreel_motion_third"
_CALC = "sampler_calc_cond_batch_function"
_POST = "sampler_post_cfg_function"
_NAMESPACE = uuid.UUID("6f1c2a52-9a53-4b0e-8f3e-2f6f5d0c7a11")

_LEVEL = 1.002

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """The part of a sampling run in which something acts.

    start, end: 0..1 from the first step to the last; end is outside. unit: "steps" counts the sampler's own steps,
    whatever their noise; "sigma" takes core's percent of the noise schedule, the same for every number of steps.
    """

    start: float = 0.0
    end: float = 1.0
    unit: Literal["steps", "sigma"] = "steps"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise MotionError(f"The window runs from {self.start:g} to {self.end:g}: set 0 <= start <= end <= 1.")

    def holds(self, args: Arguments) -> bool:
        """Whether it acts in a call of the guider, of which args has model, sigma and model_options."""
        sigma = float(args["sigma"].max())
        if sigma <= 0.0:
            return False
        if self.unit == "sigma":
            sampling = args["model"].model_sampling
            first, last = (float(sampling.percent_to_sigma(part)) for part in (self.start, self.end))
            # The schedule is a table of a thousand levels: what lies within a step of it is the same level.
            return self.start < self.end and last * _LEVEL < sigma <= first * _LEVEL
        sigmas: Tensor = args["model_options"]["transformer_options"]["sample_sigmas"]
        # Samplers of higher order ask between two steps too: these calls belong to the step that was begun.
        step = max(int((sigmas[:-1] >= sigma - 1e-5).sum()) - 1, 0)
        return self.start <= step / (len(sigmas) - 1) < self.end


@dataclass(frozen=True)
class InnerGuidance:
    """scale: w2, 0 for none. window: when. rescale: 0..1, how far the result's contrast is brought back to that of the
    conditional prediction, on the appearance. motion_half: "cfg_only" keeps the motion half of the latent out of it.
    mode: "inner" as published; "ip2p" nests as InstructPix2Pix does (Brooks et al., 2023), weaker in the paper's
    ablation. gate: lowers w2 at noise levels where the adapter predicts motion badly; None ignores that.
    """

    scale: float = 3.0
    window: Window = Window(0.0, 0.5)
    rescale: float = 0.0
    motion_half: Literal["full", "cfg_only"] = "full"
    mode: Literal["inner", "ip2p"] = "inner"
    gate: FlowGate | None = None

    def weight(self, args: Arguments) -> float:
        """w2 in a call of the guider, 0 outside the window."""
        if not self.scale or not self.window.holds(args):
            return 0.0
        warranted = 1.0 if self.gate is None else self.gate.weight(float(args["sigma"].max()))
        return self.scale * warranted


def guide(model: ModelPatcher, guidance: InnerGuidance) -> ModelPatcher:
    """A clone of a model with a motion adapter that is guided; of two such patches the later one acts.

    Raises MotionError for a model without an adapter.
    """
    if joint_of(model) is None:
        raise MotionError("Inner guidance needs a model that predicts motion: connect Apply Motion Adapter before it.")
    clone = model.clone()
    previous = clone.model_options.get(_CALC)
    if isinstance(previous, partial) and previous.func is _predict:
        previous = previous.args[1]
    after = [each for each in clone.model_options.get(_POST, []) if not _is_ours(each)]
    clone.model_options[_POST] = [*after, partial(_add, guidance)]
    clone.set_model_sampler_calc_cond_batch_function(partial(_predict, guidance, previous))
    if guidance.mode == "ip2p" and guidance.scale:
        # Its reference is the negative prompt: that must be evaluated even where cfg 1 has no use for it.
        clone.model_options["disable_cfg1_optimization"] = True
    return clone


def inner_guider(
    model: ModelPatcher, positive: Any, negative: Any, cfg: float, guidance: InnerGuidance
) -> comfy.samplers.CFGGuider:
    """Core's guider on the guided model. cfg: 1 + w1, the model's own usual value."""
    guider = comfy.samplers.CFGGuider(guide(model, guidance))
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def _is_ours(function: Any) -> bool:
    return isinstance(function, partial) and function.func is _add


def _predict(guidance: InnerGuidance, previous: Any, args: Arguments) -> list[Tensor]:
    """What core's sampler calls for the predictions of a step; the third is kept for `_add`.

    previous: another node's function of the kind, which goes on predicting the first two.
    """
    model, conds, x, sigma, options = (args[key] for key in ("model", "conds", "input", "sigma", "model_options"))
    if not _acts(guidance, args):
        if previous is not None:
            found: list[Tensor] = previous(args)
            return found
        return list(comfy.samplers.calc_cond_batch(model, conds, x, sigma, options))
    third = _third(guidance, conds, x.device)
    if previous is not None:
        pair = list(previous(args))
        options[_STASH] = comfy.samplers.calc_cond_batch(model, [third], x, sigma, options)[0]
        return pair
    told = [None if cond is None else _told(cond, False, x.device) for cond in conds]
    *pair, options[_STASH] = comfy.samplers.calc_cond_batch(model, [*told, third], x, sigma, options)
    return pair


def _add(guidance: InnerGuidance, args: Arguments) -> Tensor:
    """Core's hook behind guidance by the prompt: adds the motion's term."""
    denoised: Tensor = args["denoised"]
    stashed = args["model_options"].pop(_STASH, None)
    if not _acts(guidance, args):
        return denoised
    if stashed is None:
        # A node behind ours has taken the place of `_predict`: one evaluation more, the same result.
        third = _third(guidance, [args["cond"], args["uncond"]], denoised.device)
        options = args["model_options"]
        (stashed,) = comfy.samplers.calc_cond_batch(args["model"], [third], args["input"], args["sigma"], options)
    whole = args["cond_denoised"] if guidance.mode == "inner" else args["uncond_denoised"]
    term = guidance.weight(args) * (whole - stashed)
    count = denoised.shape[1] // 2
    if guidance.motion_half == "cfg_only":
        term = torch.cat([term[:, :count], torch.zeros_like(term[:, count:])], dim=1)
    result = denoised + term
    if guidance.rescale:
        over = tuple(range(1, result.ndim))
        wanted, found = (each[:, :count].std(dim=over, keepdim=True) for each in (args["cond_denoised"], result))
        result = result * (guidance.rescale * wanted / found + 1 - guidance.rescale)
    return result


def _acts(guidance: InnerGuidance, args: Arguments) -> bool:
    """Whether a call is in the window and of a joint latent; a second stage without its motion is not."""
    joint = args["input"].shape[1] == 2 * args["model"].latent_format.latent_channels
    return joint and guidance.weight(args) != 0.0


def _third(guidance: InnerGuidance, conds: list[Any], device: torch.device) -> list[Any]:
    """The conditioning whose motion is dropped: the positive's, in ip2p mode the negative's."""
    source = conds[0] if guidance.mode == "inner" else conds[1]
    return _told(source, True, device)


def _told(cond: list[Any], dropped: bool, device: torch.device) -> list[Any]:
    """A prepared conditioning that says whether its motion is dropped.

    A dropped one gets an id of its own, the same in every step: caches of other nodes go by it.
    """
    flag = drop_condition(dropped, device)
    told = []
    for part in cond:
        changed = {**part, "model_conds": {**part["model_conds"], DROP: flag}}
        if dropped and part.get("uuid") is not None:
            changed["uuid"] = uuid.uuid5(_NAMESPACE, str(part["uuid"]))
        told.append(changed)
    return told
