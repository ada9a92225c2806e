"""Causal checkpoints in ComfyUI's model folders: which there are, and each as a file that core's loader opens.

What is converted is written once, into the folder `longreel` of the user's own diffusion_models (LoRAs: loras) folder.
Its name holds a digest of its sources' paths, since releases share file names (MemFlow/lora.pt, LongLive/lora.pt), and
its metadata the size and time of every file it was made from: it is used again only where these are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

from ...film.decode import DecodeError, parse
from ...film.weights_file import weights_fault
from .checkpoints import MADE_FROM, CheckpointError, convert, convert_lora

__all__ = ["causal_sources", "load_causal", "source_path"]

_NAME_BYTES = 180
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
        ready, made_from = _made("diffusion_models", ".causal", source, merged, "ema" if ema else "")
        if _metadata(ready).get(MADE_FROM) != made_from:
            convert(source, ready, lora=merged, ema=ema, overwrite=True, made_from=made_from)
    model: ModelPatcher = comfy.sd.load_diffusion_model(str(ready))
    if patch and addition is not None:
        stock, made_from = _made("loras", "", addition)
        if _metadata(stock).get(MADE_FROM) != made_from:
            convert_lora(addition, stock, overwrite=True, made_from=made_from)
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


def _made(kind: str, ending: str, *sources: Path | str | None) -> tuple[Path, str]:
    """The file that is made from `sources` (files, folders, and words that say how), and what identifies them now."""
    given = [source for source in sources if source]
    names = [source.stem if isinstance(source, Path) else source for source in given]
    where = json.dumps([str(source.resolve()) if isinstance(source, Path) else source for source in given])
    digest = hashlib.sha256(where.encode()).hexdigest()[:8]
    files = [file for source in given if isinstance(source, Path) for file in _files(source)]
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    # names that leave no room for the rest: 255 bytes are the most, and .part files are longer
    name = os.fsencode("+".join(names))[:_NAME_BYTES].decode("utf-8", "ignore")
    return _folder(kind) / f"{name}-{digest}{ending}.safetensors", json.dumps([where, state])


def _files(source: Path) -> list[Path]:
    return sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]


def _metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata; empty where there is no such file. Raises CheckpointError for a damaged one."""
    if not path.exists():
        return {}
    if fault := weights_fault(path):
        raise CheckpointError(fault)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or not a safetensors file; download it again.") from error


def _is_causal(source: Path) -> bool:
    """Whether core's loader opens it as a causal model: its metadata say so, no tensor does."""
    if source.suffix != ".safetensors":
        return False
    try:
        return bool(parse(_metadata(source).get("config", "{}"))["transformer"]["causal_ar"].raw)
    except DecodeError:
        return False
