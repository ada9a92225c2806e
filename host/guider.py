"""Guidance at work: parts of guidance.py as ComfyUI's GUIDER, or as a patch of a MODEL that any sampler takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import comfy.sampler_helpers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider, calc_cond_batch, cfg_function
from node_helpers import conditioning_set_values
from torch import Tensor

from .guidance import Cfg, Conds, DualCfg, Guidance, GuidanceError, Step, Term, formula_of

__all__ = ["Guider", "patch_guidance"]

_KEY = "longreel_guidance"
_CALC = "sampler_calc_cond_batch_function"


class Guider(CFGGuider):
    """ComfyUI's GUIDER of parts. conds: CONDITIONING by the name of the pass; those that parts derive are left out.

    The last part with a base guides the prompt, the others add their terms.
    """

    def __init__(self, model: ModelPatcher, parts: Sequence[Guidance], conds: Mapping[str, list[Any]]) -> None:
        super().__init__(model)
        self.parts = tuple(parts)
        # What other packs read of a guider.
        self.set_cfg(next((part.cfg for part in parts if isinstance(part, (Cfg, DualCfg))), 1.0))
        self.inner_set_conds(
            {
                # What core's own guiders report of passes beyond the two that it has.
                name: cond if name in Cfg.passes else conditioning_set_values(cond, {"prompt_type": "negative"})
                for name, cond in conds.items()
            }
        )

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided prediction of a call."""
        return _predict(self.parts, self.inner_model, self.conds, x, timestep, model_options or {})


def patch_guidance(model: ModelPatcher, part: Guidance, given: Mapping[str, list[Any]] | None = None) -> ModelPatcher:
    """A clone of `model` that is guided by the part, too, whatever samples it; parts patched one after the other chain.

    given: CONDITIONING of passes that the sampler does not have and the part does not derive. The prompt is guided by
    the sampler's cfg unless the part has a base of its own.
    """
    parts, conds = _patched(model)
    clone = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        clone.remove_wrappers_with_key(kind, _KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, partial(_give, {**conds, **(given or {})}))
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, partial(_guide, (*parts, part)))
    return clone


def _patched(model: ModelPatcher) -> tuple[tuple[Guidance, ...], dict[str, list[Any]]]:
    """Parts that a model carries, and their given conditionings."""
    guides = model.get_wrappers(WrappersMP.PREDICT_NOISE, _KEY)
    gives = model.get_wrappers(WrappersMP.OUTER_SAMPLE, _KEY)
    return (guides[0].args[0] if guides else (), gives[0].args[0] if gives else {})


def _give(given: Mapping[str, list[Any]], executor: WrapperExecutor, *args: Any, **named: Any) -> Any:
    """OUTER_SAMPLE wrapper: the guider prepares the given conditionings with its own."""
    guider = executor.class_obj
    for name, cond in given.items():
        guider.conds[name] = comfy.sampler_helpers.convert_cond(
            conditioning_set_values(cond, {"prompt_type": "negative"})
        )
    return executor(*args, **named)


def _guide(
    parts: Sequence[Guidance],
    executor: WrapperExecutor,
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
    seed: int | None,
) -> Tensor:
    """PREDICT_NOISE wrapper. Where no other guider predicts, all passes run in one batch; else its result is the base.
    """
    guider = executor.class_obj
    own: tuple[Guidance, ...] | None = None
    if isinstance(guider, Guider):
        own = guider.parts
    elif type(guider).predict_noise is CFGGuider.predict_noise:
        own = (Cfg(guider.cfg),)
    if own is not None and executor.idx + 1 == len(executor.wrappers):
        return _predict((*own, *parts), guider.inner_model, guider.conds, x, timestep, model_options)
    base = executor(x, timestep, model_options, seed)
    return _predict(parts, guider.inner_model, guider.conds, x, timestep, model_options, base)


def _predict(
    parts: Sequence[Guidance],
    model: Any,
    conds: Conds,
    x: Tensor,
    timestep: Tensor,
    options: dict[str, Any],
    guided: Tensor | None = None,
) -> Tensor:
    """The guided prediction: where all parts, and the hooks of other packs, chain.

    guided: the prediction of another guider; it is the base where no part has one.
    """
    step = Step.of(model, x, timestep, options["transformer_options"]["sample_sigmas"])
    formula = formula_of(parts, step)
    needed = formula.needed(optimise=not options.get("disable_cfg1_optimization", False))
    for part in parts:
        if not needed <= conds.keys():
            conds = part.derive(conds)
    run = {name: conds.get(name) if name in needed else None for part in parts for name in part.passes}
    missing = needed - {name for name, cond in run.items() if cond is not None} - set(Cfg.passes)
    if missing:
        raise GuidanceError(f"Nothing gives the conditioning {', '.join(sorted(missing))} that the guidance reads.")
    predictions = _run_passes(formula.base, model, run, x, timestep, options)
    if formula.base is not None:
        guided = _guided_pair(formula.base, predictions, model, run, x, timestep, options)
    denoised = formula.apply(predictions, guided)
    for part in parts:
        denoised = part.finish(denoised, predictions, step)
    return denoised


def _run_passes(
    base: Term | None, model: Any, run: Mapping[str, Any], x: Tensor, timestep: Tensor, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Predictions by name, in one batch where memory permits; zeros for a pass that is not run, as in ComfyUI.

    Another pack's function that runs passes expects the two of the base and gets these alone.
    """
    calc = options.get(_CALC)
    if base is None or calc is None:
        return dict(zip(run, calc_cond_batch(model, list(run.values()), x, timestep, options)))
    pair = (base.toward, base.away)
    given = {"conds": [run[name] for name in pair], "input": x, "sigma": timestep}
    predictions = dict(zip(pair, calc({**given, "model": model, "model_options": options})))
    others = {name: cond for name, cond in run.items() if name not in pair}
    if any(cond is not None for cond in others.values()):
        predictions |= zip(others, calc_cond_batch(model, list(others.values()), x, timestep, options))
    return predictions


def _guided_pair(
    base: Term,
    predictions: Mapping[str, Tensor],
    model: Any,
    run: Mapping[str, Any],
    x: Tensor,
    timestep: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """The base, with what other packs hook into guidance by the prompt, as in ComfyUI's sampling_function."""
    pair = [predictions[base.toward], predictions[base.away]]
    conds = [run[base.toward], run[base.away]]
    weight = base.weight.to(x) if isinstance(base.weight, Tensor) else base.weight
    for hook in options.get("sampler_pre_cfg_function", []):
        args = {"conds": conds, "conds_out": pair, "cond_scale": weight, "timestep": timestep, "input": x}
        pair = hook({**args, "sigma": timestep, "model": model, "model_options": options})
    guided: Tensor = cfg_function(
        model, *pair, weight, x, timestep, model_options=options, cond=conds[0], uncond=conds[1]
    )
    return guided
