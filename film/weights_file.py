"""What a file of weights is, looked at before a library opens it: whole and bounded, or what it is instead.

Downloads end as other things than weights: a web page that asks to log in, the pointer that Git LFS keeps in place of
the file, a part. Libraries say of these that a header is invalid; and they wait for a pipe, decompress what is
compressed without a bound, and read headers of 100 MB.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["MAX_HEADER_BYTES", "weights_fault"]

MAX_HEADER_BYTES = 32 << 20
"""Of a safetensors file: the largest models have less than 1 MB, with a workflow in the metadata some more."""

_LFS = b"version https://git-lfs"
_WORDS = (b"Entry not found", b"Invalid username", b"Access to model", b"Repository not found", b"Not Found")
_ZIP = b"PK\x03\x04"


def weights_fault(path: Path) -> str:
    """Why a file cannot be opened as weights, as one sentence that says what to do; empty where nothing is known.

    A file that is not there, or cannot be read, is the caller's to report.
    """
    try:
        if not path.is_file():
            return f"{path.name} is no file: choose a file of weights." if path.exists() else ""
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except (OSError, ValueError):
        return ""
    if not size:
        return f"{path.name} is empty: download it again."
    if start.startswith(_LFS):
        return (
            f"{path.name} is a pointer of Git LFS ({size} bytes) and not the weights: download the file itself, with "
            "`git lfs pull` or from its page."
        )
    words = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if words[:1] == b"<" or words.startswith(_WORDS):
        return (
            f"{path.name} is a web page and not the weights: download the file itself, logged in where its page asks "
            "for it."
        )
    if start.startswith(_ZIP):
        return _archive_fault(path, size)
    if path.suffix in (".safetensors", ".sft"):
        return _header_fault(path, start, size)
    return ""


def _header_fault(path: Path, start: bytes, size: int) -> str:
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or start[8:9] != b"{":
        return f"{path.name} is damaged or not a safetensors file; download it again."
    if length > MAX_HEADER_BYTES:
        return f"{path.name} says it has a header of {length} bytes, which no file of weights has: use another copy."
    if 8 + length > size:
        return f"{path.name} is damaged, it is cut off: download it again."
    return ""


def _archive_fault(path: Path, size: int) -> str:
    """Of torch.save's zip files, whose entries are as they are in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError):
        return f"{path.name} is damaged or cut off: download it again."
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return f"{path.name} is compressed, as no program saves weights: unpack it, or get the file from its authors."
    if sum(entry.file_size for entry in entries) > size:
        return f"{path.name} is damaged: it says it holds more than it has; use another copy."
    return ""
