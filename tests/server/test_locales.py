"""Translations cover every node and every input with what is said of them, and nothing that is gone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from .harness import REPOSITORY, Server
from .test_schema import inputs

SCRIPTS = {"ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh": "[\u4e00-\u9fff]"}
"""The languages that we ship, and the characters in which each is written: kana and kanji, and hanzi."""


def said(entry: dict[str, Any], tooltip: str | None, script: str) -> bool:
    """Whether an input or output has a name, and a tooltip in the language exactly where the schema has one."""
    return bool(entry["name"]) and bool(re.search(script, entry.get("tooltip", ""))) == bool(tooltip)


@pytest.mark.parametrize("language", SCRIPTS)
def test_translation_is_whole(server: Server, language: str):
    translated = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    ours = {name: schema for name, schema in server.object_info().items() if name.startswith("Longreel")}
    script = SCRIPTS[language]
    assert translated.keys() == ours.keys()
    for name, schema in ours.items():
        entry = translated[name]
        assert entry["display_name"], name
        assert re.search(script, entry["description"]), name
        # The editor looks names up with underscores for dots.
        tooltips = {field.replace(".", "_"): options.get("tooltip") for field, _, options in inputs(schema)}
        assert entry["inputs"].keys() == tooltips.keys(), name
        outputs = dict(enumerate(schema.get("output_tooltips") or [None] * len(schema["output"])))
        assert entry["outputs"].keys() == {str(index) for index in outputs}, name
        assert not [each for each, tip in tooltips.items() if not said(entry["inputs"][each], tip, script)], name
        assert not [each for each, tip in outputs.items() if not said(entry["outputs"][str(each)], tip, script)], name
    assert server.get("/i18n")[language]["nodeDefs"].items() >= translated.items()


def test_every_shipped_language_is_tested():
    assert {folder.name for folder in (REPOSITORY / "locales").iterdir()} == SCRIPTS.keys()
