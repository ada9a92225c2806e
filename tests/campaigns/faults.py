"""A disk on which one operation of a run fails, whichever: openings, writes, links, renames, folders, removals."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS)


class Disk:
    """Counts the operations below a folder and fails the one numbered `at`, once, with the error `code`.

    at: from 1; 0 for none.
    """

    def __init__(self, root: Path, at: int = 0, code: int = errno.ENOSPC) -> None:
        self.root, self.at, self.code = str(root), at, code
        self.operations: list[str] = []

    def touch(self, operation: str, path: Any) -> None:
        """One operation. Raises the fault where its turn has come."""
        if not os.fspath(path).startswith(self.root):
            return
        self.operations.append(f"{operation} {os.path.basename(os.fspath(path))}")
        if len(self.operations) == self.at:
            self.strike(path)

    def strike(self, path: Any) -> None:
        """The fault."""
        raise OSError(self.code, os.strerror(self.code), os.fspath(path))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The operations that Path and os give the pack are this disk's until the block ends."""
        originals: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
            originals.append((owner, name, getattr(owner, name)))
            setattr(owner, name, make(getattr(owner, name)))

        try:
            for name in ("mkdir", "unlink"):
                replace(Path, name, self._method(name))
            replace(Path, "open", self._open)
            for owner, name in ((os, "replace"), (os, "link"), (os, "open"), (av, "open")):
                replace(owner, name, self._function(name))
            yield
        finally:
            for owner, name, original in reversed(originals):
                setattr(owner, name, original)

    def _method(self, name: str) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def method(path: Path, *args: Any, **named: Any) -> Any:
                self.touch(name, path)
                return original(path, *args, **named)

            return method

        return make

    def _function(self, name: str) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def function(path: Any, *args: Any, **named: Any) -> Any:
                self.touch(name, path)
                return original(path, *args, **named)

            return function

        return make

    def _open(self, original: Any) -> Any:
        def opened(path: Path, *args: Any, **named: Any) -> Any:
            self.touch("open", path)
            file = original(path, *args, **named)
            writes = isinstance(file, io.BufferedWriter | io.BufferedRandom)
            return _Writer(file, self, path) if writes else file

        return opened


class _Writer:
    """A file whose writes are operations."""

    def __init__(self, file: Any, disk: Disk, path: Path) -> None:
        self._file, self._disk, self._path = file, disk, path

    def write(self, data: Any) -> int:
        self._disk.touch("write", self._path)
        written: int = self._file.write(data)
        return written

    def flush(self) -> None:
        self._disk.touch("flush", self._path)
        self._file.flush()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
