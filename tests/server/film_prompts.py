"""Prompts in API format that film with the tiny models."""

from __future__ import annotations

from typing import Any

from .. import tiny_models

Prompt = dict[str, dict[str, Any]]

SHOTS = (
    "seconds: 0.6\nA red ball stands at the beach.",
    "seconds: 0.6, start: continue\nA red ball jumps at the beach.\n[0.3s] A red ball spins at the beach.",
    "seconds: 0.6\nThe same character walks.",
)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def engine() -> Prompt:
    return {
        "dit": node("UNETLoader", unet_name=tiny_models.DIT, weight_dtype="default"),
        "text": node("LongreelMiniatureTextEncoder", file=tiny_models.TEXT),
        "vae": node("VAELoader", vae_name=tiny_models.VAE),
        "engine": node(
            "LongreelCausalEngine",
            model=["dit", 0],
            clip=["text", 0],
            vae=["vae", 0],
            width=32,
            height=32,
            fps=16,
            steps=2,
            loop="renoise",
            frames_per_block=3,
            memory="MemFlow",
        ),
    }


def to_video(reel: str, **changes: Any) -> dict[str, Any]:
    plain = {"filename_prefix": "film", "format": "mp4", "first_shot": 1, "last_shot": 0, "fps": 0}
    return node(
        "LongreelReelToVideo", reel=[reel, 0], vae=["vae", 0], **plain | {"first_image": 0, "images": 1} | changes
    )


def story(project: str, *shots: str) -> Prompt:
    """A prompt that films these shots and writes a video."""
    return engine() | {
        "story": node("LongreelStoryboard", text="\n---\n".join(shots)),
        "film": node("LongreelFilmStoryboard", engine=["engine", 0], storyboard=["story", 0], project=project),
        "video": to_video("film"),
    }
