"""Instructions through the real server: states out of words, and a planner that cannot write."""

from __future__ import annotations

import json

from PIL import Image

from ..server.harness import REPOSITORY, Server
from .film_prompts import node


def test_states_are_read_from_words_and_a_text_encoder_that_cannot_write_falls_back(server: Server):
    Image.new("RGB", (64, 48), "red").save(server.base / "input" / "example.png")
    ask = "the lid is lifted off the box"
    outcome = server.queue(
        {
            "words": node("LongreelStatePrompt", instruction=ask, states=3, detail="plain"),
            "read": node(
                "LongreelReadStates", text="1. The lid is shut.\n2. The lid is off.", instruction=ask, states=3,
                check=True,
            ),
            "shown": node("PreviewAny", source=["words", 0]),
            "encoder": node("LongreelMiniatureTextEncoder", file="longreel-miniature-text.safetensors"),
            "image": node("LoadImage", image="example.png"),
            "plan": node(
                "LongreelPlanStates", language_model=["encoder", 0], image=["image", 0], instruction=ask, states=2,
                detail="plain", seed=0, retries=0,
            ),
        }
    )  # fmt: skip
    assert outcome.succeeded, outcome.error
    shown = json.dumps(outcome.outputs)
    assert "1. The lid is shut.\\n2. The lid is off.\\n3. The lid is off." in shown
    assert "cannot answer" in shown
    assert "JSON list of 3 strings" in shown


def test_prompts_as_shipped_name_nodes_and_inputs_that_exist(server: Server):
    known = server.object_info()
    for name in ("do-this", "plan-states"):
        prompt = json.loads((REPOSITORY / "tests" / "prompts" / f"{name}.json").read_text(encoding="utf-8"))
        for each in prompt.values():
            groups = known[each["class_type"]]["input"]
            assert set(groups.get("required", {})) <= set(each["inputs"])
