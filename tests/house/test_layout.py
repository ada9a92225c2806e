"""The house rules that no linter knows, most of them the registry's and comfy-test's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_config import config_parser

from ..server.harness import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = [package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if package.count(".") == 1]
SHIPPED = [
    REPOSITORY / "__init__.py",
    *(file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py") if "__pycache__" not in file.parts),
]
WEIGHTS_LIMIT = 60 * 10**6
FORBIDDEN_EVERYWHERE = [r"\.cuda\(", r"\.to\(\s*[\"']cuda", r"sys\.path\b", r"empty_cache\(", r"logging\.basicConfig"]
FORBIDDEN_BUT_IN_TRAINING = [
    r"autocast",
    r"\bnn\.(Linear|Conv[123]d|ConvTranspose[123]d|LayerNorm|GroupNorm|Embedding)\(",
]


def test_package_list_is_whole():
    with_code = {file.parent.relative_to(REPOSITORY) for file in SHIPPED}
    names = {".".join(("longreel", *folder.parts)) for folder in with_code}
    assert names == set(PROJECT["tool"]["setuptools"]["packages"])
    roots = {init.parent.name for init in REPOSITORY.glob("*/__init__.py")}
    assert roots == set(ROOMS), "a room with code must be named in pyproject.toml, and tests/ has no __init__.py"


def test_comfyui_reads_our_metadata():
    """One classifier it does not know would void the whole list."""
    found = config_parser.extract_node_configuration(str(REPOSITORY))
    assert found.project.name == "longreel"
    assert found.project.supported_os == ["OS Independent"]
    assert found.project.supported_accelerators == []
    assert found.tool_comfy.web is None, "WEB_DIRECTORY in Python serves the help pages; both load every script twice"
    assert found.project.dependencies == requirements()


def requirements() -> list[str]:
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_requirements_pin_nothing():
    """What ComfyUI brings is ComfyUI's to choose, and an upper bound of ours could break somebody's environment."""
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", each) for each in requirements())
    brought = {"torch", "torchvision", "numpy", "transformers", "safetensors", "einops", "av", "pillow"}
    assert not brought & {each.split(">=")[0] for each in requirements()}


def test_importing_the_pack_imports_nothing_else():
    probe = "import sys, longreel; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd="/", capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith(("comfy", "torch", "longreel."))] == []


def _room(file: Path) -> str:
    return file.relative_to(REPOSITORY).parts[0]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_source_file(file: Path):
    source = file.read_text(encoding="utf-8")
    assert source.isascii()
    limit = 300 if _room(file) == "nodes" else 400
    assert len(source.splitlines()) <= limit
    # Training picks its own precision and makes its own layers; everything else leaves both to ComfyUI's operations.
    forbidden = FORBIDDEN_EVERYWHERE if _room(file) == "training" else FORBIDDEN_EVERYWHERE + FORBIDDEN_BUT_IN_TRAINING
    code = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in code if re.search("|".join(forbidden), line)] == []
    # ComfyUI imports the pack under another name. (No linter's ban: in a folder called longreel, the name that the
    # README gives, ruff takes the pack's relative imports for absolute ones.)
    assert re.findall(r"^\s*(?:from|import) longreel\b.*", source, re.MULTILINE) == []


def test_one_flat_template_folder():
    others = {"example_workflows", "example", "examples", "workflow"}
    assert not others & {folder.name for folder in REPOSITORY.iterdir()}
    templates = {
        file.relative_to(REPOSITORY / "workflows") for file in (REPOSITORY / "workflows").rglob("*") if file.is_file()
    }
    assert {template.suffix for template in templates} <= {".json", ".jpg"}
    assert all(len(template.parts) == 1 for template in templates)


def test_shipped_weights_stay_small():
    weights = (REPOSITORY / "miniature").rglob("*.safetensors")
    assert sum(file.stat().st_size for file in weights) < WEIGHTS_LIMIT
