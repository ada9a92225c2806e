"""Node expansion: what a node that expands into others passes to them outside their inputs.

ComfyUI caches each node that an expansion makes under its inputs. What should not decide whether a shot is filmed again
(how many shots follow, which line of text to show) therefore travels beside the inputs, on the entry of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

_KEY = "longreel_note"


def input_link(name: str) -> list[Any] | None:
    """Where an input of the executing node comes from, [node id, output]; None if it is not connected."""
    link: list[Any] | None = _entry()["inputs"].get(name)
    return link


def leave_note(entry: dict[str, Any], note: Mapping[str, Any]) -> None:
    """Put JSON-able values on a node of an expansion that the node can read when it executes."""
    entry[_KEY] = dict(note)


def own_note() -> dict[str, Any]:
    """What the expansion that made the executing node left for it; empty for a node of the graph itself."""
    note: dict[str, Any] = _entry().get(_KEY, {})
    return note


def _entry() -> dict[str, Any]:
    context = get_executing_context()
    assert context is not None, "only a node that ComfyUI executes has a place in its graph"
    entry: dict[str, Any] = get_progress_state().dynprompt.get_node(context.node_id)
    return entry
