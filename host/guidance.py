"""Guidance: which predictions a denoising step needs of a model, and how they make one.

A part of the guidance names its passes, one model evaluation each under a conditioning of its own, and says for every
step which of them count how much. All parts of a run chain in one function: the pair that guides the prompt goes
through ComfyUI's own cfg_function, so that hooks of other packs act on it, and the other terms are added to that.
The parts are used as a GUIDER (`Guider`) or as a patch of a MODEL that any sampler takes (`patch_guidance`).

Sources: classifier-free guidance, Ho and Salimans 2022 (2207.12598); two conditions, Brooks et al. 2023 (2211.09800);
inner guidance, VideoJAM (2502.02492) section 4.3; guidance of an image-to-video model by frames and text, AID
(2406.06465) section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import torch
from comfy.samplers import CFGGuider, calc_cond_batch, cfg_function
from node_helpers import conditioning_set_values
from torch import Tensor

__all__ = [
    "Cfg",
    "DualCfg",
    "Formula",
    "Guidance",
    "GuidanceError",
    "Guider",
    "InnerGuidance",
    "SpatioTemporalGuidance",
    "Step",
    "Term",
    "Window",
    "evaluations",
    "patch_guidance",
]

Conds = dict[str, list[Any]]
"""Conditionings by the name of their pass, as ComfyUI's samplers hold them: lists of dicts with "model_conds"."""

_KEY = "longreel_guidance"
_WRAPPERS = comfy.patcher_extension.WrappersMP
_CALC = "sampler_calc_cond_batch_function"
# A schedule is a table of a thousand noise levels: what lies within a step of it is the same level.
_LEVEL = 1.002


class GuidanceError(ValueError):
    """Guidance that cannot be; the message is one sentence that says what to change."""


@dataclass(frozen=True, eq=False)
class Step:
    """A model call of a sampling run.

    sigma: noise level. index: of the sampler's step that the call belongs to, from 0; steps: how many there are. shape:
    of the latent, [B, C, T, h, w] or [frames, C, h, w]. model: ComfyUI's BaseModel, asked for its noise schedule.
    """

    sigma: float
    index: int
    steps: int
    shape: tuple[int, ...]
    model: Any

    @classmethod
    def of(cls, model: Any, x: Tensor, timestep: Tensor, sigmas: Tensor) -> Step:
        """The step of a call. timestep: [B] sigmas; sigmas: the run's, falling."""
        sigma = float(timestep.max())
        # Samplers of higher order ask between two steps too: these calls belong to the step that was begun.
        index = max(int((sigmas[:-1] >= sigma - 1e-5).sum()) - 1, 0)
        return cls(sigma, index, len(sigmas) - 1, tuple(x.shape), model)


@dataclass(frozen=True)
class Window:
    """The part of a sampling run in which something acts.

    start, end: 0..1 from the first step to the last; end is outside. unit: "steps" counts the sampler's own steps,
    whatever their noise; "sigma" takes core's percent of the noise schedule, the same for every number of steps. Raises
    GuidanceError for a window that is none.
    """

    start: float = 0.0
    end: float = 1.0
    unit: Literal["steps", "sigma"] = "steps"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise GuidanceError(f"The window runs from {self.start:g} to {self.end:g}: set 0 <= start <= end <= 1.")

    def holds(self, step: Step) -> bool:
        """Whether it acts in a call."""
        if step.sigma <= 0.0:
            return False
        if self.unit == "steps":
            return self.start <= step.index / step.steps < self.end
        first, last = (float(step.model.model_sampling.percent_to_sigma(part)) for part in (self.start, self.end))
        return self.start < self.end and last * _LEVEL < step.sigma <= first * _LEVEL


@dataclass(frozen=True, eq=False)
class Term:
    """weight * (prediction of `toward` - prediction of `away`). A tensor's weight broadcasts over the latent."""

    weight: float | Tensor
    toward: str
    away: str

    def of(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """The term's value, of the predictions' shape."""
        difference = predictions[self.toward] - predictions[self.away]
        weight = self.weight.to(difference) if isinstance(self.weight, Tensor) else self.weight
        return difference * weight

    def is_about(self, value: float) -> bool:
        """Whether the weight is this everywhere."""
        return not isinstance(self.weight, Tensor) and math.isclose(self.weight, value, abs_tol=1e-9)


@dataclass(frozen=True, eq=False)
class Formula:
    """A step's guided prediction: p[base.away] + base's term + the other terms.

    base: the pair that guides the prompt; None in a part that only adds to what guides it.
    """

    base: Term | None
    terms: tuple[Term, ...] = ()

    def needed(self, *, optimise: bool = True) -> set[str]:
        """Passes that count. optimise: a base of weight 1 is its `toward` alone, as in ComfyUI without
        `disable_cfg1_optimization`."""
        counted = [term for term in self.terms if not term.is_about(0.0)]
        names = {name for term in counted for name in (term.toward, term.away)}
        if self.base is None:
            return names
        if not (optimise and self.base.is_about(1.0)):
            return names | {self.base.toward, self.base.away}
        # p[middle] + 1 * (p[toward] - p[middle]): the middle cancels, where nothing else asks for it.
        asking = [term for term in counted if self.base.toward in (term.toward, term.away)]
        cancels = len(asking) == 1 and asking[0].away == self.base.toward and asking[0].is_about(1.0)
        return names - {self.base.toward} if cancels else names | {self.base.toward}

    def apply(self, predictions: Mapping[str, Tensor], guided: Tensor | None = None) -> Tensor:
        """The guided prediction. guided: what the base gave where another function made it."""
        if guided is None:
            assert self.base is not None
            guided = predictions[self.base.away] + self.base.of(predictions)
        for term in self.terms:
            if not term.is_about(0.0):
                guided = guided + term.of(predictions)
        return guided


@dataclass(frozen=True)
class Guidance:
    """One part of the guidance. passes: names of the conditionings it reads, in the order in which they are run."""

    passes: ClassVar[tuple[str, ...]] = ()

    def at(self, step: Step) -> Formula:
        """What it asks for in a call."""
        raise NotImplementedError

    def derive(self, conds: Conds) -> Conds:
        """Conditionings with those passes added that are made of others. They are ready for the model: on its device,
        with everything in "model_conds"; lists and dicts are shared and must be copied where changed."""
        return conds

    def finish(self, denoised: Tensor, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """The guided prediction with what is no sum of predictions, a rescaling for example."""
        return denoised


@dataclass(frozen=True)
class Cfg(Guidance):
    """Classifier-free guidance: negative + cfg * (positive - negative). cfg: 1 for none."""

    passes = ("positive", "negative")
    cfg: float = 1.0

    def at(self, step: Step) -> Formula:
        """The same in every step."""
        return Formula(Term(self.cfg, "positive", "negative"))


@dataclass(frozen=True)
class DualCfg(Guidance):
    """Text and references guide with weights of their own, as core's Dual CFG Guider does it.

    cfg: the text's weight; reference_cfg: the references'. middle: the pass that has one of the two, the references, or
    with `text_first` the text. Hooks of other packs see the pair of middle and negative.
    """

    passes = ("negative", "middle", "positive")
    cfg: float = 1.0
    reference_cfg: float = 1.0
    text_first: bool = False

    def at(self, step: Step) -> Formula:
        """The same in every step."""
        second, first = (self.reference_cfg, self.cfg) if self.text_first else (self.cfg, self.reference_cfg)
        return Formula(Term(first, "middle", "negative"), (Term(second, "positive", "middle"),))


@dataclass(frozen=True)
class InnerGuidance(Guidance):
    """A model guided by its own prediction of the motion: scale * (positive - nomotion) beside the prompt's guidance.

    With cfg = 1 + w1 and scale = w2 that is (1 + w1 + w2) positive - w1 negative - w2 nomotion (VideoJAM, section 4.3;
    w1 = 5, w2 = 3, in the first half of the steps). nomotion: the positive pass without the motion's latent.
    """

    passes = ("positive", "nomotion")
    scale: float = 3.0
    window: Window = Window(0.0, 0.5)

    def at(self, step: Step) -> Formula:
        """Its term inside the window, nothing outside."""
        return Formula(None, (Term(self.scale, "positive", "nomotion"),) if self.window.holds(step) else ())


@dataclass(frozen=True)
class SpatioTemporalGuidance(Guidance):
    """Known frames and text guide apart: negative + s_V (no_text - negative) + s_T (positive - no_text).

    negative: without both; no_text: the frames alone; positive: both. visual: s_V at the first and at the last frame,
    linear between; text: s_T, 0 outside the window.
    """

    passes = ("negative", "no_text", "positive")
    visual: tuple[float, float] = (1.0, 2.0)
    text: float = 3.0
    window: Window = Window()

    def at(self, step: Step) -> Formula:
        """Three passes; two where the frames' weight is the text's and the middle cancels, or the text has none."""
        first, last = self.visual
        text = self.text if self.window.holds(step) else 0.0
        if math.isclose(first, last) and math.isclose(first, text):
            return Formula(Term(text, "positive", "negative"))
        frames = Term(first if math.isclose(first, last) else _over_frames(first, last, step), "no_text", "negative")
        return Formula(frames, (Term(text, "positive", "no_text"),))


def _over_frames(first: float, last: float, step: Step) -> Tensor:
    """Weights from the first frame to the last, broadcastable: frames lie on axis 2 of five, on axis 0 of four."""
    axis = 2 if len(step.shape) == 5 else 0
    sides = [1] * len(step.shape)
    sides[axis] = step.shape[axis]
    return torch.linspace(first, last, step.shape[axis]).view(sides)


class Guider(CFGGuider):
    """ComfyUI's GUIDER of parts. conds: CONDITIONING by the name of the pass; those that parts derive are left out.

    The last part with a base guides the prompt, the others add their terms.
    """

    def __init__(
        self, model: comfy.model_patcher.ModelPatcher, parts: Sequence[Guidance], conds: Mapping[str, list[Any]]
    ) -> None:
        super().__init__(model)
        self.parts = tuple(parts)
        # What other packs read of a guider.
        self.set_cfg(next((part.cfg for part in parts if isinstance(part, (Cfg, DualCfg))), 1.0))
        self.inner_set_conds(
            {
                # What core's own guiders say of passes beyond the two that it knows.
                name: cond if name in Cfg.passes else conditioning_set_values(cond, {"prompt_type": "negative"})
                for name, cond in conds.items()
            }
        )

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided prediction of a call."""
        return _predict(self.parts, self.inner_model, self.conds, x, timestep, model_options or {})


def patch_guidance(
    model: comfy.model_patcher.ModelPatcher, part: Guidance, given: Mapping[str, list[Any]] | None = None
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that is guided by the part, too, whatever samples it; parts patched one after the other chain.

    given: CONDITIONING of passes that the sampler does not have and the part does not derive. The prompt is guided by
    the sampler's cfg unless the part has a base of its own.
    """
    parts, conds = _patched(model)
    clone = model.clone()
    for kind in (_WRAPPERS.OUTER_SAMPLE, _WRAPPERS.PREDICT_NOISE):
        clone.remove_wrappers_with_key(kind, _KEY)
    clone.add_wrapper_with_key(_WRAPPERS.OUTER_SAMPLE, _KEY, partial(_give, {**conds, **(given or {})}))
    clone.add_wrapper_with_key(_WRAPPERS.PREDICT_NOISE, _KEY, partial(_guide, (*parts, part)))
    return clone


def evaluations(
    parts: Sequence[Guidance], model: comfy.model_patcher.ModelPatcher, sigmas: Tensor, shape: Sequence[int] = ()
) -> list[int]:
    """Model evaluations of each step of a run, where the sampler calls once a step. shape: of the latent."""
    steps = [Step(float(sigma), i, len(sigmas) - 1, tuple(shape), model.model) for i, sigma in enumerate(sigmas[:-1])]
    return [len(_formula(parts, step).needed()) for step in steps]


def _patched(model: comfy.model_patcher.ModelPatcher) -> tuple[tuple[Guidance, ...], dict[str, list[Any]]]:
    """Parts that a model carries, and their given conditionings."""
    guides = model.get_wrappers(_WRAPPERS.PREDICT_NOISE, _KEY)
    gives = model.get_wrappers(_WRAPPERS.OUTER_SAMPLE, _KEY)
    return (guides[0].args[0] if guides else (), gives[0].args[0] if gives else {})


def _give(
    given: Mapping[str, list[Any]], executor: comfy.patcher_extension.WrapperExecutor, *args: Any, **named: Any
) -> Any:
    """OUTER_SAMPLE wrapper: the guider prepares the given conditionings with its own."""
    guider = executor.class_obj
    for name, cond in given.items():
        guider.conds[name] = comfy.sampler_helpers.convert_cond(
            conditioning_set_values(cond, {"prompt_type": "negative"})
        )
    return executor(*args, **named)


def _guide(
    parts: Sequence[Guidance],
    executor: comfy.patcher_extension.WrapperExecutor,
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
    seed: int | None,
) -> Tensor:
    """PREDICT_NOISE wrapper. Where nobody else predicts, all passes run in one batch; else theirs is the base."""
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


def _formula(parts: Sequence[Guidance], step: Step) -> Formula:
    """All parts' formulas as one: the last base, all terms."""
    formulas = [part.at(step) for part in parts]
    bases = [formula.base for formula in formulas if formula.base is not None]
    return Formula(bases[-1] if bases else None, tuple(term for formula in formulas for term in formula.terms))


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

    guided: what somebody else's guider predicted; it is the base where no part has one.
    """
    step = Step.of(model, x, timestep, options["transformer_options"]["sample_sigmas"])
    formula = _formula(parts, step)
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
