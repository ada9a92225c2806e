"""A motion adapter's file: read, checked, attached to a model, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save
from torch import Tensor

from ...film.motion import AdapterInfo, MotionError, MotionLayers
from ...film.motion.adapter import FILE_KEYS
from ...film.reel.atomic import whole_file
from ..wan.joint_latent import JointLatent, check_model, install
from .lora_file import LoRAFileError, attach_lora, read_lora

__all__ = ["MotionAdapter", "attach", "read_adapter", "write_adapter", "zero_adapter"]


@dataclass(frozen=True, eq=False)
class MotionAdapter:
    """What a file holds. layers: weights by their names in MotionLayers. trunk: a LoRA, or differences of weights, in
    ComfyUI's generic names; may be empty.
    """

    name: str
    info: AdapterInfo
    layers: Mapping[str, Tensor]
    trunk: Mapping[str, Tensor]


def read_adapter(path: Path) -> MotionAdapter:
    """Read a file. Raises MotionError if it is no motion adapter, or is not whole."""
    try:
        weights, metadata = read_lora(path)
    except LoRAFileError as error:
        raise MotionError(str(error)) from error
    try:
        info = AdapterInfo.from_metadata(metadata)
    except MotionError as error:
        raise MotionError(f"{path.name}: {error}") from error
    wanted = {name: key for name, key in FILE_KEYS.items() if name != "modulation" or info.head == "separate"}
    missing = [key for key in wanted.values() if key not in weights]
    if missing:
        raise MotionError(f"{path.name} lacks {missing[0]}: the file is not whole, save or download it anew.")
    layers = {name: weights.pop(key).float() for name, key in wanted.items()}
    return MotionAdapter(path.name, info, layers, weights)


def write_adapter(path: Path, adapter: MotionAdapter) -> None:
    """Write a file; the trunk's part in the dtype it has."""
    named = {FILE_KEYS[name]: weight.float().contiguous() for name, weight in adapter.layers.items()}
    trunk = {name: weight.contiguous() for name, weight in adapter.trunk.items()}
    with whole_file(path) as part:
        part.write_bytes(save(named | trunk, adapter.info.to_metadata()))  # save_file's only their owner may read


def zero_adapter(model: ModelPatcher, info: AdapterInfo) -> MotionAdapter:
    """The adapter of a model before training: it changes nothing and predicts no motion. For tests and trainers."""
    layers = _layers(info)
    layers.reset(model.model.diffusion_model.head.modulation.float())
    return MotionAdapter("zero", info, layers.state_dict(), {})


def attach(
    model: ModelPatcher,
    adapter: MotionAdapter,
    *,
    lora_strength: float = 1.0,
    motion_strength: float = 1.0,
    return_motion: bool = False,
    seed_offset: int = 0,
    start: Tensor | None = None,
) -> ModelPatcher:
    """A clone of `model` with the adapter: the trunk's part as a stock patch, the layers as an additional model.

    The parameters but the first two are JointLatent's. Raises MotionError if the adapter does not fit.
    """
    check_model(model, adapter.info, adapter.name)
    patched = model
    if adapter.trunk and lora_strength:
        try:
            patched, count = attach_lora(model, adapter.trunk, adapter.name, lora_strength)
        except LoRAFileError as error:
            raise MotionError(str(error)) from error
        if not count:
            raise MotionError(f"Nothing of the trunk in {adapter.name} fits this model: load the model it names.")
    layers = _layers(adapter.info)
    try:
        layers.load_state_dict(dict(adapter.layers))
    except RuntimeError as error:
        raise MotionError(
            f"{adapter.name} is damaged: its layers have other sizes than it says; use another copy."
        ) from error
    layers.requires_grad_(False).eval()
    patcher = comfy.model_patcher.CoreModelPatcher(
        layers,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    joint = JointLatent(layers, adapter.info, motion_strength, return_motion, seed_offset, start)
    return install(patched, patcher, joint)


def _layers(info: AdapterInfo) -> MotionLayers:
    operations: Any = comfy.ops.manual_cast
    return MotionLayers(
        info.dim,
        info.latent_channels,
        info.patch,
        separate=info.head == "separate",
        operations=operations,
        device=torch.device("cpu"),
    )
