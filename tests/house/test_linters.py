"""Linters, type checker and import contracts, as tests: pytest's last line is the verdict on everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..server.harness import REPOSITORY, load_script

SCRIPTS = tuple(f"scripts/{name}.py" for name in ("comfy", "comfyui_server", "comfyui_setup"))


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        pytest.param(("ruff", "check"), {}, id="ruff"),
        pytest.param(("mypy", "-p", "longreel"), {}, id="mypy-pack"),
        pytest.param(("mypy", "--explicit-package-bases", *SCRIPTS), {"MYPYPATH": "scripts"}, id="mypy-scripts"),
        pytest.param(("lint-imports", "--no-logo"), {}, id="import-contracts"),
    ],
)
def test_clean(command: tuple[str, ...], environment: dict[str, str]):
    # mypy reads the pack under its package name from here: see [tool.mypy] in pyproject.toml.
    load_script("comfyui_setup").link(REPOSITORY, REPOSITORY / ".comfy" / "package" / "longreel")
    program = Path(sys.executable).with_name(command[0] + Path(sys.executable).suffix)
    done = subprocess.run(
        [str(program), *command[1:]],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["longreel", "Longreel-x", "my films"])
def test_clean_under_any_name(name: str, tmp_path: Path):
    """The folder may be called as the package itself, and lie on a path with a space in it."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for file in ("pyproject.toml", *listed.stdout.splitlines()):
        target = tmp_path / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, target)
    program = Path(sys.executable).with_name("ruff" + Path(sys.executable).suffix)
    done = subprocess.run([str(program), "check", "--no-cache"], cwd=tmp_path / name, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
