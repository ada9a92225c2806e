"""Instructions through the real server: states out of words, and a planner that cannot write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .. import tiny_models
from ..server.harness import REPOSITORY, Server
from ..training.instruction.test_train import write_video
from .film_prompts import Prompt, node
from .test_film import PROMPTS, shortened


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
    for name in ("do-this", "plan-states", "train-instruction-adapter"):
        prompt = json.loads((REPOSITORY / "tests" / "prompts" / f"{name}.json").read_text(encoding="utf-8"))
        for each in prompt.values():
            groups = known[each["class_type"]]["input"]
            assert set(groups.get("required", {})) <= set(each["inputs"])


def training_prompt(clips: Path) -> Prompt:
    """The shipped graph on the small stand-in for Stable Video Diffusion."""
    prompt = shortened(json.loads((PROMPTS / "train-instruction-adapter.json").read_text(encoding="utf-8")))
    for each in prompt.values():
        if each["class_type"] == "ImageOnlyCheckpointLoader":
            each["class_type"] = "StandInSvd"
        if each["class_type"] == "LongreelInstructionDataset":
            each["inputs"] |= {"videos": str(clips), "frames": 4, "width": 64, "height": 64, "states": 2}
        if each["class_type"] == "LongreelTrainInstructionAdapter":
            each["inputs"] |= {"name": "served-skill", "steps": 2, "batch": 2, "sample_every": 2, "held_out": 0.25}
    return prompt


@pytest.mark.usefixtures("tidy_output")
def test_the_shipped_graph_trains_an_adapter_that_films(studio: Server, tmp_path: Path):
    for number in range(4):
        write_video(tmp_path / f"{number}.mp4", 5)
        (tmp_path / f"{number}.txt").write_text("A red ball jumps.\n")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.txt").write_text("A red ball spins.")
    trained = studio.queue(training_prompt(tmp_path))
    assert trained.succeeded, trained.error["exception_message"]
    shown = json.dumps(trained.outputs)
    assert "Left out broken.mp4: it cannot be read" in shown
    assert "4 clips of 4 frames" in shown
    assert "2 clips to learn from, 2 held out" in shown
    assert "served-skill.safetensors, also for Load Instruction Adapter" in shown
    prompt = {
        "svd": node("StandInSvd", ckpt_name=""),
        "text": node("LongreelMiniatureTextEncoder", file=tiny_models.TEXT),
        "adapter": node("LongreelLoadInstructionAdapter", file="served-skill.safetensors"),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF0000),
        "engine": node(
            "LongreelInstructionEngine", model=["svd", 0], clip=["text", 0], vae=["svd", 2], clip_vision=["svd", 1],
            adapter=["adapter", 0], width=64, height=64, fps=7.0, state_count=2, detail="plain", replan=False,
            **{"way": "svd with adapter", "way.steps": 1, "way.text_scale": 3.0, "way.frame_scale": 2.0,
               "way.first_frame_scale": 1.0, "way.known": 1, "way.keep_known": False, "way.sampler": "euler",
               "way.scheduler": "karras"},
        ),
        "shot": node("LongreelFilmShot", engine=["engine", 0], start_image=["picture", 0], project="",
                     shot="seconds: 1\nA red ball jumps."),
        "video": node("LongreelReelToVideo", reel=["shot", 0], vae=["svd", 2], filename_prefix="skill", format="mp4",
                      first_shot=1, last_shot=0, fps=0, first_image=0, images=1),
    }  # fmt: skip
    filmed = studio.queue(prompt)
    assert filmed.succeeded, filmed.error["exception_message"]
    assert any(file["filename"].endswith(".mp4") for file in filmed.files())


def test_folders_are_compared_and_chunks_joined(server: Server, tmp_path: Path):
    for name, lengths in (("real", (9, 10)), ("made", (9, 12))):
        (tmp_path / name).mkdir()
        for number, frames in enumerate(lengths):
            write_video(tmp_path / name / f"{number}.mp4", frames)
    measures = {"swapped": "", "i3d": "", "frames": 4, "width": 64, "height": 64}
    prompt = {
        "measure": node("LongreelCompareVideos", real=str(tmp_path / "real"), made=str(tmp_path / "made"), **measures),
        "clip": node("EmptyImage", width=16, height=16, batch_size=4, color=0xFF0000),
        "first": node("LongreelNextChunk", images=["clip", 0], overlap=2),
        "second": node("LongreelNextChunk", images=["clip", 0], before=["first", 1], overlap=1),
        "shown": node("PreviewImage", images=["second", 1]),
    }
    outcome = server.queue(prompt)
    assert outcome.succeeded, outcome.error["exception_message"]
    assert json.loads(outcome.outputs["measure"]["text"][0])["pairs"] == 2
    assert len(outcome.outputs["shown"]["images"]) == 4 + 3
    empty = {"x": node("LongreelCompareVideos", real="", made="", **measures)}
    assert "write it into real" in str(server.queue(empty).error)
    long = {"x": node("LongreelNextChunk", images=["clip", 0], overlap=4), "clip": prompt["clip"],
            "see": node("PreviewImage", images=["x", 1])}  # fmt: skip
    assert "set overlap lower" in str(server.queue(long).error)
