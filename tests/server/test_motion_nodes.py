"""Better motion in the real server: adapters, guidance, flow, training, and one sentence for bad input."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file

from .. import tiny_models
from .film_prompts import SHOTS, Prompt, node, story
from .harness import Server
from .test_film import PROMPTS, shortened


def shipped(name: str) -> Prompt:
    return shortened(json.loads((PROMPTS / f"{name}.json").read_text(encoding="utf-8")))


def find(prompt: Prompt, kind: str) -> dict[str, Any]:
    return next(each["inputs"] for each in prompt.values() if each["class_type"] == kind)


def test_a_fixed_seed_gives_the_same_motion_and_scale_matters(studio: Server):
    """Twice the same prompt is cached; another scale is another film, and the motion comes out beside it."""

    def latents(scale: float) -> dict[str, torch.Tensor]:
        prompt = shipped("better-motion-miniature")
        find(prompt, "LongreelInnerGuidance")["motion_scale"] = scale
        (split,) = (key for key, each in prompt.items() if each["class_type"] == "LongreelSplitMotionLatent")
        for slot, part in enumerate(("appearance", "motion")):
            prompt[part] = node("SaveLatent", samples=[split, slot], filename_prefix=f"latents/{part}-{scale:g}")
        outcome = studio.queue(prompt)
        assert outcome.succeeded, outcome.error["exception_message"]
        folder = studio.base / "output" / "latents"
        return {
            part: load_file(max(folder.glob(f"{part}-{scale:g}_*.latent")))["latent_tensor"]
            for part in ("appearance", "motion")
        }

    plain, guided = latents(0.0), latents(3.0)
    assert plain["appearance"].shape == plain["motion"].shape
    assert not torch.equal(plain["appearance"], guided["appearance"])
    assert not torch.equal(plain["motion"], plain["appearance"])


def test_the_report_says_what_the_file_knows(studio: Server):
    outcome = studio.queue(
        {
            "load": node("LongreelLoadMotionAdapter", file=tiny_models.MOTION),
            "say": node("PreviewAny", source=["load", 2]),
        }
    )
    (said,) = outcome.outputs["say"]["text"]
    assert "for tiny-dit, single head, a LoRA of 4 layers" in said
    assert "no better than none at all" in said


def test_fallbacks_film_in_the_causal_engine(studio: Server):
    prompt = story("fallback", SHOTS[0])
    prompt["more"] = node(
        "LongreelMotionFallbacks", model=["dit", 0], method="STG", scale=1.0, layers="", start=0.0, end=1.0,
        unit="steps", rescale=0.7,
    )  # fmt: skip
    prompt["engine"]["inputs"]["model"] = ["more", 0]
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error["exception_message"]


def test_the_shipped_graph_trains_an_adapter_that_can_be_loaded(studio: Server):
    prompt = shipped("train-motion-adapter")
    for each in prompt.values():
        if each["class_type"] == "LongreelMotionDataset":
            each["inputs"] |= {"count": 2, "frames": 5}
    find(prompt, "LongreelTrainMotionAdapter").update(name="served", steps=3, rank=2, batch=2, micro_batch=2)
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error["exception_message"]
    assert any("served.safetensors, also for Load Motion Adapter" in text for text in outcome.texts + [
        line for shown in outcome.outputs.values() for line in shown.get("text", ())
    ])  # fmt: skip
    film = shipped("better-motion-miniature")
    find(film, "LongreelLoadMotionAdapter")["file"] = "served.safetensors"
    again = studio.queue(film)
    assert again.succeeded, again.error["exception_message"]


def test_bad_input_is_one_sentence(studio: Server):
    apply = {"lora_strength": 1.0, "motion_strength": 1.0, "return_motion": False, "seed_offset": 0}
    base = {
        "dit": node("UNETLoader", unet_name=tiny_models.DIT, weight_dtype="default"),
        "other": node("UNETLoader", unet_name=tiny_models.EXPERT, weight_dtype="default"),
        "load": node("LongreelLoadMotionAdapter", file=tiny_models.MOTION),
        "joint": node("LongreelApplyMotionAdapter", model=["dit", 0], adapter=["load", 0], **apply),
        "red": node("EmptyImage", width=48, height=32, batch_size=3, color=0xFF0000),
        "large": node("EmptyImage", width=64, height=32, batch_size=3, color=0xFF0000),
    }
    window = {"start": 0.0, "end": 0.5, "unit": "steps", "rescale": 0.0}
    inner = {"motion_scale": 3.0, **window, "gate": "auto", "motion_half": "full", "mode": "inner"}
    causal = story("", SHOTS[0])
    causal["engine"]["inputs"]["model"] = ["joint", 0]
    cases: list[tuple[Prompt, str]] = [
        ({"x": node("LongreelLoadMotionAdapter", file=tiny_models.HIGH)}, "no motion adapter"),
        ({"x": node("LongreelInnerGuidance", model=["dit", 0], **inner)}, "connect Apply Motion Adapter"),
        ({"x": node("LongreelInnerGuidance", model=["joint", 0], **inner | {"start": 0.9})}, "start <= end"),
        (
            {"x": node("LongreelMotionFallbacks", model=["dit", 0], method="STG", scale=1.0, layers="ten", **window)},
            "are no numbers",
        ),
        ({"x": node("LongreelSplitMotionLatent", latent=["e", 0])}, "switch on return_motion"),
        (causal, "remove Apply Motion Adapter"),
        ({"x": node("LongreelRGBToFlow", images=["red", 0], encoding="hsv_black", sigma=0.15),
          "r": node("LongreelMotionReport", images=["large", 0], predicted=["x", 0], fps=16.0)}, "both at one size"),
    ]  # fmt: skip
    base["e"] = node("EmptyHunyuanLatentVideo", width=32, height=32, length=5, batch_size=1)
    for prompt, words in cases:
        whole = base | prompt
        if "r" not in prompt and "x" in prompt:
            whole["see"] = node("PreviewAny", source=["x", 0])
        outcome = studio.queue(whole)
        assert not outcome.succeeded, words
        assert words in str(outcome.error), str(outcome.error["exception_message"])
