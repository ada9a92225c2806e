"""Which noise schedule a causal model films at: who named it, and why.

All published few-step causal models of Wan but ShotStream are distilled at shift 5 (docs/methods/memflow.md). Only the
header of a safetensors file can say that a model is causal: a GGUF file, or one without that header, opens as plain
Wan with shift 8, which spoils the film without an error. So what the user chose beside the file decides first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from comfy.model_patcher import ModelPatcher

from ..film.kv_memory import LONGLIVE, MEMFLOW, SELF_FORCING, MemorySettings
from ..film.kv_memory.shots import shotstream_sigmas
from ..host.sampling import own_shift, schedule
from ..host.wan.causal_models import check_model, says_causal

__all__ = ["CAUSAL_SHIFT", "CausalSchedule", "causal_schedule", "default_sigmas"]

CAUSAL_SHIFT = 5.0
"""Of Self-Forcing, LongLive and MemFlow."""

_TRAINED_AT_5 = (SELF_FORCING, LONGLIVE, MEMFLOW)


@dataclass(frozen=True)
class CausalSchedule:
    """sigmas: falling from 1 to 0, one step more than steps. reason: which it is and why, a sentence for the user."""

    sigmas: tuple[float, ...]
    reason: str


def causal_schedule(
    model: ModelPatcher, steps: int, memory: MemorySettings = MEMFLOW, loop: Literal["renoise", "euler"] = "renoise"
) -> CausalSchedule:
    """The schedule of `steps` even steps of time from 1 to 0, warped by the shift that this model films at.

    In this order: the memory ShotStream has a schedule of its own; a shift that the user set (ModelSamplingSD3) counts;
    so does the shift of a file whose header says that it is causal; a memory that belongs to a model trained at shift
    5, or the loop of distilled models, means that shift; else the model's own counts. Raises UnsupportedModelError.
    """
    check_model(model)
    if memory.sink_from == "shots":
        return CausalSchedule(shotstream_sigmas(steps), "Schedule: ShotStream's published one (shift 8).")
    own, patched = own_shift(model)
    if patched or says_causal(model):
        why = "set by a node before this one" if patched else "as the model's file says"
        return CausalSchedule(_sigmas(model, steps), f"Schedule: shift {own:g}, {why}.")
    if memory in _TRAINED_AT_5 or loop == "renoise":
        why = "this memory" if memory in _TRAINED_AT_5 else "the loop renoise"
        return CausalSchedule(
            _sigmas(model, steps, CAUSAL_SHIFT),
            f"Schedule: shift {CAUSAL_SHIFT:g}, that of the models that {why} is for; the model's file does not say "
            f"that it is causal and would be taken at {own:g}. For another, put ModelSamplingSD3 before this node.",
        )
    return CausalSchedule(_sigmas(model, steps), f"Schedule: shift {own:g}, the model's own.")


def default_sigmas(model: ModelPatcher, steps: int, memory: MemorySettings = MEMFLOW) -> tuple[float, ...]:
    """The sigmas of causal_schedule for a distilled model."""
    return causal_schedule(model, steps, memory).sigmas


def _sigmas(model: ModelPatcher, steps: int, shift: float | None = None) -> tuple[float, ...]:
    return tuple(float(sigma) for sigma in schedule(model, "simple", steps, shift=shift))
