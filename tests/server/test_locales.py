"""Translations cover every node and every input, and nothing that is gone."""

from __future__ import annotations

import json

import pytest

from .harness import REPOSITORY, Server
from .test_schema import inputs


@pytest.mark.parametrize("language", sorted(folder.name for folder in (REPOSITORY / "locales").iterdir()))
def test_translation_is_whole(server: Server, language: str):
    translated = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    ours = {name: schema for name, schema in server.object_info().items() if name.startswith("Longreel")}
    assert translated.keys() == ours.keys()
    for name, schema in ours.items():
        # The editor looks names up with underscores for dots.
        assert set(translated[name]["inputs"]) == {field.replace(".", "_") for field, _, _ in inputs(schema)}
        assert set(translated[name]["outputs"]) == {str(index) for index in range(len(schema["output"]))}
    assert server.get("/i18n")[language]["nodeDefs"].items() >= translated.items()
