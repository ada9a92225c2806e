"""Commands print what they say on every console."""

from __future__ import annotations

import io
import sys

import pytest
from longreel.film.console import print_anything


def test_a_console_that_lacks_letters_prints_escapes(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding="ascii"))
    print_anything()
    print("caf\u00e9 \u732b", flush=True)  # noqa: T201 - what a command does
    assert buffer.getvalue().decode() == "caf\\xe9 \\u732b\n"
