"""Tensors on disk: safetensors files written as a stream, whole or not at all, and read lazily.

Film state is several gigabytes a shot. safetensors' own writer wants all tensors of a file in memory at once; this one
holds one at a time and moves tensors from file to file without decoding them. Any safetensors reader opens the result.

A file's metadata has two entries: `longreel`, JSON that describes the content, and `longreel_sha256`, the digest of
that JSON and of the table of tensors. So a damaged header never passes for a good one. The JSON has a checksum of each
tensor's bytes, compared when the tensor is first read; files of before there were checksums are read without.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..decode import DecodeError, Value, parse
from .atomic import Place, whole_file
from .checksum import CHECKSUM_DIGITS, checksum, hex_of
from .fingerprint import canonical_json

__all__ = [
    "FileHeader",
    "ReelError",
    "TensorSlot",
    "bytes_of",
    "changed",
    "foreign",
    "link_file",
    "read_header",
    "stamp_of",
    "write_tensor_file",
]

FORMAT_VERSION = 1

_DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ITEM_BYTES = {name: dtype.itemsize for dtype, name in _DTYPES.items()}
# A film of an hour has some 3 MB. More than this, as JSON, would take gigabytes of memory.
_MAX_HEADER_BYTES = 40_000_000
_COPY_BYTES = 8 << 20


class ReelError(ValueError):
    """A reel or one of its files cannot be used; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class TensorSlot:
    """One tensor of a file: its safetensors dtype name and shape, and where its bytes lie in the file.

    checksum: of the bytes, in hex; "" in files of before there were any.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksum: str = ""


@dataclass(frozen=True)
class FileHeader:
    """The header of a file of ours. info: the JSON given to write_tensor_file; slots: its tensors by name."""

    path: Path
    info: Mapping[str, Any]
    slots: Mapping[str, TensorSlot]
    stamp: tuple[int, int, int]


def read_header(path: Path) -> FileHeader:
    """The header of a file written by write_tensor_file, with the file's extent checked; no tensor is read.

    Raises ReelError if the file is absent, not ours, cut short, damaged, or written by a newer format.
    """
    try:
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            table, start = _read_table(file, path, stamp[0])
    except OSError as error:
        raise ReelError(f"The reel file {path} cannot be read: {error.strerror}.") from error
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("longreel"), str):
        raise ReelError(f"{path} is a safetensors file but not one of Longreel's: choose a file made by Save Reel.")
    try:
        # The digest comes first: nothing else in a damaged header is believed.
        if metadata["longreel_sha256"] != _digest(metadata["longreel"], table):
            raise ValueError("digest")
        description = parse(metadata["longreel"])
        version = description["version"].integer()
    except (KeyError, TypeError, ValueError) as error:
        raise ReelError(f"{path} is damaged: its description does not match its content; use another copy.") from error
    if version > FORMAT_VERSION:
        raise ReelError(f"{path} was written by a newer Longreel: update Longreel to open it.")
    try:
        info = _checked(description)
        sums = description.get("checksums") or Value({})
        slots = {name: _slot(path, start, Value(entry, name), sums.get(name)) for name, entry in table.items()}
    except DecodeError as error:
        raise foreign(path, error) from error
    end = max((slot.offset + slot.nbytes for slot in slots.values()), default=start)
    if end != stamp[0]:
        raise ReelError(f"{path} is not whole: it has {stamp[0]} bytes and should have {end}; copy or save it again.")
    return FileHeader(path, info, slots, stamp)


def _checked(description: Value) -> dict[str, Any]:
    """The description, with what every file has checked."""
    description["kind"].choice(("reel", "shot", "edit", "sound"))
    further = [
        section for name in ("edits", "sounds") if (listed := description.get(name)) for section in listed.list()
    ]
    for section in (*description["shots"].list(), *further):
        section["uid"].text(200)
        section["prefix"].text(200)
    return description.object()


def _slot(path: Path, start: int, entry: Value, sum_: Value | None) -> TensorSlot:
    dtype = entry["dtype"].choice(_ITEM_BYTES)
    shape = tuple(side.integer(0, 1 << 40) for side in entry["shape"].list(16))
    begin, end = (offset.integer() for offset in entry["data_offsets"].list(2, 2))
    if math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
        raise entry["shape"].fault("of the size of its data")
    return TensorSlot(path, dtype, shape, start + begin, end - begin, sum_.text(CHECKSUM_DIGITS) if sum_ else "")


def foreign(path: Path, error: DecodeError) -> ReelError:
    """What to raise for a file with a true digest whose content no version has written."""
    return ReelError(f"{path} was not written by Longreel as it is: {error}; use another copy.")


def _read_table(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The safetensors header as JSON, and where the tensors' bytes begin."""
    stranger = ReelError(f"{path} is not a reel: choose a file made by Save Reel.")
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > _MAX_HEADER_BYTES:
        raise stranger
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise stranger
    if len(raw) < length:
        raise ReelError(f"{path} is not whole: it ends in its header; copy or save it again.")
    try:
        return dict(parse(raw, _MAX_HEADER_BYTES).object()), 8 + length
    except DecodeError as error:
        raise stranger from error


def _digest(description: str, table: Mapping[str, Any]) -> str:
    return hashlib.sha256((description + canonical_json(table)).encode("utf-8")).hexdigest()


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file as it is now from what it was or will be."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_tensor_file(
    path: Path,
    info: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor | TensorSlot],
    durable: bool = True,
    place: Place | None = None,
) -> None:
    """Writes tensors, and slots of other files, with their description, to `path`: whole or not at all.

    The content goes to a file beside `path` whose name ends with PART_SUFFIX and takes the name `path` at the end. At
    most one tensor is copied in memory. info: JSON-able; gets a `version`. durable: wait until the disk has everything.
    place: names the finished file instead. Raises ReelError when the file cannot be written or a source has gone; a
    file already at `path` then stays.
    """
    # By falling size of an element, so that each tensor lies where its elements are aligned.
    order = sorted(tensors, key=lambda name: (-_ITEM_BYTES[_dtype(tensors[name])], name))
    table: dict[str, Any] = {}
    end = 0
    for name in order:
        begin, end = end, end + _nbytes(tensors[name])
        table[name] = {
            "dtype": _dtype(tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    checksums = dict.fromkeys(order, "0" * CHECKSUM_DIGITS)
    try:
        with whole_file(path, unique=True, place=place) as part, part.open("xb") as file:
            file.write(_header(info, table, checksums))
            for name in order:
                checksums[name] = hex_of(_write(file, tensors[name]))
            # Of the same length, now that the checksums are known.
            file.seek(0)
            file.write(_header(info, table, checksums))
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError:
        raise
    except OSError as error:
        raise ReelError(f"{path} cannot be written ({error.strerror}): make room or choose another place.") from error


def _header(info: Mapping[str, Any], table: Mapping[str, Any], checksums: Mapping[str, str]) -> bytes:
    """A file up to its tensors."""
    description = json.dumps({**info, "version": FORMAT_VERSION, "checksums": dict(checksums)}, allow_nan=False)
    metadata = {"format": "pt", "longreel": description, "longreel_sha256": _digest(description, table)}
    header = json.dumps({"__metadata__": metadata, **table}).encode("ascii")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def link_file(source: Path, path: Path, place: Place | None = None) -> bool:
    """Gives a whole file the second name `path` instead of copying it; False where that is impossible. place: as in
    write_tensor_file; its FileExistsError passes.
    """
    try:
        with whole_file(path, unique=True, place=place) as part:
            os.link(source, part)
            # Temporary files are written without waiting for the disk; under its new name the file must last.
            with part.open("rb+") as file:
                os.fsync(file.fileno())
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _dtype(source: torch.Tensor | TensorSlot) -> str:
    return source.dtype if isinstance(source, TensorSlot) else _DTYPES[source.dtype]


def _nbytes(source: torch.Tensor | TensorSlot) -> int:
    return source.nbytes if isinstance(source, TensorSlot) else source.numel() * source.element_size()


def _write(file: BinaryIO, source: torch.Tensor | TensorSlot) -> int:
    """Returns the checksum of what was written."""
    if isinstance(source, torch.Tensor):
        data = bytes_of(source.detach().to("cpu").contiguous())
        file.write(data)
        return checksum(data)
    left, found = source.nbytes, 0
    with source.path.open("rb") as origin:
        origin.seek(source.offset)
        while left:
            block = origin.read(min(left, _COPY_BYTES))
            if not block:
                raise ReelError(f"{source.path} became shorter while it was copied: film or load the reel again.")
            file.write(block)
            found = checksum(block, found)
            left -= len(block)
    if source.checksum and hex_of(found) != source.checksum:
        raise changed(source.path)
    return found


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU; nothing is copied."""
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data


def changed(path: Path) -> ReelError:
    """What to raise where a tensor differs from its checksum."""
    return ReelError(
        f"{path} is damaged: what it holds is not what was written into it; use another copy, or delete it and film "
        "that shot again."
    )
