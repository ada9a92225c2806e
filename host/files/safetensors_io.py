"""Weight files on disk: read tensor by tensor, weights only; written whole or not at all."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from safetensors import SafetensorError, safe_open

from ...film.decode import DecodeError, parse_file
from ...film.reel.atomic import whole_file
from ...film.weights_file import weights_fault

__all__ = ["CheckpointError", "StoredTensor", "few", "open_tensors", "write_tensors"]

_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class CheckpointError(ValueError):
    """A file that cannot be used or written; the message is one sentence that says why and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still on disk: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def open_tensors(path: Path, entries: tuple[str, ...], prefer: int = 0) -> dict[str, StoredTensor]:
    """The tensors of a file or folder under the names it gives them; nothing is read into memory that can be mapped.

    entries: names a pickle may keep its weights under; of those it has, the one numbered `prefer` is taken (the last
    if there are fewer). Raises CheckpointError.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}; check the path.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return _open_pickle(path, entries, prefer)
    raise CheckpointError(f"{path.name} is no checkpoint this can read; give a .pt or .safetensors file or a folder.")


def _open_folder(folder: Path) -> dict[str, StoredTensor]:
    """A diffusers folder: the transformer's shards, by their index if there is one."""
    for base in (folder, folder / "transformer"):
        index = base / _INDEX
        if index.is_file():
            try:
                shards = {file.text(255) for file in parse_file(index)["weight_map"].fields().values()}
            except DecodeError as error:
                raise CheckpointError(f"{index} is damaged; download it again.") from error
            # a shard's name comes from the file: it must stay in the folder
            missing = sorted(name for name in shards if Path(name).name != name or not (base / name).is_file())
            if missing:
                raise CheckpointError(f"{base} lacks {few(missing)}; download the folder again.")
            files = [base / name for name in sorted(shards)]
        else:
            files = sorted(base.glob("diffusion_pytorch_model*.safetensors"))
        if files:
            tensors: dict[str, StoredTensor] = {}
            for file in files:
                tensors |= _open_safetensors(file)
            return tensors
    raise CheckpointError(
        f"{folder} holds no diffusion_pytorch_model*.safetensors; give the folder of the transformer."
    )


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    _refuse_others(path)
    try:
        file = safe_open(path, framework="pt")
        names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or not a safetensors file; download it again.") from error

    def stored(name: str) -> StoredTensor:
        return StoredTensor(tuple(file.get_slice(name).get_shape()), lambda: file.get_tensor(name))

    return {name: stored(name) for name in names}


def _open_pickle(path: Path, entries: tuple[str, ...], prefer: int) -> dict[str, StoredTensor]:
    _refuse_others(path)
    mapped = zipfile.is_zipfile(path)
    if not mapped:
        _need_ram(path.stat().st_size, path.name)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors (it may run code) and was not opened; "
            "get it from its authors or as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is damaged or not a checkpoint; download it again.") from error
    found = [content[name] for name in entries if isinstance(content, dict) and isinstance(content.get(name), dict)]
    chosen = found[min(prefer, len(found) - 1)] if found else content
    if not isinstance(chosen, dict):
        raise CheckpointError(f"{path.name} holds no weights; give the file of the generator.")
    tensors = {str(name): value for name, value in chosen.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no weights; give the file of the generator.")

    def stored(value: torch.Tensor) -> StoredTensor:
        return StoredTensor(tuple(value.shape), lambda: value)

    return {name: stored(value) for name, value in tensors.items()}


def _refuse_others(path: Path) -> None:
    if fault := weights_fault(path):
        raise CheckpointError(fault)


def _need_ram(size: int, name: str) -> None:
    available = psutil.virtual_memory().available
    if available < size:
        raise CheckpointError(
            f"{name} needs {size / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; close other programs."
        )


def write_tensors(
    output: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    metadata: dict[str, str],
    overwrite: bool,
) -> Path:
    """Stream tensors into a safetensors file under a temporary name, then rename it: whole or not at all."""
    if output.suffix != ".safetensors":
        raise CheckpointError(f"The output {output.name} must end in .safetensors.")
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; choose another name or allow overwriting.")
    if dtype not in _DTYPE_NAMES:
        raise CheckpointError(f"Weights cannot be written as {dtype}; choose bf16, fp16 or fp32.")
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    largest = max((math.prod(shape) for shape in shapes.values()), default=0)
    # a weight, its change and their sum in fp32
    _need_ram(3 * 4 * largest, output.name)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free < end + len(encoded):
            raise CheckpointError(
                f"{output.name} needs {end / 1e9:.1f} GB on disk and {free / 1e9:.1f} GB are free; make room first."
            )
    except OSError as error:
        raise CheckpointError(f"{output.parent} cannot be written to; choose another folder.") from error
    try:
        with whole_file(output, unique=True) as part, part.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for _, value in values:
                # flattened first: a 0-dimensional tensor has no byte view
                file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written ({error.strerror}); choose another folder.") from error
    return output


def few(names: Iterable[str]) -> str:
    """The first names of a list that may be long, for a message."""
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
