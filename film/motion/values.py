"""What the files of this folder share."""

from __future__ import annotations

__all__ = ["MotionError"]


class MotionError(ValueError):
    """A motion adapter, flow or guidance that cannot be used as asked; the message says what to change."""
