"""Help pages: every node has one in each language that has them, and they speak of the same inputs."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from .harness import REPOSITORY, Server
from .test_schema import inputs

PAGES = REPOSITORY / "web" / "docs"
LANGUAGES = ("en", "zh")
FENCES = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
MARKED = re.compile(r"\*\*([^*]+)\*\*|`([^`\n]+)`")


def named(page: str, names: set[str]) -> set[str]:
    """The inputs that a page speaks of: their names in bold type or as code, outside its examples."""
    marked = ("".join(groups) for groups in MARKED.findall(FENCES.sub("", page)))
    return {word for text in marked for word in re.split(r"\s*[,\u3001]\s*", text)} & names


def test_pages_speak_of_the_same_inputs(server: Server):
    ours = {name: schema for name, schema in server.object_info().items() if name.startswith("Longreel")}
    translated = json.loads((REPOSITORY / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {folder.name for folder in PAGES.iterdir()} == ours.keys()
    assert {file.name for file in PAGES.glob("*/*")} == {f"{language}.md" for language in LANGUAGES}
    for name, schema in ours.items():
        names = {part for field, _, _ in inputs(schema) for part in (field, field.rpartition(".")[2])}
        english, chinese = ((PAGES / name / f"{language}.md").read_text(encoding="utf-8") for language in LANGUAGES)
        assert named(english, names) == named(chinese, names), name
        assert english.splitlines()[0] == f"# {schema['display_name']}"
        assert chinese.splitlines()[0] == f"# {translated[name]['display_name']}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_editor_is_served_a_page(server: Server, language: str):
    """Under the pack's folder, where the editor asks for the page in its own language first."""
    address = f"{server.url}/extensions/longreel/docs/LongreelStoryboard/{language}.md"
    with urllib.request.urlopen(address, timeout=10) as page:
        assert page.read().decode() == (PAGES / "LongreelStoryboard" / f"{language}.md").read_text(encoding="utf-8")
