"""What the documentation points to is in the repository, and nothing points outside it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ..server.harness import REPOSITORY

OUTSIDE = re.compile(r"\bshared/|\bresearch/\w+\.md|\bthe brief\b|\bbrief'?s?(?: section)? \d", re.IGNORECASE)
DOCS = REPOSITORY / "docs"
MAPS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", DOCS / "map.md", *(DOCS / "methods").glob("*.md")]
TOP = "benchmarks|docs|engines|film|host|kernels|locales|miniature|nodes|scripts|subgraphs|tests|training|web|workflows"
PATH = re.compile(rf"`((?:{TOP})/[\w./*<>-]*)`")
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split("\0") if not listed.returncode else []
    kept = (".py", ".md", ".js", ".toml", ".txt")
    return [REPOSITORY / name for name in names if name.endswith(kept) and Path(name).name != Path(__file__).name]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_nothing_refers_outside_the_repository():
    found = []
    for file in texts():
        if not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if OUTSIDE.search(line):
                found.append(f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.name)
def test_named_paths_exist(page: Path):
    named = PATH.findall(page.read_text(encoding="utf-8"))
    missing = [path for path in named if "<" not in path and not list(REPOSITORY.glob(path.rstrip("/")))]
    assert missing == []


@pytest.mark.parametrize("page", sorted({*MAPS, *DOCS.glob("*.md")}), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    dead = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            dead.append(link)
    assert dead == []


def test_readme_lists_every_node():
    sources = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "nodes").glob("*.py")]
    shown = {name for source in sources for name in re.findall(r'display_name="([^"]+)",\n\s+category', source)}
    listed = set(re.findall(r"^\| ([^|*]+?) \|", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert shown
    assert sorted(shown - listed) == []
