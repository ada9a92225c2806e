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
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from .atomic import whole_file
from .checksum import CHECKSUM_DIGITS, checksum, hex_of
from .fingerprint import canonical_json

__all__ = [
    "FileHeader",
    "ReelError",
    "StoredTensors",
    "TensorSlot",
    "link_file",
    "read_header",
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
# safetensors' own limit on a header.
_MAX_HEADER_BYTES = 100_000_000
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
            stamp = _stamp(os.fstat(file.fileno()))
            table, start = _read_table(file, path, stamp[0])
    except OSError as error:
        raise ReelError(f"The reel file {path} cannot be read: {error.strerror}.") from error
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "longreel" not in metadata:
        raise ReelError(f"{path} is a safetensors file but not one of Longreel's: choose a file made by Save Reel.")
    try:
        # The digest comes first: nothing else in a damaged header is believed.
        if metadata["longreel_sha256"] != _digest(metadata["longreel"], table):
            raise ValueError("digest")
        info = json.loads(metadata["longreel"])
        slots = {
            name: TensorSlot(
                path,
                entry["dtype"],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
                info.get("checksums", {}).get(name, ""),
            )
            for name, entry in table.items()
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ReelError(f"{path} is damaged: its description does not match its content; use another copy.") from error
    if info["version"] > FORMAT_VERSION:
        raise ReelError(f"{path} was written by a newer Longreel: update Longreel to open it.")
    end = max((slot.offset + slot.nbytes for slot in slots.values()), default=start)
    if end != stamp[0]:
        raise ReelError(f"{path} is not whole: it has {stamp[0]} bytes and should have {end}; copy or save it again.")
    return FileHeader(path, info, slots, stamp)


def _read_table(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The safetensors header as JSON, and where the tensors' bytes begin."""
    foreign = ReelError(f"{path} is not a reel: choose a file made by Save Reel.")
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > _MAX_HEADER_BYTES:
        raise foreign
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise foreign
    if len(raw) < length:
        raise ReelError(f"{path} is not whole: it ends in its header; copy or save it again.")
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise foreign from error
    return table, 8 + length


def _digest(description: str, table: Mapping[str, Any]) -> str:
    return hashlib.sha256((description + canonical_json(table)).encode("utf-8")).hexdigest()


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_tensor_file(
    path: Path, info: Mapping[str, Any], tensors: Mapping[str, torch.Tensor | TensorSlot], durable: bool = True
) -> None:
    """Writes tensors, and slots of other files, with their description, to `path`: whole or not at all.

    The content goes to a file beside `path` whose name ends with PART_SUFFIX and takes the name `path` at the end. At
    most one tensor is copied in memory. info: JSON-able; gets a `version`. durable: wait until the disk has everything.
    Raises ReelError when the file cannot be written or a source has gone; a file already at `path` then stays.
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
        with whole_file(path, unique=True) as part, part.open("xb") as file:
            file.write(_header(info, table, checksums))
            for name in order:
                checksums[name] = hex_of(_write(file, tensors[name]))
            # Of the same length, now that the checksums are known.
            file.seek(0)
            file.write(_header(info, table, checksums))
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise ReelError(f"{path} cannot be written ({error.strerror}): make room or choose another place.") from error


def _header(info: Mapping[str, Any], table: Mapping[str, Any], checksums: Mapping[str, str]) -> bytes:
    """A file up to its tensors."""
    description = json.dumps({**info, "version": FORMAT_VERSION, "checksums": dict(checksums)}, allow_nan=False)
    metadata = {"format": "pt", "longreel": description, "longreel_sha256": _digest(description, table)}
    header = json.dumps({"__metadata__": metadata, **table}).encode("ascii")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def link_file(source: Path, path: Path) -> bool:
    """Gives a whole file the second name `path` instead of copying it; False where that is impossible."""
    try:
        with whole_file(path, unique=True) as part:
            os.link(source, part)
            # Temporary files are written without waiting for the disk; under its new name the file must last.
            with part.open("rb+") as file:
                os.fsync(file.fileno())
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
        data = _bytes_of(source.detach().to("cpu").contiguous())
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
        raise _changed(source.path)
    return found


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data


def _changed(path: Path) -> ReelError:
    return ReelError(
        f"{path} is damaged: what it holds is not what was written into it; use another copy, or delete it and film "
        "that shot again."
    )


_verified: set[tuple[Path, tuple[int, int, int], str]] = set()
"""Tensors of files as they are now that were compared with their checksums: once in a process is enough."""


class StoredTensors:
    """A handle to the tensors of one shot, or edit, in a file of ours. Compares by identity; never holds a tensor.

    A shot is found in its file by its uid, so the handle also survives the file's replacement by a newer one that still
    has the shot (Save Reel onto the file that was loaded). An owned file goes with the last reference to its handle.
    """

    def __init__(self, header: FileHeader, uid: str, owned: bool = False) -> None:
        """header: of the file; uid: of the shot in it; owned: the file is temporary and belongs to this handle."""
        self.path = header.path
        self.uid = uid
        self._header = header
        self._prefix = self._find_prefix(header)
        if owned:
            weakref.finalize(self, _remove, self.path)

    @property
    def slots(self) -> dict[str, TensorSlot]:
        """The shot's tensors by name, with their places in the file as it is now. Raises ReelError if it is gone."""
        try:
            stamp = _stamp(self.path.stat())
        except OSError as error:
            message = f"The file {self.path} of a filmed shot is gone: film the shot again, or load the reel again."
            raise ReelError(message) from error
        if stamp != self._header.stamp:
            header = read_header(self.path)
            self._prefix = self._find_prefix(header)
            self._header = header
        return _under(self._prefix, self._header.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors; nothing is read."""
        return tuple(_under(self._prefix, self._header.slots))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors on disk; nothing is read."""
        return sum(slot.nbytes for slot in _under(self._prefix, self._header.slots).values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; nothing is read. Raises ReelError if there is none of this name."""
        slots = _under(self._prefix, self._header.slots)
        if name not in slots:
            raise ReelError(f"{self.path} has no tensor {name}: the shot was filmed by another engine; film it again.")
        return slots[name].shape

    def load(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors of these names, on the CPU; all if None. They are mapped from the file, not copied.

        Raises ReelError if the file has gone, or a tensor is not what was written; KeyError for a name that is not
        there.
        """
        slots = self.slots
        wanted = list(slots) if names is None else list(names)
        with safe_open(self.path, framework="pt", device="cpu") as file:
            loaded = {name: file.get_tensor(self._prefix + name) for name in wanted}
        for name, tensor in loaded.items():
            self._verify(name, tensor)
        return loaded

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix.`, under the rest of their names; see load."""
        dotted = f"{prefix}."
        loaded = self.load([name for name in self.names if name.startswith(dotted)])
        return {name.removeprefix(dotted): tensor for name, tensor in loaded.items()}

    def frames(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Frames start .. stop (exclusive) of a tensor [B, C, T, ...]; the rest of it is touched once, to verify it."""
        self.slots  # noqa: B018 - finds the shot again if the file was replaced
        with safe_open(self.path, framework="pt", device="cpu") as file:
            if not self._is_verified(name):
                self._verify(name, file.get_tensor(self._prefix + name))
            part: torch.Tensor = file.get_slice(self._prefix + name)[:, :, start:stop]
            return part

    def verify(self, name: str) -> None:
        """Raises ReelError if a tensor is not what was written, or its file has gone."""
        self.slots  # noqa: B018 - as in frames
        if not self._is_verified(name):
            self.load([name])

    def _is_verified(self, name: str) -> bool:
        return (self.path, self._header.stamp, self._prefix + name) in _verified

    def _verify(self, name: str, tensor: torch.Tensor) -> None:
        slot = self._header.slots[self._prefix + name]
        if slot.checksum and not self._is_verified(name):
            if hex_of(checksum(_bytes_of(tensor))) != slot.checksum:
                raise _changed(self.path)
            _verified.add((self.path, self._header.stamp, self._prefix + name))

    def _find_prefix(self, header: FileHeader) -> str:
        for section in (*header.info["shots"], *header.info.get("edits", ())):
            if section["uid"] == self.uid:
                return str(section["prefix"])
        raise ReelError(f"{self.path} was replaced by a file without this shot: load the reel again.")


def _under(prefix: str, slots: Mapping[str, TensorSlot]) -> dict[str, TensorSlot]:
    return {name.removeprefix(prefix): slot for name, slot in slots.items() if name.startswith(prefix)}


def _remove(path: Path) -> None:
    # On Windows a file cannot go while a tensor mapped from it lives; ComfyUI empties its temporary folder at start.
    with suppress(OSError):
        path.unlink(missing_ok=True)
