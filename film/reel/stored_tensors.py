"""Handles to the tensors of stored shots: they hold none, find their file again, and notice what is not as written."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .checksum import checksum, hex_of
from .tensor_file import FileHeader, ReelError, TensorSlot, bytes_of, changed, read_header, stamp_of

__all__ = ["StoredTensors", "losses"]

_verified: set[tuple[Path, tuple[int, int, int], str]] = set()
"""Tensors of files as they are now that were compared with their checksums: once in a process is enough."""


_handles: weakref.WeakSet[StoredTensors] = weakref.WeakSet()
_losses: dict[Path, int] = {}


def losses(folder: Path) -> int:
    """How many handles to files of a folder have lost them since the process began: deleted, cut or replaced by others.

    It only grows, so that whoever keeps what refers to the files knows when to make it again.
    """
    for handle in list(_handles):
        if handle.path.parent == folder and not handle._lost:
            try:
                handle.slots  # noqa: B018 - finds the shot again if the file was replaced
            except ReelError:
                handle._lost = True
                _losses[folder] = _losses.get(folder, 0) + 1
    return _losses.get(folder, 0)


class StoredTensors:
    """A handle to the tensors of one shot, edit or sound in a file of ours. Compares by identity; never holds a tensor.

    A shot is found in its file by its uid, so the handle also survives the file's replacement by a newer one that still
    has the shot (Save Reel onto the file that was loaded). An owned file goes with the last reference to its handle.
    """

    def __init__(self, header: FileHeader, uid: str, owned: bool = False) -> None:
        """header: of the file; uid: of the shot in it; owned: the file is temporary and belongs to this handle."""
        self.path = header.path
        self.uid = uid
        self._header = header
        self._prefix = self._find_prefix(header)
        self._lost = False
        _handles.add(self)
        if owned:
            weakref.finalize(self, _remove, self.path)

    @property
    def slots(self) -> dict[str, TensorSlot]:
        """The shot's tensors by name, with their places in the file as it is now. Raises ReelError if it is gone."""
        try:
            stamp = stamp_of(self.path.stat())
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
        with self._opened() as file:
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
        with self._opened() as file:
            if not self._is_verified(name):
                self._verify(name, file.get_tensor(self._prefix + name))
            part: torch.Tensor = file.get_slice(self._prefix + name)[:, :, start:stop]
            return part

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file, as safetensors reads it: its rules are stricter than those of our header."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                yield file
        except SafetensorError as error:
            raise ReelError(f"{self.path} is damaged: its table of tensors is not whole; use another copy.") from error

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
            if hex_of(checksum(bytes_of(tensor))) != slot.checksum:
                raise changed(self.path)
            _verified.add((self.path, self._header.stamp, self._prefix + name))

    def _find_prefix(self, header: FileHeader) -> str:
        info = header.info
        for section in (*info["shots"], *info.get("edits", ()), *info.get("sounds", ())):
            if section["uid"] == self.uid:
                return str(section["prefix"])
        raise ReelError(f"{self.path} was replaced by a file without this shot: load the reel again.")


def _under(prefix: str, slots: Mapping[str, TensorSlot]) -> dict[str, TensorSlot]:
    return {name.removeprefix(prefix): slot for name, slot in slots.items() if name.startswith(prefix)}


def _remove(path: Path) -> None:
    # On Windows a file cannot go while a tensor mapped from it lives; ComfyUI empties its temporary folder at start.
    with suppress(OSError):
        path.unlink(missing_ok=True)
