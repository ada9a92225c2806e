"""Guidance: which predictions a denoising step needs of a model, and how they make one.

A part of the guidance names its passes, one model evaluation each under a conditioning of its own, and says for every
step which of them count how much. All parts of a run chain in one function: the pair that guides the prompt goes
through ComfyUI's own cfg_function, so that hooks of other packs act on it, and the other terms are added to that.
Here is the arithmetic; guider.py runs it, as a GUIDER or as a patch of a MODEL that any sampler takes.

Sources: classifier-free guidance, Ho and Salimans 2022 (2207.12598); two conditions, Brooks et al. 2023 (2211.09800);
inner guidance, VideoJAM (2502.02492) section 4.3; guidance of an image-to-video model by frames and text, AID
(2406.06465) section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

__all__ = [
    "Cfg",
    "Conds",
    "DualCfg",
    "Formula",
    "Guidance",
    "GuidanceError",
    "InnerGuidance",
    "SpatioTemporalGuidance",
    "Step",
    "Term",
    "Window",
    "evaluations",
    "formula_of",
]

Conds = dict[str, list[Any]]
"""Conditionings by the name of their pass, as ComfyUI's samplers hold them: lists of dicts with "model_conds"."""

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
        """The formula of a call."""
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


def formula_of(parts: Sequence[Guidance], step: Step) -> Formula:
    """All parts' formulas as one: the last base, all terms."""
    formulas = [part.at(step) for part in parts]
    bases = [formula.base for formula in formulas if formula.base is not None]
    return Formula(bases[-1] if bases else None, tuple(term for formula in formulas for term in formula.terms))


def evaluations(parts: Sequence[Guidance], model: ModelPatcher, sigmas: Tensor, shape: Sequence[int] = ()) -> list[int]:
    """Model evaluations of each step of a run, where the sampler calls once a step. shape: of the latent."""
    steps = [Step(float(sigma), i, len(sigmas) - 1, tuple(shape), model.model) for i, sigma in enumerate(sigmas[:-1])]
    return [len(formula_of(parts, step).needed()) for step in steps]
