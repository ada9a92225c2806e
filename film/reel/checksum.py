"""A checksum of tensors that costs less than reading them: bits that flip on a disk or on the way are noticed.

The 64-bit words of each 32 KiB are added up, and the sums go through CRC-32. Every single flipped bit changes it, and
so does a page that was zeroed or exchanged with another; it is no protection against intent. It runs at some 8 GB/s on
one core, four times as fast as CRC-32 itself and six times as fast as SHA-256 (docs/reel.md).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHECKSUM_DIGITS", "checksum", "hex_of"]

CHECKSUM_DIGITS = 8
_ROW = 32 << 10


def checksum(data: bytes | memoryview | NDArray[Any], before: int = 0) -> int:
    """Of bytes. before: the checksum of what comes before them, whose length must be a multiple of 32 KiB."""
    flat = np.frombuffer(data, np.uint8)
    whole = len(flat) // _ROW * _ROW
    sums = flat[:whole].view("<i8").reshape(-1, _ROW // 8).sum(axis=1)
    return zlib.crc32(flat[whole:].tobytes(), zlib.crc32(sums.astype("<i8").tobytes(), before))


def hex_of(value: int) -> str:
    """A checksum as it stands in a file."""
    return f"{value:0{CHECKSUM_DIGITS}x}"
