"""The buttons of Film With Review: what they decide is on the server, and a page that is opened anew shows it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from ..server.film_prompts import SHOTS, Prompt, story
from ..server.harness import Server
from .conftest import Editor
from .test_node_text import numbered

STATUS = "() => document.querySelector('.longreel-review [role=status]')?.textContent ?? ''"


@pytest.fixture
def project(studio: Server, vue_nodes: bool) -> Iterator[str]:
    name = f"buttons {vue_nodes}"
    yield name
    shutil.rmtree(studio.base / "output" / "longreel" / name, ignore_errors=True)


def prompt(project: str) -> Prompt:
    under = story(project, *SHOTS[:2])
    film = under.pop("film")
    del under["video"]
    under["review"] = {"class_type": "LongreelReviewFilm", "inputs": film["inputs"]}
    under["seen"] = {"class_type": "PreviewAny", "inputs": {"source": ["review", 0]}}
    return numbered(under)


def says(editor: Editor, words: str) -> None:
    editor.page.wait_for_function(f"words => ({STATUS})().includes(words)", arg=words)


def press(editor: Editor, name: str) -> None:
    """By keyboard: the button has the focus and is pressed."""
    button = editor.page.get_by_role("button", name=name, exact=True)
    button.focus()
    button.press("Enter")


def test_a_film_is_reviewed_by_buttons(open_editor: Callable[[], Editor], studio: Server, project: str):
    editor = open_editor()
    editor.run("async prompt => { await window.app.loadApiJson(prompt, 'review') }", prompt(project))
    says(editor, "Run films the first shot.")
    assert editor.page.get_by_role("button", name="Approve", exact=True).is_disabled()
    editor.press_run()
    says(editor, "Shot 1 of 2 (seed 0")
    says(editor, "waits for your decision")
    press(editor, "Another seed")
    says(editor, "Shot 1 of 2 (seed 1")
    says(editor, "waits for your decision")
    # Another page, after the first is gone, shows what waits; what it decides is kept by the server.
    editor.page.close()
    editor = open_editor()
    editor.run("async prompt => { await window.app.loadApiJson(prompt, 'review') }", prompt(project))
    says(editor, "Shot 1 of 2 (seed 1")
    press(editor, "Edit")
    editor.page.wait_for_function("() => [...window.app.canvas.selectedItems][0]?.type === 'LongreelStoryboard'")
    press(editor, "Stop here")
    says(editor, "The film ends with shot 1")
    press(editor, "Approve")
    says(editor, "Shot 2 of 2")
    says(editor, "waits for your decision")
    press(editor, "Approve")
    says(editor, "Takes approved: 2")
    editor.page.wait_for_function("() => window.app.ui.lastQueueSize === 0")
    assert studio.get(f"/longreel/projects/{project.replace(' ', '%20')}/review")["waiting"] is None
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]
