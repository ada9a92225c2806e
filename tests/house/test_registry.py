"""What `comfy node pack` puts into the registry's archive, and what pyproject.toml says of the pack there."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from ..server.harness import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = (
    *("engines", "film", "host", "kernels", "locales", "miniature"),
    *("nodes", "subgraphs", "training", "web", "workflows"),
)
DEVELOPED = (".ci", ".comfy", ".gitignore", "benchmarks", "scripts", "tests")
MEGABYTES = 60


def git(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("comfy node pack takes what git tracks, and this is no clone")
    return {name for name in listed.stdout.split("\0") if name}


def archive_names() -> set[str]:
    """What is in the archive: what git tracks, without what .comfyignore names in git's own patterns."""
    return git() - git("--cached", "--ignored", f"--exclude-from={REPOSITORY / '.comfyignore'}")


@pytest.fixture(scope="module")
def archive() -> set[str]:
    return archive_names()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_rooms_are_whole_in_the_archive(archive: set[str]):
    assert {name for name in git() if name.split("/")[0] in ROOMS} <= archive
    named = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md")
    assert set(named) <= archive


def test_what_is_for_development_is_left_out(archive: set[str]):
    assert {name for name in archive if name.split("/")[0] in DEVELOPED} == set()
    size = sum((REPOSITORY / name).stat().st_size for name in archive)
    assert size < MEGABYTES * 2**20


def test_links_of_the_readme_lead_into_the_archive_or_are_addresses(archive: set[str]):
    links = LINK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    files = {link.partition("#")[0] for link in links if not link.startswith(("https://", "#"))}
    assert files
    assert sorted(files - archive) == []


def test_no_accelerator_is_a_conflict(project: dict[str, Any]):
    """One that is named makes a conflict of every other one, and of the CPU; all are supported."""
    classifiers = project["project"]["classifiers"]
    assert "Operating System :: OS Independent" in classifiers
    assert [each for each in classifiers if each.startswith("Environment ::")] == []


def test_addresses(project: dict[str, Any], archive: set[str]):
    urls, comfy = project["project"]["urls"], project["tool"]["comfy"]
    assert all(urls[name].startswith(urls["Repository"]) for name in ("Documentation", "Issues"))
    assert urls["Repository"].startswith("https://")
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    owner = urls["Repository"].removeprefix("https://github.com/")
    raw = f"https://raw.githubusercontent.com/{owner}/main/"
    for name in ("Icon", "Banner"):
        path = comfy[name].removeprefix(raw)
        assert path in archive, comfy[name]
        with Image.open(REPOSITORY / path) as picture:
            width, height = picture.size
        # The registry's own bounds: an icon of at most 800 x 400 pixels, a banner of 21 : 9.
        assert (width <= 800 and height <= 400) if name == "Icon" else width * 9 == height * 21


def test_requirements_are_said_alike(project: dict[str, Any]):
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(project["project"]["dependencies"]) == sorted(line for line in lines if line and line[0] != "#")


def test_the_tool_that_packs_agrees(archive: set[str]):
    """pathspec is what comfy-cli reads .comfyignore with."""
    pathspec = pytest.importorskip("pathspec")
    lines = (REPOSITORY / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    spec = pathspec.PathSpec.from_lines("gitwildmatch", patterns)
    assert {name for name in git() if not spec.match_file(name)} == archive
