"""The shipped workflows in the real editor, in both renderers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..server.harness import REPOSITORY
from .conftest import Editor

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
PROMPTS = REPOSITORY / "tests" / "prompts"

every_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)


def graphs(saved: dict[str, Any]) -> list[Any]:
    """What a saved workflow says, its subgraphs too, without how it is drawn: sizes differ between the renderers."""
    every = [saved, *(saved.get("definitions") or {}).get("subgraphs", [])]
    kept = ("id", "type", "mode", "title", "widgets_values")
    return [
        (
            sorted(([node.get(key) for key in kept] for node in graph["nodes"]), key=lambda node: node[0]),
            sorted([list(link.values()) if isinstance(link, dict) else link for link in graph["links"]]),
        )
        for graph in every
    ]


@every_workflow
def test_template_opens_and_comes_back_the_same(tab: Editor, workflow: Path):
    tab.open_template(workflow.stem)
    opened = tab.save()
    assert graphs(opened) == graphs(json.loads(workflow.read_text(encoding="utf-8")))
    tab.load(opened)
    assert graphs(tab.save()) == graphs(opened)


@every_workflow
def test_editor_sends_the_prompt_that_the_server_tests_run(tab: Editor, workflow: Path, request: pytest.FixtureRequest):
    """With `--update-snapshots` the twin in tests/prompts is written from the workflow."""
    tab.load(json.loads(workflow.read_text(encoding="utf-8")))
    twin = PROMPTS / workflow.name
    if request.config.getoption("--update-snapshots"):
        PROMPTS.mkdir(exist_ok=True)
        twin.write_text(json.dumps(tab.prompt(), indent=1) + "\n", encoding="ascii")
    assert tab.prompt() == json.loads(twin.read_text(encoding="ascii"))


def test_quick_start_runs_and_shows_its_film(open_editor: Callable[[], Editor]):
    editor = open_editor()
    editor.open_template("quickstart")
    editor.press_run()
    video = editor.page.locator("video").first
    video.wait_for(state="visible", timeout=600_000)
    editor.page.wait_for_function("video => video.readyState > 0", arg=video.element_handle())
    width, seconds = video.evaluate("video => [video.videoWidth, video.duration]")
    assert width > 0
    assert seconds > 0
