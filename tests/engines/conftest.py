"""ComfyUI on the CPU, and its folders in a temporary place."""

from __future__ import annotations

import sys
from pathlib import Path

import comfy.options

_argv = sys.argv
sys.argv = [_argv[0], "--cpu"]
comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402  (parses now, with our argument)

sys.argv = _argv

import folder_paths  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
