"""Every input of every node, left out or of a hostile value, through the API: the prompt runs or ends in one sentence.

Sockets get what the tiny models make. `pytest -m campaign tests/campaigns` tries LONGREEL_FUZZ_BUDGET prompts of
LONGREEL_FUZZ_SEED; a failure names the node, the input and the value.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from .. import tiny_models
from ..server.film_prompts import SHOTS, Prompt, engine, node
from ..server.harness import PromptRejected, Server

LEFT_OUT = object()
WORDS = ["", " ", "\0", "\ud800", "x" * 5000, "../../etc/x", "%date%", "con", "\u202egpj", "nan", None, 3, [], {}]
NUMBERS = [float("nan"), "nan", float("inf"), "-inf", 1e308, -(10**30), 10**400, "", "many", None, [], {}]
VALUES: dict[str, list[Any]] = {
    "STRING": WORDS,
    "COMBO": ["none of these", *WORDS],
    "COMFY_DYNAMICCOMBO_V3": ["none of these", *WORDS],
    "INT": NUMBERS,
    "FLOAT": NUMBERS,
    "BOOLEAN": [None, "no", [], {}, 7],
}
PLAIN = {"width": 32, "height": 32, "steps": 1, "project": "hostile", "text": SHOTS[0], "shot": SHOTS[0]}
"""What inputs of these names get instead of their default, so that what runs costs little."""

SUPPLIERS: Prompt = engine() | {
    "story": node("LongreelStoryboard", text=SHOTS[0]),
    "reel": node("LongreelFilmShot", engine=["engine", 0], shot=SHOTS[0], project=""),
    "image": node("EmptyImage", width=32, height=32, batch_size=5, color=99),
    "mask": node("SolidMask", value=1.0, width=32, height=32),
    "video": node("CreateVideo", images=["image", 0], fps=16.0),
    "latent": node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
    "words": node("CLIPTextEncode", clip=["text", 0], text="A red ball."),
    "keyframes": node("LongreelKeyframeClip", file=tiny_models.CLIP),
    "reference": node("LongreelReference", image=["image", 0], mask=["mask", 0], name="ball", description="a red ball"),
}
SOCKETS = {
    "MODEL": "dit", "CLIP": "text", "VAE": "vae", "LONGREEL_ENGINE": "engine", "LONGREEL_STORYBOARD": "story",
    "LONGREEL_REEL": "reel", "IMAGE": "image", "MASK": "mask", "VIDEO": "video", "LATENT": "latent",
    "CONDITIONING": "words", "LONGREEL_KEYFRAME_CLIP": "keyframes", "LONGREEL_REFERENCE": "reference",
}  # fmt: skip

Schema = dict[str, Any]


def filled(groups: Schema, prefix: str, rng: random.Random) -> Iterator[tuple[str, str, Any]]:
    """Name, type and a good value of each input; of a dynamic one those of one of its choices."""
    for name, (kind, *rest) in [*groups.get("required", {}).items(), *groups.get("optional", {}).items()]:
        options, full = rest[0] if rest else {}, prefix + name
        kind = "COMBO" if isinstance(kind, list) else kind
        if kind == "COMFY_DYNAMICCOMBO_V3":
            choice = rng.choice(options["options"])
            yield full, kind, choice["key"]
            yield from filled(choice["inputs"], f"{full}.", rng)
        elif kind == "COMFY_AUTOGROW_V3":
            yield f"{full}.reference_1", "LONGREEL_REFERENCE", ["reference", 0]
        elif kind in VALUES:
            choices = options.get("options") or [""]
            good = options.get("default", choices[0] if kind == "COMBO" else "")
            yield full, kind, PLAIN[name] if name in PLAIN and kind != "COMBO" else good
        elif kind in SOCKETS and name in groups.get("required", {}):
            yield full, kind, [SOCKETS[kind], 0]


def spoiled(name: str, schema: Schema, rng: random.Random) -> tuple[Prompt, str]:
    """A prompt with one node whose inputs are good but for one, and which that is."""
    inputs, kinds = {}, {}
    for field, kind, value in filled(schema["input"], "", rng):
        inputs[field], kinds[field] = value, kind
    widgets = [field for field, kind in kinds.items() if kind in VALUES]
    spoiled_one = rng.choice(widgets) if widgets else ""
    value: Any = LEFT_OUT
    if spoiled_one and rng.random() < 0.8:
        value = rng.choice(VALUES[kinds[spoiled_one]])
    if value is LEFT_OUT:
        inputs.pop(spoiled_one, None)
    else:
        inputs[spoiled_one] = value
    prompt = SUPPLIERS | {"hostile": {"class_type": name, "inputs": inputs}}
    if not schema["output_node"]:
        prompt["shown"] = node("PreviewAny", source=["hostile", 0])
    said = "left out" if value is LEFT_OUT else ascii(value)[:60]
    return prompt, f"{name}.{spoiled_one} {said}"


def fault(server: Server, prompt: Prompt) -> str | None:
    """What is wrong with how a prompt ends; None for a run or a sentence."""
    try:
        outcome = server.queue(prompt)
    except PromptRejected as rejected:
        for error in (each for one in rejected.node_errors.values() for each in one["errors"]):
            if "exception" in error["type"]:
                return f"{error['type']}: {error['details']}"
            if error["type"] == "custom_validation_failed" and not error["details"].endswith("."):
                return str(error["details"])
        return None
    if outcome.error is None or not outcome.error["node_type"].startswith("Longreel"):
        return None
    message = str(outcome.error["exception_message"]).strip()
    return None if message.endswith(".") and "\n" not in message and len(message) < 2000 else message[:500]


def campaign(server: Server, seed: int, budget: int) -> None:
    schemas = {
        name: schema
        for name, schema in sorted(server.object_info().items())
        # What is taught runs for as long as it is told to.
        if name.startswith("Longreel") and "Train" not in name and "Dataset" not in name
    }
    found = []
    for number in range(budget):
        rng = random.Random(f"{seed}/{number}")
        name = rng.choice(list(schemas))
        prompt, said = spoiled(name, schemas[name], rng)
        if (wrong := fault(server, prompt)) is not None:
            found.append(f"{number}: {said}: {wrong}")
    assert found == []


@pytest.mark.campaign
@pytest.mark.usefixtures("tidy_output")
def test_long(studio: Server):
    seed, budget = os.environ.get("LONGREEL_FUZZ_SEED", "1"), os.environ.get("LONGREEL_FUZZ_BUDGET", "4000")
    campaign(studio, int(seed), int(budget))


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("LongreelInstructionEngine", {"way": LEFT_OUT}, "Choose a way to film: causal, image to video or svd with"),
        ("LongreelInstructionEngine", {"way": "none of these"}, "Choose a way to film: causal, image to video or svd"),
        ("LongreelInstructionEngine", {"way": "image to video", "way.cfg": float("nan")}, "way.cfg must be a number"),
        ("LongreelCausalEngine", {"memory": LEFT_OUT}, "Choose a memory: one of "),
        ("LongreelCausalEngine", {"fps": float("nan")}, "fps must be a number, not nan."),
    ],
)
def test_what_comfyui_lets_through(studio: Server, name: str, inputs: dict[str, Any], message: str):
    schema = studio.object_info()[name]
    good = {field: value for field, _, value in filled(schema["input"], "", random.Random(0))}
    rest = {"sampler": "euler", "scheduler": "simple", "chunk_frames": 5, "cfg": 1.0, "shift": 5.0, "negative": ""}
    if inputs.get("way") == "image to video":
        good |= {f"way.{field}": value for field, value in rest.items()} | {"way.steps": 1}
    given = {field: value for field, value in (good | inputs).items() if value is not LEFT_OUT}
    prompt = SUPPLIERS | {"hostile": {"class_type": name, "inputs": given}}
    prompt["shown"] = node("PreviewAny", source=["hostile", 0])
    outcome = studio.queue(prompt)
    assert outcome.error is not None
    said = outcome.error["exception_message"].strip()
    assert said.startswith(message)
    assert said.endswith(".")
