"""LoRA files as people have them: read without surprises, put onto a model by core's loader, checked for shape.

Core's loader counts a LoRA of another width as applied and then leaves every weight as it is, with a line in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...film.weights_file import weights_fault

__all__ = ["LoRAFileError", "attach_lora", "read_lora"]


class LoRAFileError(ValueError):
    """A LoRA file that cannot be used; the message is one sentence that says why and what to do."""


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a LoRA file, on the CPU.

    Raises LoRAFileError for a file that cannot be read (a download cut off, a web page, a pickle with code in it) or
    that holds no tensors.
    """
    if fault := weights_fault(path):
        raise LoRAFileError(fault)
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # safetensors, torch and pickle raise what they like
        raise LoRAFileError(f"{path.name} cannot be read as a LoRA, it may be cut off: download it again.") from error
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise LoRAFileError(f"{path.name} holds no weights: choose a LoRA file.")
    return tensors, dict(metadata or {})


def attach_lora(
    model: ModelPatcher,
    weights: Mapping[str, Tensor],
    file: str,
    strength: float,
    metadata: dict[str, str] | None = None,
) -> tuple[ModelPatcher, int]:
    """A clone of `model` with the LoRA on it as core's loader puts it there, and how many weights it patches.

    file: its name, for messages. Raises LoRAFileError where the loader cannot use it, or where a patch has another
    shape than its weight: such a LoRA was made for a model of another size and would change nothing.
    """
    try:
        patched, _ = comfy.sd.load_lora_for_models(model, None, dict(weights), strength, 0.0, lora_metadata=metadata)
    except Exception as error:  # core indexes into tensors of any rank
        raise LoRAFileError(f"{file} is damaged or no LoRA that ComfyUI knows: download it again.") from error
    added = {name: patches[len(model.patches.get(name, ())) :] for name, patches in patched.patches.items() if patches}
    unfit = [name for name, patches in added.items() if not all(_fits(patched, name, patch[1]) for patch in patches)]
    if unfit:
        shape = tuple(comfy.utils.get_attr(patched.model, unfit[0]).shape)
        raise LoRAFileError(
            f"{file} was made for another model, of another size: it does not fit {len(unfit)} of {len(added)} "
            f"weights, such as {unfit[0].removeprefix('diffusion_model.')} {list(shape)}. Choose this model's LoRA."
        )
    return patched, sum(len(patches) for patches in added.values())


def _fits(model: ModelPatcher, name: str, patch: object) -> bool:
    """Whether a low-rank pair or a difference has the shape of its weight; of other kinds core's patcher knows more."""
    weight = comfy.utils.get_attr(model.model, name)
    if isinstance(patch, tuple) and patch and patch[0] == "diff":
        difference, *options = patch[1]
        return tuple(difference.shape) == tuple(weight.shape) or bool(options and options[0].get("pad_weight"))
    if getattr(patch, "name", None) != "lora":
        return True
    up, down, _, middle, _, reshape = patch.weights  # type: ignore[attr-defined]
    if middle is not None or reshape is not None:
        return True
    rows, columns = weight.shape[0], weight[0].numel()
    return up.shape[0] == rows and down[0].numel() == columns and up.shape[1] == down.shape[0]
