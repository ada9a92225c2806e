"""Causal checkpoints in ComfyUI's model folders: which there are, and each as a file that core's loader opens.

What is converted is written once, into the folder `longreel` of the user's own diffusion_models (LoRAs: loras) folder,
and used again as long as it is newer than what it was made from.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open

from .checkpoints import CheckpointError, convert, convert_lora

__all__ = ["causal_sources", "load_causal", "source_path"]

_INDEX = "diffusion_pytorch_model.safetensors.index.json"


def causal_sources() -> list[str]:
    """Names of everything that may be a causal checkpoint: files of diffusion_models, and sharded folders, with a /."""
    files = folder_paths.get_filename_list("diffusion_models")
    folders = {
        f"{index.parent.relative_to(root).as_posix()}/"
        for root in map(Path, folder_paths.get_folder_paths("diffusion_models"))
        for index in root.rglob(_INDEX)
    }
    return sorted(folders) + [name for name in files if f"{Path(name).parent.as_posix()}/" not in folders]


def source_path(kind: str, name: str) -> Path:
    """The file or sharded folder of that name. Raises CheckpointError if it has gone."""
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        if (root / name).exists():
            return root / name
    raise CheckpointError(f"There is no {name} in the folder {kind}: press R to look again, and choose another.")


def load_causal(
    checkpoint: str, lora: str | None = None, *, patch: bool = False, strength: float = 1.0, ema: bool = False
) -> ModelPatcher:
    """A causal Wan model from a released checkpoint, converted first if core cannot open it as it is.

    checkpoint, lora: names of causal_sources() and of the folder loras. patch: apply the LoRA as ComfyUI's LoRA loader
    does, at `strength`, and do not merge it. ema: take the averaged weights where a file has both. Raises
    CheckpointError.
    """
    source = source_path("diffusion_models", checkpoint)
    addition = None if lora is None else source_path("loras", lora)
    merged = None if patch else addition
    if merged is None and _is_causal(source):
        ready = source
    else:
        parts = [source.stem, *([merged.stem] if merged else []), *(["ema"] if ema else [])]
        ready = _folder("diffusion_models") / f"{'+'.join(parts)}.causal.safetensors"
        if not _newer(ready, source, merged):
            convert(source, ready, lora=merged, ema=ema, overwrite=True)
    model: ModelPatcher = comfy.sd.load_diffusion_model(str(ready))
    if patch and addition is not None:
        stock = _folder("loras") / f"{addition.stem}.safetensors"
        if not _newer(stock, addition):
            convert_lora(addition, stock, overwrite=True)
        weights = comfy.utils.load_torch_file(str(stock), safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0)
    return model


def _folder(kind: str) -> Path:
    # ComfyUI's own folder; what extra_model_paths.yaml adds may be shared or read-only
    folder = Path(folder_paths.models_dir) / kind / "longreel"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"The folder {folder} cannot be made, and the converted file goes there.") from error
    return folder


def _newer(made: Path, *sources: Path | None) -> bool:
    if not made.exists():
        return False
    moments = [file.stat().st_mtime_ns for source in sources if source for file in _files(source)]
    return made.stat().st_mtime_ns > max(moments)


def _files(source: Path) -> list[Path]:
    return sorted(source.iterdir()) if source.is_dir() else [source]


def _is_causal(source: Path) -> bool:
    """Whether core's loader opens it as a causal model: its metadata say so, no tensor does."""
    if source.suffix != ".safetensors":
        return False
    with safe_open(source, framework="pt") as file:
        config = (file.metadata() or {}).get("config", "{}")
    try:
        return bool(json.loads(config)["transformer"]["causal_ar"])
    except (ValueError, KeyError, TypeError):
        return False
