"""How the shipped workflows and blueprints are laid out, by what their files say.

`tests/browser/test_workflows.py` measures the same in the editor, where nodes have the sizes that they need.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ..server.harness import REPOSITORY

TITLE = 30
"""Pixels of a node's title, which stands above its position."""
LEAST_ZOOM = 0.6
"""The editor draws text from here on. (Of a file that is opened; a template is always fitted into the window.)"""

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
BLUEPRINTS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
Box = tuple[float, float, float, float]


def graphs(file: Path) -> Iterator[dict[str, Any]]:
    """The graph of a saved workflow and those of its subgraphs."""
    saved = json.loads(file.read_text(encoding="utf-8"))
    yield saved
    yield from (saved.get("definitions") or {}).get("subgraphs", [])


def boxes(graph: dict[str, Any]) -> dict[int, Box]:
    """Left, top, right and bottom of each node, title included."""
    return {
        each["id"]: (
            each["pos"][0],
            each["pos"][1] - TITLE,
            each["pos"][0] + each["size"][0],
            each["pos"][1] + each["size"][1],
        )
        for each in graph["nodes"]
    }


def ends(link: Any) -> tuple[int, int]:
    """The nodes that a link goes from and to."""
    return (link["origin_id"], link["target_id"]) if isinstance(link, dict) else (link[1], link[3])


@pytest.mark.parametrize("file", [*WORKFLOWS, *BLUEPRINTS], ids=lambda file: file.stem)
def test_nodes_stand_apart_and_links_run_to_the_right(file: Path):
    for graph in graphs(file):
        found = boxes(graph)
        for (one, mine), (other, theirs) in combinations(found.items(), 2):
            apart = any(mine[i] >= theirs[i + 2] or theirs[i] >= mine[i + 2] for i in (0, 1))
            assert apart, (one, other)
        inner = [pair for pair in map(ends, graph["links"]) if min(pair) >= 0]  # below 0 are a subgraph's own sockets
        assert not [(source, target) for source, target in inner if found[source][2] >= found[target][0]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_opens_at_its_note(workflow: Path):
    saved = next(graphs(workflow))
    found = boxes(saved)
    notes = [each["id"] for each in saved["nodes"] if each["type"] == "MarkdownNote"]
    first = min(found, key=lambda number: (found[number][0], found[number][1]))
    assert first in notes
    assert found[first][1] == min(top for _, top, _, _ in found.values())
    scale, (x, y) = saved["extra"]["ds"]["scale"], saved["extra"]["ds"]["offset"]
    assert scale >= LEAST_ZOOM
    assert 0 < (found[first][0] + x) * scale < 200
    assert 0 < (found[first][1] + y) * scale < 200


@pytest.mark.parametrize("file", [*WORKFLOWS, *BLUEPRINTS], ids=lambda file: file.stem)
def test_widgets_hold_plain_values(file: Path):
    """A choice saved as an object, as an API prompt may have it, does not reach the node: it fails after the film."""
    for graph in graphs(file):
        for each in graph["nodes"]:
            values = each.get("widgets_values") or []
            assert isinstance(values, list)
            assert not [value for value in values if isinstance(value, dict)], each["type"]
