"""Texts on a console that cannot print them all: prompts, names and messages may be in any language."""

from __future__ import annotations

import io
import sys

__all__ = ["print_anything"]


def print_anything() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, where they would raise UnicodeEncodeError.

    For commands, at their start: a long run must not end for the sake of a line about it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
