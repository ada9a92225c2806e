"""The nodes as a public file format: what saved workflows and API prompts rely on, and what a person is told.

`python3 scripts/comfy.py test tests/server/test_schema.py --update-snapshots` takes the present schema over into
`tests/snapshots/object_info.json`. It refuses where saved workflows would break: widget values are saved by position,
so widgets are only ever appended, and a node that goes needs a replacement. (For a node that no release ever held,
delete its entry from the snapshot by hand first.)
"""

from __future__ import annotations

import ast
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import REPOSITORY, Server

SNAPSHOT = REPOSITORY / "tests" / "snapshots" / "object_info.json"
WORKFLOWS = REPOSITORY / "workflows"
BLUEPRINTS = REPOSITORY / "subgraphs"
MODEL_FILE = re.compile(r"\.(safetensors|pt|pth|ckpt)$")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def schemas(server: Server) -> dict[str, Schema]:
    """The schema of each of our nodes, as the server gives it to the editor."""
    ours = {name: schema for name, schema in server.object_info().items() if name.startswith("Longreel")}
    for schema in ours.values():
        schema.pop("python_module")
        for name, _, options in inputs(schema):
            if name in ("file", "checkpoint", "lora", "low_noise_lora"):
                options["options"] = []  # what lies in the folders of this server
    return dict(sorted(ours.items()))


def inputs(schema: Schema) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of every input, those inside dynamic ones too."""

    def walk(groups: Schema, prefix: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        for group in ("required", "optional"):
            for name, (kind, *rest) in groups.get(group, {}).items():
                options = rest[0] if rest else {}
                yield prefix + name, kind, options
                for choice in options.get("options") or ():
                    if isinstance(choice, dict) and "inputs" in choice:
                        yield from walk(choice["inputs"], f"{prefix}{name}.")
                if "template" in options:
                    yield from walk(options["template"]["input"], f"{prefix}{name}.")

    yield from walk(schema["input"], "")


def widgets(schema: Schema) -> list[str]:
    """The names of the inputs whose values a workflow saves, in the order it saves them in."""
    return [
        name
        for name, kind, options in inputs(schema)
        if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")
    ]


def breaks(old: dict[str, Schema], new: dict[str, Schema], replaced: set[str]) -> list[str]:
    """What a workflow saved with the old schemas would stumble over, one sentence each."""
    found = [f"{name} is gone and nothing replaces it" for name in old if name not in new and name not in replaced]
    for name in old.keys() & new.keys():
        before, after = widgets(old[name]), widgets(new[name])
        if after[: len(before)] != before:
            found.append(f"{name}: the widgets {before} became {after}; they may only be appended to")
        if new[name]["output"][: len(old[name]["output"])] != old[name]["output"]:
            found.append(f"{name}: the outputs {old[name]['output']} became {new[name]['output']}")
    return found


def test_schema_is_the_recorded_one(server: Server, schemas: dict[str, Schema], request: pytest.FixtureRequest):
    recorded: dict[str, Schema] = json.loads(SNAPSHOT.read_text(encoding="ascii")) if SNAPSHOT.exists() else {}
    broken = breaks(recorded, schemas, set(server.get("/node_replacements")))
    assert not broken, "\n".join(broken)
    if request.config.getoption("--update-snapshots"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(schemas, indent=1) + "\n", encoding="ascii")
    else:
        assert schemas == recorded, "the schema changed: see the head of this file"


def node(*names: str, output: tuple[str, ...] = ("REEL",)) -> Schema:
    return {"input": {"required": {name: ["INT", {}] for name in names}}, "output": list(output)}


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ({"A": node("x", "y")}, []),
        ({"A": node("x", "y", "z")}, []),
        ({"A": node("x", "y", output=("REEL", "VIDEO"))}, []),
        ({"A": node("y", "x")}, ["only be appended"]),
        ({"A": node("x")}, ["only be appended"]),
        ({"A": node("x", "y", output=("VIDEO",))}, ["outputs"]),
        ({}, ["gone"]),
    ],
)
def test_what_breaks_saved_workflows(new: dict[str, Schema], verdict: list[str]):
    found = breaks({"A": node("x", "y")}, new, set())
    assert len(found) == len(verdict)
    assert all(word in sentence for word, sentence in zip(verdict, found))


def test_replaced_node_breaks_nothing():
    assert breaks({"A": node("x")}, {"B": node("x")}, {"A"}) == []


def test_every_node_of_the_source_is_served(schemas: dict[str, Schema]):
    """Read from the source, as the registry's scanner does: an id that is no literal would be missing there."""
    trees = [ast.parse(file.read_text(encoding="ascii")) for file in (REPOSITORY / "nodes").rglob("*.py")]
    written = [
        keyword.value.value
        for tree in trees
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    ]
    assert written
    assert sorted(written) == list(schemas)


def test_everything_is_explained(schemas: dict[str, Schema]):
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, _, options in inputs(schema)
        if not options.get("tooltip")
    ]
    silent += [
        f"{name}: {what}"
        for name, schema in schemas.items()
        for what in ("description", "display_name")
        if not schema[what]
    ]
    assert not silent


def test_every_node_has_a_help_page(server: Server, schemas: dict[str, Schema]):
    pages = {page.parent.name for page in (REPOSITORY / "web" / "docs").glob("*/en.md")}
    assert pages == set(schemas)
    for name in schemas:
        with urllib.request.urlopen(f"{server.url}/extensions/longreel/docs/{name}/en.md", timeout=10) as page:
            assert page.read(1) == b"#"


def test_readme_lists_every_node(schemas: dict[str, Schema]):
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Nodes")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    names = [row.strip() for row in rows if "**" not in row]  # bold rows are headings
    assert sorted(names) == sorted(schema["display_name"] for schema in schemas.values())


SEARCHES = {
    "character reference": {"LongreelReference", "LongreelAddReferences"},
    "consistent": {"LongreelFilmStoryboard", "LongreelReference", "LongreelCacheGuidedEngine"},
    "long video": {"LongreelFilmStoryboard"},
    "multi-shot": {"LongreelStoryboard", "LongreelFilmStoryboard"},
    "retake": {"LongreelRetakeShot", "LongreelFilmTakes"},
}
"""What a person who does not know our names types, and what the editor should then offer."""


@pytest.mark.parametrize("words", SEARCHES)
def test_nodes_are_found_by_what_people_call_them(schemas: dict[str, Schema], words: str):
    found = {
        name
        for name, schema in schemas.items()
        if any(words in each.lower() for each in (schema["display_name"], *schema["search_aliases"]))
    }
    assert found >= SEARCHES[words]


def test_categories_say_what_one_does(schemas: dict[str, Schema]):
    rooms = {"start", "film", "cast", "memory", "motion", "instruction", "report", "training", "miniature"}
    assert {schema["category"] for schema in schemas.values()} == {f"Longreel/{room}" for room in rooms}


WITHOUT_DOWNLOAD = re.compile(
    r"longreel-miniature-|my-|(base|lora|shotstream_merged)\.pt$|Wan22_FFGO|StoryMem/|ViT-L-14/|clip_h_text"
)
"""Shipped, the user's own, or released where ComfyUI's download does not reach (see the notes)."""


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_workflow_says_where_its_models_are(workflow: Path):
    saved = json.loads(workflow.read_text(encoding="utf-8"))
    for graph in [saved, *(saved.get("definitions") or {}).get("subgraphs", [])]:
        for each in graph["nodes"]:
            files = [value for value in each.get("widgets_values") or [] if MODEL_FILE.search(str(value))]
            told = {model["name"]: model for model in each["properties"].get("models", [])}
            assert set(told) == {name for name in files if not WITHOUT_DOWNLOAD.match(name)}, each["type"]
            for name, model in told.items():
                assert model["url"].startswith("https://huggingface.co/")
                assert model["url"].endswith(f"/{name}")
                assert model["directory"]


def types_used(workflow: Path) -> set[str]:
    """The node types of a saved workflow, those inside its subgraphs too."""
    saved = json.loads(workflow.read_text(encoding="utf-8"))
    graphs = [saved, *(saved.get("definitions") or {}).get("subgraphs", [])]
    return {each["type"] for graph in graphs for each in graph["nodes"]}


def test_every_node_appears_in_a_workflow(schemas: dict[str, Schema]):
    used = set().union(*map(types_used, WORKFLOWS.glob("*.json")))
    assert set(schemas) <= used, sorted(set(schemas) - used)


def test_workflows_use_known_nodes_only(server: Server):
    known = server.object_info().keys()
    for workflow in [*WORKFLOWS.glob("*.json"), *BLUEPRINTS.glob("*.json")]:
        saved = json.loads(workflow.read_text(encoding="utf-8"))
        local = {graph["id"] for graph in (saved.get("definitions") or {}).get("subgraphs", [])} | {
            "Note",
            "MarkdownNote",
        }
        assert types_used(workflow) <= known | local, workflow.name


def test_editor_is_offered_every_blueprint(server: Server):
    shared = {each["name"]: number for number, each in server.get("/global_subgraphs").items() if is_ours(each)}
    assert shared.keys() == {file.stem for file in BLUEPRINTS.glob("*.json")}
    engines = set()
    for name, number in shared.items():
        saved = json.loads(server.get(f"/global_subgraphs/{number}")["data"])
        (outer,), (inner,) = saved["nodes"], saved["definitions"]["subgraphs"]
        assert outer["type"] == inner["id"]
        assert outer["title"] == inner["name"] == name
        assert [each["name"] for each in outer["outputs"]] == ["video", "reel"]
        widgets = {
            (str(each["id"]), slot["widget"]["name"])
            for each in inner["nodes"]
            for slot in each["inputs"]
            if "widget" in slot
        }
        assert {tuple(each) for each in outer["properties"]["proxyWidgets"]} <= widgets
        engines |= {each["type"] for each in inner["nodes"] if each["type"].endswith("Engine")}
    films = {name for name in server.object_info() if re.fullmatch("Longreel.*Engine", name)}
    assert engines == films - {"LongreelRehearsalEngine"}, "which goes between an engine and what films"


def is_ours(blueprint: dict[str, Any]) -> bool:
    return bool(blueprint["info"]["node_pack"] == "custom_nodes.longreel")


def test_template_browser_shows_every_workflow(server: Server):
    names = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
    assert sorted(server.get("/workflow_templates").get("longreel", [])) == names
    for name in names:
        for ending in (".json", ".jpg"):
            with urllib.request.urlopen(
                f"{server.url}/api/workflow_templates/longreel/{name}{ending}", timeout=10
            ) as file:
                assert file.status == 200
