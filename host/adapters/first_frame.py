"""A first-frame LoRA onto a model: its keys made such that ComfyUI loads them, and on the right expert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comfy.model_patcher import ModelPatcher

from ...film.first_frame import FirstFrameError, check_keys, check_pair, expert_of, needs_conversion, to_core_keys
from ...film.first_frame.lora import Expert
from .lora_file import attach_lora, read_lora

__all__ = ["Applied", "apply_lora", "expert_on"]

_EXPERT = "longreel_expert"


@dataclass(frozen=True, eq=False)
class Applied:
    """A model with a LoRA on it. message: a sentence that says how much of it was applied."""

    model: ModelPatcher
    message: str


def apply_lora(model: ModelPatcher, path: Path, strength: float, expert: Expert | None = None) -> Applied:
    """Hang a LoRA on a clone of the model with core's loader.

    expert: which half of a pair the model is; None for a model that films alone. Adapters whose keys ComfyUI would load
    as nothing, without saying so, get keys that it recognises. Raises FirstFrameError if nothing of the file fits the
    model, or if it says that it is for the other expert, in its metadata or in its name; LoRAFileError for a file that
    cannot be read or is of another size.
    """
    weights, metadata = read_lora(path)
    found = expert_of(path.stem, metadata)
    if expert is not None and found is not None and found != expert:
        (fault,) = check_pair(found, None) if expert == "high" else check_pair(None, found)
        raise FirstFrameError(f"{path.name}: {fault}")
    converted = needs_conversion(weights)
    if converted:
        names = to_core_keys(weights)
        weights = {names[key]: value for key, value in weights.items()}
    modules = check_keys(weights).modules
    patched, count = attach_lora(model, weights, path.name, strength, metadata)
    if not count:
        raise FirstFrameError(f"Nothing of {path.name} fits this model: choose a LoRA made for it.")
    if found or expert:
        patched.set_attachments(_EXPERT, found or expert)
    # Keys of another style than the released one are core's to understand; only of these we know how many there are.
    message = f"{path.name}: {count} of {len(modules) or count} modules applied"
    return Applied(patched, message + (", keys converted." if converted else "."))


def expert_on(model: ModelPatcher) -> Expert | None:
    """Which expert's LoRA a model carries, as `apply_lora` noted or as the metadata of another loader's LoRA says."""
    noted: Expert | None = model.attachments.get(_EXPERT)
    return noted or expert_of("", model.attachments.get("lora_metadata"))
