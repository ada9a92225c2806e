"""More motion without an adapter: guidance away from a weakened model.

result + scale * (cond - weak), where `weak` is the same prompt through the network with a few blocks left out, or with
their self-attention replaced by its values (Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion
Sampling", CVPR 2025: STG-R and STG-A). It needs neither training nor a negative prompt, so it works with few-step
models at guidance 1, and block by block in a causal film.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import comfy.ldm.wan.model
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...film.motion import MotionError
from ..guidance import Step, Window

__all__ = ["WeakGuidance", "default_layers", "guide_from_weak", "take_value_attention"]

_VALUES = "longreel_value_attention"
_OVERRIDE = "optimized_attention_override"
_POST = "sampler_post_cfg_function"
_WINDOW = Window(0.0, 0.6)

Options = dict[str, Any]


@dataclass(frozen=True)
class WeakGuidance:
    """kind: "skip" leaves the blocks out, "values" replaces their self-attention. layers: which blocks, empty for
    default_layers. scale: 0 for none. window: when. rescale: 0..1, how far the contrast is brought back to that of the
    conditional prediction.
    """

    kind: Literal["skip", "values"] = "skip"
    layers: tuple[int, ...] = ()
    scale: float = 1.0
    window: Window = _WINDOW
    rescale: float = 0.7


def default_layers(depth: int) -> tuple[int, ...]:
    """The block a quarter of the way up: 10 of Wan 14B's 40, 8 of the 30 of 1.3B and 5B, as users found by trying."""
    return (round(depth / 4),)


def guide_from_weak(model: ModelPatcher, guidance: WeakGuidance) -> ModelPatcher:
    """A clone of a Wan model that is guided so; of two such patches of one kind the later acts.

    Raises MotionError for another model and for blocks that it does not have.
    """
    dit = getattr(model.model, "diffusion_model", None)
    if not isinstance(dit, comfy.ldm.wan.model.WanModel):
        raise MotionError(f"{type(model.model).__name__} is not a Wan model: motion fallbacks know Wan's blocks only.")
    layers = guidance.layers or default_layers(len(dit.blocks))
    if bad := [layer for layer in layers if not 0 <= layer < len(dit.blocks)]:
        raise MotionError(f"There is no block {bad[0]}: this model's are numbered 0 to {len(dit.blocks) - 1}.")
    clone = model.clone()
    others = [each for each in clone.model_options.get(_POST, []) if not _is_ours(each, guidance.kind)]
    clone.model_options[_POST] = [*others, partial(_add, guidance, tuple(layers))] if guidance.scale else others
    return clone


def _is_ours(function: Any, kind: str) -> bool:
    return isinstance(function, partial) and function.func is _add and function.args[0].kind == kind


def _add(guidance: WeakGuidance, layers: Sequence[int], args: Options) -> Tensor:
    """Core's hook behind guidance: one evaluation more in the window."""
    denoised: Tensor = args["denoised"]
    sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
    if not guidance.window.holds(Step.of(args["model"], args["input"], args["sigma"], sigmas)):
        return denoised
    options = _weakened(args["model_options"], guidance.kind, layers)
    (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
    result = denoised + guidance.scale * (args["cond_denoised"] - weak)
    if guidance.rescale:
        over = tuple(range(1, result.ndim))
        factor = args["cond_denoised"].std(dim=over, keepdim=True) / result.std(dim=over, keepdim=True)
        result = result * (guidance.rescale * factor + 1 - guidance.rescale)
    return result


def _weakened(model_options: Options, kind: str, layers: Sequence[int]) -> Options:
    """Model options of a weak pass; those given stay as they are."""
    options = dict(model_options.get("transformer_options", {}))
    replaced = dict(options.get("patches_replace", {}))
    blocks = dict(replaced.get("dit", {}))
    for layer in layers:
        place = ("double_block", layer)
        blocks[place] = _skip if kind == "skip" else partial(_with_values, blocks.get(place))
    options |= {"patches_replace": {**replaced, "dit": blocks}}
    return {**model_options, "transformer_options": options}


def _skip(args: Options, extra: Options) -> Options:
    """A block replacement: the block is not there."""
    return args


def _with_values(previous: Callable[..., Options] | None, args: Options, extra: Options) -> Options:
    """A block replacement: its self-attention, which is its first attention, gives every token its own value."""
    options = args["transformer_options"]
    pending = [True]
    others: Any = options.get(_OVERRIDE)

    def attend(function: Any, *inputs: Any, **named: Any) -> Tensor:
        if not pending:
            result: Tensor = others(function, *inputs, **named) if others is not None else function(*inputs, **named)
            return result
        pending.clear()
        values: Tensor = inputs[2]
        return values.transpose(1, 2).flatten(2) if named.get("skip_reshape") else values

    args = {**args, "transformer_options": {**options, _OVERRIDE: attend, _VALUES: pending}}
    out: Options = previous(args, extra) if previous is not None else extra["original_block"](args)
    return out


def take_value_attention(options: Options) -> bool:
    """Whether the self-attention that asks is to give every token its own value; the next one is not.

    For a forward pass that does its attention itself.
    """
    pending: list[bool] = options.get(_VALUES, [])
    found = bool(pending)
    pending.clear()
    return found
