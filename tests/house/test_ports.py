"""What keeps models and methods exchangeable: who may know which model family there is, and who samples."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..server.harness import REPOSITORY

# Rooms that are about a family, what converts released files of one, and backends: a class for each kind of weights.
ABOUT_A_FAMILY = re.compile(r"host/(families|wan|svd)/|host/(files/)?checkpoints\.py|engines/\w+_backends\.py")
FAMILY = re.compile(r"(?<![a-z])(wan|svd)(?![a-z])", re.IGNORECASE)
SAMPLING = ("comfy_extras", "comfy.ldm", "comfy.samplers", "comfy.sample", "comfy.k_diffusion")


def _sources(*rooms: str) -> list[Path]:
    return [file for room in rooms for file in sorted((REPOSITORY / room).rglob("*.py"))]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules and names that a file imports, dotted; of the pack's own, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def _names(tree: ast.AST) -> Iterator[str]:
    """Everything that a file calls by a name of its own, in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def _words(name: str) -> str:
    """A name in words: WanVideo, WAN_VAE and wan_vae all have the word wan."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", name)


@pytest.mark.parametrize("file", _sources("engines"), ids=lambda file: file.name)
def test_engines_leave_sampling_and_networks_to_the_host(file: Path):
    found = [name for name in _imports(ast.parse(file.read_text(encoding="utf-8"))) if name.startswith(SAMPLING)]
    assert found == []


@pytest.mark.parametrize(
    "file", _sources("engines", "nodes", "host", "film"), ids=lambda file: str(file.relative_to(REPOSITORY))
)
def test_nothing_above_the_families_names_one(file: Path):
    """A method's engine or node may import the host's room about the weights that the method was published for."""
    place = file.relative_to(REPOSITORY).as_posix()
    if ABOUT_A_FAMILY.match(place):
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = re.compile(r"^\.+(host\.)?(wan|svd)\.")
    names = {*_names(tree), *(name for name in _imports(tree) if not own.match(name))}
    # A reel that says nothing means this one.
    allowed = {"WAN", ".latent_space.WAN"} if place.startswith("film/reel/") else set()
    assert {name for name in names if FAMILY.search(_words(name))} - allowed == set()
