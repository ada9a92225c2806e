"""The report nodes in the real server, on a film of tiny models and on other packs' kind of video."""

from __future__ import annotations

import json
from typing import Any

from .. import tiny_models
from .film_prompts import Prompt, engine, node
from .harness import Server

KEYS = node("LongreelKeyframeClip", file=tiny_models.CLIP, architecture="ViT-L-14")
CONTINUITY = {"fps": 8.0, "cuts": "", "characters": "", "boxes": "", "keyframes": 1, "least_cosine": 0.18}
IDENTITY = {"fps": 8.0, "boxes": "", "samples": 3, "missing_below": 0.5}


def two_shots() -> Prompt:
    """Eight red frames and eight blue ones, without a reel."""
    return {
        "keys": KEYS,
        "red": node("EmptyImage", width=48, height=32, batch_size=8, color=0xFF0000),
        "blue": node("EmptyImage", width=48, height=32, batch_size=8, color=0x0000FF),
        "frames": node("ImageBatch", image1=["red", 0], image2=["blue", 0]),
    }


def report(kind: str = "Continuity", **inputs: Any) -> dict[str, Any]:
    plain = CONTINUITY if kind == "Continuity" else IDENTITY
    return node(f"Longreel{kind}Report", keyframe_clip=["keys", 0], **plain | inputs)


def test_any_video_is_measured_and_its_boxes_go_round(studio: Server):
    """Images become a video file; the boxes that one report found are what the next one takes."""
    boxes = json.dumps([[{"x": 4, "y": 4, "width": 20, "height": 20, "label": "Ada"}], []])
    story = "seconds: 1\nA red ball.\n---\nseconds: 1\nA blue star. It jumps."
    prompt = two_shots() | {
        "video": node("CreateVideo", images=["frames", 0], fps=8.0),
        "story": node("LongreelStoryboard", text=story),
        "report": report(
            video=["video", 0], storyboard=["story", 0], characters="Ada: a red ball", boxes=boxes, cuts=""
        ),
        "again": report(images=["frames", 0], characters="Ada: a red ball", boxes=["report", 1]),
        "table": node("PreviewAny", source=["report", 0]),
        "same": node("PreviewAny", source=["again", 0]),
        "shown": node("PreviewImage", images=["report", 3]),
    }  # fmt: skip
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    # Two plots, and two keyframes of two shots.
    assert len([file for file in outcome.files() if file["filename"].endswith(".png")]) == 4


def test_a_detectors_boxes_are_taken(studio: Server):
    """Core's own boxes node stands in for a detector's output on one keyframe."""
    prompt = {
        "keys": KEYS,
        "red": node("EmptyImage", width=48, height=32, batch_size=8, color=0xFF0000),
        "detect": node("PrimitiveBoundingBox", x=4, y=4, width=20, height=20),
        "report": report(images=["red", 0], bboxes=["detect", 0], characters="Ada: a red ball", least_cosine=-1.0),
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error


def test_who_is_missing_in_a_reel(studio: Server):
    shots = "seconds: 0.5\nA red ball stands at the beach.\n---\nseconds: 0.5\nA red ball jumps at the beach."
    prompt = engine() | {
        "keys": KEYS,
        "story": node("LongreelStoryboard", text=shots),
        "film": node("LongreelFilmStoryboard", engine=["engine", 0], storyboard=["story", 0], project=""),
        "picture": node("LongreelMiniaturePicture", colour="red", body="ball", headgear="crown", place="beach"),
        "cast": node(
            "LongreelReference",
            image=["picture", 0],
            mask=["picture", 1],
            name="ball",
            description="",
            cut_out="mask (1 = keep)",
        ),
        "who": report("Identity", reel=["film", 0], vae=["vae", 0], **{"references.reference_1": ["cast", 0]}),
        "how": report(reel=["film", 0], vae=["vae", 0]),
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    # A plot each, and the preview of the reference.
    assert len([file for file in outcome.files() if file["filename"].endswith(".png")]) == 3


def test_bad_input_is_one_sentence(studio: Server):
    frames = {"images": ["frames", 0]}
    story = {"story": node("LongreelStoryboard", text="seconds: 1\nA red ball.")}
    box = [{"x": 48, "y": 0, "width": 4, "height": 4}]
    cases: list[tuple[Prompt, str]] = [
        (two_shots() | {"report": report()}, "Connect one video to measure"),
        (
            two_shots() | story | {"report": report(**frames, storyboard=["story", 0])},
            "The storyboard has 1 shot, but 2 are in the video",
        ),
        (two_shots() | {"report": report(**frames, boxes=json.dumps([box, []]))}, "lies outside the frame of 48 x 32"),
        (two_shots() | {"report": report(**frames, cuts="9")}, "behind the video's end"),
    ]
    for prompt, words in cases:
        outcome = studio.queue(prompt)
        assert not outcome.succeeded
        assert words in str(outcome.error)
