"""The editor opens with our pack in it."""

from __future__ import annotations

from collections.abc import Callable

from ..server.harness import Server
from .conftest import Editor


def test_editor_opens_and_knows_our_nodes(open_editor: Callable[[], Editor], server: Server):
    editor = open_editor()
    ours = {name for name in server.object_info() if name.startswith("Longreel")}
    known = set(editor.run("() => Object.keys(window.LiteGraph.registered_node_types)"))
    assert ours <= known
    assert editor.page.locator("canvas").first.is_visible()
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]
