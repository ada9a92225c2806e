"""Files that are the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART_SUFFIX = ".part"


def part_of(path: Path, *, unique: bool = False) -> Path:
    """Where a file is written before it takes the name `path`: beside it. unique: for files that several may write at
    the same time; what a killed writer leaves is then never written over.
    """
    own = f".{uuid.uuid4().hex[:8]}" if unique else ""
    return path.with_name(f"{path.name}{own}{PART_SUFFIX}")


@contextmanager
def whole_file(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yields the path to write to, `part_of(path)`; it takes the place of `path` when the block ends, and is removed
    when it fails, by an interrupt among others.
    """
    part = part_of(path, unique=unique)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
