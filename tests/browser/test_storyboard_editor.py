"""The storyboard editor: what is done with its cards by mouse and keyboard is what the node's text says."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from .conftest import Editor

BUILD = """text => {
    const graph = window.app.graph
    graph.clear()
    const node = window.LiteGraph.createNode('LongreelStoryboard')
    node.pos = [100, 100]
    graph.add(node)
    node.setSize([520, 380])
    node.widgets[0].value = text
    node.widgets[0].callback?.(text)
    const { ds } = window.app.canvas
    ds.scale = 1
    ds.offset = [200, 100]
    window.app.canvas.setDirty(true, true)
}"""
NODE = "window.app.graph.nodes.find(node => node.type === 'LongreelStoryboard')"
TEXT = f"() => {NODE}.widgets.find(widget => widget.name === 'text').value"


def build(editor: Editor, text: str) -> None:
    editor.run(BUILD, text)
    editor.page.get_by_role("button", name="Edit shots").wait_for()


def opened(editor: Editor) -> Locator:
    editor.page.get_by_role("button", name="Edit shots").click()
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_role("listitem").first.wait_for()
    return dialog


def says(editor: Editor, text: str) -> None:
    editor.page.wait_for_function(f"text => ({TEXT})() === text", arg=text, timeout=20_000)


def pull(editor: Editor, grabbed: Locator, across: float, along: float) -> None:
    """Drag something by so many pixels."""
    box = grabbed.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = editor.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + across / 2, y + along / 2)
    mouse.move(x + across, y + along)
    mouse.up()


def test_a_story_by_mouse_and_keyboard(open_editor: Callable[[], Editor]):
    editor = open_editor()
    build(editor, "# Mine\nA red ball walks.")
    dialog, keyboard = opened(editor), editor.page.keyboard

    dialog.get_by_role("button", name="Add shot").click()
    keyboard.type("A blue star jumps.\n[2s] It stands.")  # the new shot's words have the focus
    says(editor, "# Mine\nA red ball walks.\n---\nA blue star jumps.\n[2s] It stands.")
    dialog.get_by_label("Shot 2: seconds").fill("4")
    keyboard.press("Tab")
    dialog.get_by_label("Shot 1: start").select_option("continue")
    dialog.get_by_label("Shot 2: references").fill('star.png; "a, b.png"')
    keyboard.press("Enter")
    says(
        editor,
        "start: continue\n# Mine\nA red ball walks.\n---\n"
        'seconds: 4, references: star.png; "a, b.png"\nA blue star jumps.\n[2s] It stands.',
    )
    dialog.get_by_label("Shot 1: start").select_option("cut")
    says(
        editor,
        '# Mine\nA red ball walks.\n---\nseconds: 4, references: star.png; "a, b.png"\n'
        "A blue star jumps.\n[2s] It stands.",
    )
    dialog.get_by_label("Shot 2: references").fill("")
    dialog.get_by_role("button", name="Split shot 2").press("Enter")
    says(
        editor,
        "# Mine\nA red ball walks.\n---\nseconds: 2\nA blue star jumps.\n---\n"
        "seconds: 2, start: continue\n[0s] It stands.",
    )
    dialog.get_by_label("Move shot 3").press("ArrowUp")
    says(
        editor,
        "# Mine\nA red ball walks.\n---\nseconds: 2, start: continue, seed: 2\n[0s] It stands.\n---\n"
        "seconds: 2, seed: 1\nA blue star jumps.",
    )
    expect(dialog.get_by_label("Move shot 2")).to_be_focused()
    keyboard.press("ArrowDown")
    dialog.get_by_label("Length of shot 2").press("ArrowRight")
    says(
        editor,
        "# Mine\nA red ball walks.\n---\nseconds: 2.25, seed: 1\nA blue star jumps.\n---\n"
        "seconds: 2, start: continue, seed: 2\n[0s] It stands.",
    )
    dialog.get_by_label("Ripple").uncheck()
    dialog.get_by_label("Length of shot 2").press("PageDown")
    says(
        editor,
        "# Mine\nA red ball walks.\n---\nseconds: 1.25, seed: 1\nA blue star jumps.\n---\n"
        "seconds: 3, start: continue, seed: 2\n[0s] It stands.",
    )
    dialog.get_by_role("button", name="Skip shot 1").click()
    dialog.get_by_role("button", name="Delete shot 2").click()
    dialog.get_by_role("button", name="Duplicate shot 1").click()
    last = (
        "#| ---\n#| seed: 0\n#| # Mine\n#| A red ball walks.\nseconds: 1.25, seed: 1\nA blue star jumps.\n---\n"
        "seconds: 1.25, seed: 1\nA blue star jumps."
    )
    says(editor, last)
    strip = dialog.get_by_role("group", name="Lengths of the shots").bounding_box()
    assert strip is not None
    pull(editor, dialog.get_by_label("Length of shot 1"), strip["width"] / 5, 0)  # a fifth of 2.5 s
    says(editor, last.replace("1.25", "1.75", 1).replace("---\nseconds: 1.25", "---\nseconds: 0.75"))
    dialog.get_by_role("button", name="Undo").click()
    says(editor, last)
    pull(editor, dialog.get_by_label("Move shot 2"), 0, -600)
    says(
        editor,
        "seconds: 1.25, seed: 1\nA blue star jumps.\n#| ---\n#| seed: 0\n#| # Mine\n#| A red ball walks.\n---\n"
        "seconds: 1.25, seed: 1\nA blue star jumps.",
    )
    keyboard.press("Escape")
    expect(dialog).to_have_count(0)

    text = editor.run(TEXT)
    (saved,) = editor.save()["nodes"]
    assert saved["widgets_values"] == [text]
    assert [each["inputs"] for each in editor.prompt().values()] == [{"text": text}]
    editor.load(editor.save())
    assert editor.run(TEXT) == text
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]


def test_twelve_shots(open_editor: Callable[[], Editor]):
    """Every shot is added, written and set by hand, as fast as a hand that waits for nothing."""
    editor = open_editor()
    build(editor, "A cat.")
    dialog, keyboard = opened(editor), editor.page.keyboard
    words = [f"Scene {number}: a red ball\nwalks." for number in range(1, 13)]
    dialog.get_by_label("Shot 1: what is seen").click()
    keyboard.press("ControlOrMeta+a")
    keyboard.type(words[0])
    adding = dialog.get_by_role("button", name="Add shot")
    for number, text in enumerate(words[1:], start=2):
        if number % 2:
            adding.press("Enter")
        else:
            adding.click()
        keyboard.type(text)
    says(editor, "\n---\n".join(words))
    for number, setting, value in ((3, "seconds", "2.5"), (7, "seed", "42"), (9, "references", "face.png")):
        dialog.get_by_label(f"Shot {number}: {setting}").click()
        keyboard.type(value)
        keyboard.press("Tab")
    dialog.get_by_label("Shot 5: start").press("ArrowDown")
    dialog.get_by_label("Move shot 12").press("ArrowUp")
    expected = list(words)
    for number, line in ((3, "seconds: 2.5"), (5, "start: continue"), (7, "seed: 42"), (9, "references: face.png")):
        expected[number - 1] = f"{line}\n{words[number - 1]}"
    # A shot that moves keeps its seed.
    expected[10:] = [f"seed: 11\n{words[11]}", f"seed: 10\n{words[10]}"]
    says(editor, "\n---\n".join(expected))
    keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert [each["inputs"] for each in editor.prompt().values()] == [{"text": "\n---\n".join(expected)}]
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]


def test_mistakes_are_said_while_one_types(open_editor: Callable[[], Editor], vue_nodes: bool):
    editor = open_editor()
    build(editor, "A cat.")
    told = editor.page.locator(".longreel-board-told")
    expect(told).to_have_text("1 shot, 5 s")
    area = editor.page.locator("[data-node-id] textarea" if vue_nodes else "textarea.comfy-multiline-input").first
    area.fill("sec: 4\nA cat.\n***\nA dog.")
    expect(told).to_contain_text("Line 1: There is no setting `sec`")
    expect(told).to_contain_text("(and 1 more)")
    told.click()
    dialog = editor.page.get_by_role("dialog")
    marks = dialog.locator(".longreel-board-line-wrong")
    expect(marks).to_have_text(["1", "3"])
    dialog.get_by_role("button", name="Line 3").click()
    editor.page.keyboard.type("---")
    expect(marks).to_have_text(["1"])
    says(editor, "sec: 4\nA cat.\n---\nA dog.")
    dialog.get_by_role("button", name="Text", exact=True).click()
    expect(dialog.get_by_role("listitem", name="Shot 1 of 2")).to_contain_text("Line 1: There is no setting `sec`")
    dialog.get_by_label("Shot 1: what is seen").fill("A cat.")
    says(editor, "A cat.\n---\nA dog.")
    expect(dialog.get_by_text("2 shots, 10 s")).to_be_visible()


def test_fifty_shots(open_editor: Callable[[], Editor], vue_nodes: bool, capsys: pytest.CaptureFixture[str]):
    editor = open_editor()
    build(editor, "\n---\n".join(f"seconds: {2 + i % 5}\nShot of ball {i}." for i in range(50)))
    dialog = opened(editor)
    expect(dialog.get_by_label("Move shot 50")).to_be_attached()
    session = editor.page.context.new_cdp_session(editor.page)
    session.send("Performance.enable")

    def script() -> float:
        """Seconds of script so far."""
        found = session.send("Performance.getMetrics")["metrics"]
        return next(float(each["value"]) for each in found if each["name"] == "ScriptDuration")

    for what, name, across, along in (("a card", "Move shot 2", 0, 500), ("a length", "Length of shot 30", 60, 0)):
        before, text = script(), editor.run(TEXT)
        pull(editor, dialog.get_by_label(name, exact=False).first, across, along)
        dragged = script()
        editor.page.wait_for_function(f"text => ({TEXT})() !== text", arg=text)
        renderer = "Nodes 2.0" if vue_nodes else "canvas"
        parts = f"{1000 * (dragged - before):.0f} ms of script, {1000 * (script() - dragged):.0f} ms until written"
        took = f"50 shots, {renderer}: dragging {what} takes {parts}"
        with capsys.disabled():  # measured to be read, no bar: machines differ
            sys.stdout.write(f"\n{took}\n")
    assert editor.run(TEXT).count("\n---\n") == 49
