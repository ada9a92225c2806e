"""The composer's canvas: what is dragged there is what Python draws, and it survives saving and loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Editor

# Two plain pictures, 320 x 160 and 160 x 160, cast on a canvas without a plate.
BUILD = """() => {
    const graph = window.app.graph
    graph.clear()
    const make = (type, x, y, values) => {
        const node = window.LiteGraph.createNode(type)
        node.pos = [x, y]
        graph.add(node)
        for (const [name, value] of Object.entries(values)) node.widgets.find(each => each.name === name).value = value
        return node
    }
    const composer = make('LongreelFirstFrameComposer', 520, 60, {width: 640, height: 320})
    composer.setSize([560, 620])
    const socket = name => composer.inputs.findIndex(each => each.name === name)
    ;[[320, 160], [160, 160]].forEach(([width, height], index) => {
        const image = make('EmptyImage', -260, 60 + 340 * index, {width, height, color: 0xff0000 >> (8 * index)})
        const reference = make('LongreelReference', 20, 60 + 340 * index, {name: ['ball', 'box'][index]})
        image.connect(0, reference, 0)
        reference.connect(0, composer, socket(`references.reference_${index + 1}`))
    })
    composer.connect(0, make('PreviewImage', 1160, 60, {}), 0)
}"""
COMPOSER = "window.app.graph.nodes.find(node => node.type === 'LongreelFirstFrameComposer')"
VALUES = f"() => Object.fromEntries({COMPOSER}.widgets.map(widget => [widget.name, widget.value]))"
DRAWN = f"() => window.app.nodeOutputs[{COMPOSER}.id]?.longreel_canvas?.[0]"


def run(editor: Editor) -> dict[str, Any]:
    """Press Run and wait for what the composer shows."""
    before = editor.run(DRAWN)
    editor.press_run()
    editor.page.wait_for_function(
        f"before => JSON.stringify(({DRAWN})() ?? null) !== JSON.stringify(before)", arg=before
    )
    drawn: dict[str, Any] = editor.run(DRAWN)
    return drawn


def drag(editor: Editor, selector: str, across: float, along: float) -> None:
    """Drag by so many pixels of the canvas, without snapping."""
    stage = editor.page.locator(".longreel-cast-stage").bounding_box()
    grabbed = editor.page.locator(selector).bounding_box()
    assert stage is not None
    assert grabbed is not None
    scale = stage["width"] / 640
    x, y = grabbed["x"] + grabbed["width"] / 2, grabbed["y"] + grabbed["height"] / 2
    mouse = editor.page.mouse
    editor.page.keyboard.down("Alt")
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + across * scale / 2, y + along * scale / 2)
    mouse.move(x + across * scale, y + along * scale)
    mouse.up()
    editor.page.keyboard.up("Alt")


def typed(editor: Editor) -> dict[int, list[int]]:
    """Boxes in the widget's text."""
    head, *lines = editor.run(VALUES)["canvas"].splitlines()
    assert head == "canvas 640 x 320"
    return {int(number): [int(side) for side in box.split()] for number, box in (line.split(": ") for line in lines)}


def test_dragged_boxes_are_what_python_draws(open_editor: Callable[[], Editor]):
    editor = open_editor()
    editor.run(BUILD)
    first = run(editor)
    assert [each["name"] for each in first["references"]] == ["ball", "box"]
    assert editor.run(VALUES)["canvas"] == ""
    editor.page.locator(".longreel-cast-item").nth(1).wait_for()

    drag(editor, '.longreel-cast-item[data-number="2"]', -24, 10)
    assert editor.run(VALUES)["layout"] == "manual"
    x, y, width, height = first["references"][1]["box"]
    assert typed(editor)[2] == pytest.approx([x - 24, y + 10, width, height], abs=2)
    assert typed(editor)[1] == first["references"][0]["box"]
    drag(editor, '.longreel-cast-item[data-number="2"] .longreel-cast-grip', -60, 0)
    assert typed(editor)[2] == pytest.approx([x - 24, y + 10, width - 60, height - 60], abs=2)
    editor.page.locator(".longreel-cast-earlier").click()
    assert list(typed(editor)) == [2, 1]

    value = editor.run(VALUES)["canvas"]
    saved = editor.save()
    editor.run("() => window.app.graph.clear()")
    editor.load(saved)
    assert editor.run(VALUES)["canvas"] == value
    assert editor.run(VALUES)["layout"] == "manual"
    sent = next(each for each in editor.prompt().values() if each["class_type"] == "LongreelFirstFrameComposer")
    assert sent["inputs"]["canvas"] == value

    drawn = run(editor)
    assert [each["number"] for each in drawn["references"]] == [2, 1]
    for each in drawn["references"]:
        assert each["box"] == pytest.approx(typed(editor)[each["number"]], abs=1)
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]


def test_slots_and_reset(open_editor: Callable[[], Editor]):
    editor = open_editor()
    editor.run(BUILD)
    first = run(editor)
    item = '.longreel-cast-item[data-number="2"]'
    editor.page.locator(item).wait_for()
    drag(editor, item, 900, 10)
    x, _, width, _ = typed(editor)[2]
    assert x + width == 640  # not beyond the canvas
    editor.page.locator(item).dblclick()
    assert typed(editor)[2] in [list(slot) for slot in first["slots"]]
    editor.page.locator(".longreel-cast-reset").click()
    values = editor.run(VALUES)
    assert (values["canvas"], values["layout"]) == ("", "auto")
