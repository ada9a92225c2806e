"""Files that are the old one or the whole new one, never a part; new ones that never take another's place.

A part that may have several writers has the host and the process of its writer in its name, so that what a killed
writer left can be told from what a living one is writing: see sweep.
"""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PART_SUFFIX", "Place", "claim", "part_of", "sweep", "whole_file", "write_text"]

PART_SUFFIX = ".part"

Place = Callable[[Path], object]
"""Gives a finished part its name; raises OSError where it cannot."""

_HOST = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node())[:24] or "host"
_OURS = re.compile(r"\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>\d+)\.[0-9a-f]{8}\.part$")
_MAX_NAME_BYTES = 255
# Whether a process of another host lives cannot be asked; nor whether a number was given to another process meanwhile.
_ABANDONED_SECONDS = 24 * 3600.0


def part_of(path: Path, *, unique: bool = False) -> Path:
    """Where a file is written before it takes the name `path`: beside it. unique: for files that several may write at
    the same time; what a killed writer leaves is then never written over.
    """
    own = f".{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}" if unique else ""
    ending = f"{own}{PART_SUFFIX}"
    # A name that is as long as names can be has no room for the ending.
    kept = os.fsencode(path.name)[: _MAX_NAME_BYTES - len(ending)].decode("utf-8", "ignore")
    return path.with_name(f"{kept}{ending}")


@contextmanager
def whole_file(path: Path, *, unique: bool = False, place: Place | None = None) -> Iterator[Path]:
    """Yields the path to write to, `part_of(path)`; it takes the place of `path` when the block ends, and is removed
    when it fails, by an interrupt among others. place: names it otherwise.
    """
    part = part_of(path, unique=unique)
    try:
        yield part
        if place is None:
            os.replace(part, path)
        else:
            place(part)
    finally:
        part.unlink(missing_ok=True)


def claim(part: Path, path: Path) -> None:
    """Gives a finished part the name `path` if nobody has it. Raises FileExistsError, and then leaves both as they are.

    Holds between processes and hosts that share a disk.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # A disk without links: an empty file takes the name, which fails if there is one.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(part, path)
    else:
        part.unlink()


def sweep(folder: Path, *, ours: bool = False) -> None:
    """Removes parts that killed writers left in a folder: of this host, where the process is gone, or untouched for a
    day. Other programs' .part files stay. ours: nothing but our files is there, so old names are ours, too.
    """
    with suppress(OSError):
        for part in folder.glob(f"*{PART_SUFFIX}"):
            # Another process may finish or clear the same file first.
            with suppress(OSError):
                if _is_abandoned(part, ours):
                    part.unlink()


def _is_abandoned(part: Path, ours: bool) -> bool:
    found = _OURS.search(part.name)
    old = time.time() - part.stat().st_mtime > _ABANDONED_SECONDS
    if found is None:
        return ours and old  # named as they were before hosts and processes were in the names
    return old or (found["host"] == _HOST and not _lives(int(found["process"])))


def _lives(process: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
