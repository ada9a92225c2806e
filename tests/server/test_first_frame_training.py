"""Datasets and LoRAs of casts in the real server: shipped graphs, interrupts, and that core lists what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from longreel.host.files.video import VideoWriter
from PIL import Image
from safetensors.torch import load_file

from .. import tiny_models
from .film_prompts import Prompt, node
from .harness import Server
from .test_film import PROMPTS, shortened


def training(name: str, steps: int) -> Prompt:
    """The shipped graph on the tiny models, with four short clips; 6 trains."""
    prompt = shortened(json.loads((PROMPTS / "train-cast-lora.json").read_text(encoding="utf-8")))
    prompt["4"]["inputs"] |= {"count": 4, "frames": 9}
    prompt["5"]["inputs"] |= {"name": "server", "frames": 9}
    prompt["6"]["inputs"] |= {"name": name, "steps": steps, "frames": 9, "rank": 4, "batch": 2, "sample_every": 10**5}
    return prompt


def lora_of(server: Server, name: str) -> dict[str, torch.Tensor]:
    return load_file(server.base / "output" / "loras" / f"{name}.safetensors")


def test_the_shipped_graph_trains_a_lora_that_core_lists(studio: Server):
    outcome = studio.queue(training("listed", 6))
    assert outcome.succeeded, outcome.error["exception_message"]
    (report,) = outcome.outputs["6"]["text"]
    assert report.startswith("Memory: base")
    assert "listed.safetensors" in report
    assert studio.queue(training("listed", 6)).succeeded
    assert studio.queue(training("listed", 6)).ran == []
    use = {
        "1": node("UNETLoader", unet_name=tiny_models.DIT, weight_dtype="default"),
        "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="listed.safetensors", strength_model=1.0),
        "3": node("ModelSave", model=["2", 0], filename_prefix="patched"),
    }
    assert studio.queue(use).succeeded
    sheets = studio.base / "output" / "longreel-casts" / "server" / "contact_sheet.png"
    with Image.open(sheets) as sheet:
        assert sheet.height > 4 * 200


def at_step(step: int, act: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """An event handler that acts once training has come to a step or further."""
    waiting = [act]

    def handle(event: dict[str, Any]) -> None:
        text = event["data"].get("text", "") if event["type"] == "progress_text" else ""
        if waiting and text.startswith("step ") and int(text[5:].partition("/")[0]) >= step:
            waiting.pop()()

    return handle


def test_interrupt_saves_and_queueing_again_goes_on_to_the_bit(studio: Server):
    stopped = studio.queue(training("stopped", 100_000), on_event=at_step(3, studio.interrupt))
    assert stopped.interrupted
    state = torch.load(studio.base / "output" / "longreel-loras" / "stopped" / "lora.ckpt", weights_only=True)
    assert state["step"] >= 3
    total = state["step"] + 5
    again = studio.queue(training("stopped", total))
    assert again.succeeded, again.error["exception_message"]
    assert f"continuing at step {state['step']} of {total}" in again.outputs["6"]["text"][0]
    straight = studio.queue(training("straight", total))
    assert straight.succeeded
    one, other = lora_of(studio, "stopped"), lora_of(studio, "straight")
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_one_sentence_for_a_folder_with_another_run(studio: Server):
    assert studio.queue(training("taken", 2)).succeeded
    prompt = training("taken", 2)
    prompt["6"]["inputs"]["rank"] = 8
    outcome = studio.queue(prompt)
    assert not outcome.succeeded
    assert "has rank 4, not 8: take another folder" in outcome.error["exception_message"]


STAND_INS = {
    "SAM3_Detect": lambda inputs: node("ImageToMask", image=inputs["image"], channel="red"),
    "RemoveBackground": lambda inputs: node("ImageToMask", image=inputs["image"], channel="green"),
    "TextGenerate": lambda inputs: node("PrimitiveStringMultiline", value="A red mug and a green box stand still."),
}
"""What marks and describes, without the weights that it takes."""


@pytest.fixture
def clip(studio: Server) -> Path:
    """A red and a green thing on black."""
    frames = torch.zeros(9, 48, 64, 3)
    frames[:, 8:40, 6:26, 0] = 1
    frames[:, 8:40, 36:58, 1] = 1
    path = studio.base / "input" / "clip.mp4"
    with VideoWriter(path, 64, 48, 24) as writer:
        writer.write(frames)
    Image.new("RGB", (64, 48), "navy").save(studio.base / "input" / "example.png")
    return path


def test_the_shipped_graph_builds_a_dataset_with_masks_of_cores_kinds(studio: Server, clip: Path):
    shipped: Prompt = json.loads((PROMPTS / "build-cast-dataset.json").read_text(encoding="utf-8"))
    known = studio.object_info()
    for kind, make in STAND_INS.items():
        (one,) = (each for each in shipped.values() if each["class_type"] == kind)
        sockets = known[kind]["input"]
        assert set(one["inputs"]) <= {*sockets["required"], *sockets.get("optional", {})}
        stand_in = make(one["inputs"])
        assert known[kind]["output"][0] == known[stand_in["class_type"]]["output"][0]
        one |= stand_in
    loaders = ("CheckpointLoaderSimple", "LoadBackgroundRemovalModel", "CLIPLoader", "CLIPTextEncode")
    prompt = {key: each for key, each in shipped.items() if each["class_type"] not in loaders}
    prompt["15"]["inputs"] |= {"width": 64, "height": 32, "frames": 9, "name": "built"}
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error["exception_message"]
    (report,) = outcome.outputs["15"]["text"]
    assert "1/1 clip-001" in report
    folder = studio.base / "output" / "longreel-casts" / "built"
    (line,) = json.loads((folder / "train_data.json").read_text())
    assert line["text"] == "ad23r2 the camera view suddenly changes. A red mug and a green box stand still."
    record = json.loads((folder / "items" / "clip-001.json").read_text())
    assert [each["name"] for each in record["references"]] == ["mug", "woman"]
    with Image.open(folder / "train_materials" / "video_clip-001" / "object_0.png") as mug:
        left, _, right, _ = mug.getchannel("A").point(lambda level: 255 * (level > 128)).getbbox()
    assert abs(left - 6) <= 1
    assert abs(right - 26) <= 1
    prompt["14"]["inputs"]["name"] = "clip-002"
    assert studio.queue(prompt).succeeded
    assert len(json.loads((folder / "train_data.json").read_text())) == 2
