"""Bad input of every kind: one clear sentence each, before anything is filmed, and nothing finished is lost."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import save_file

from .. import tiny_models
from .film_prompts import SHOTS, Prompt, engine, node, story, to_video
from .harness import PromptRejected, Server


def refusal(server: Server, prompt: Prompt) -> str:
    """What a person is told about a prompt that cannot run."""
    try:
        outcome = server.queue(prompt)
    except PromptRejected as rejected:
        # of two inputs that are wrong together, each says so
        (message,) = {message.partition(" - ")[2] for message in rejected.messages}
        return message
    assert outcome.error is not None, "it ran"
    message = str(outcome.error["exception_message"]).strip()
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Line 1, column 1: The storyboard is empty"),
        ("seconds: 0\nA red ball.", "Line 1, column 10: The shot lasts 0 s"),
        ("start: sideways\nA red ball.", 'Line 1, column 8: The shot\'s start is "sideways": choose cut or continue.'),
        (f"{SHOTS[0]}\n---\n", "Line 3, column 1: This shot has no prompt"),
        (f"{SHOTS[0]}\n---\nA purple unicorn.", "Shot 2: The miniature does not know 'unicorn'"),
        (f"{SHOTS[0]}\n---\nreferences: none.png\nA red ball.", "Shot 2: There is no file 'none.png'"),
        ("start: continue\nA red ball.", "Shot 1: The first shot continues nothing"),
    ],
)
def test_storyboard(studio: Server, text: str, message: str):
    said = refusal(studio, story("refused", text))
    assert said.startswith(message)
    assert said.endswith(".")
    assert not list((studio.base / "output" / "longreel" / "refused").glob("*"))


def changed(name: str, **inputs: Any) -> Prompt:
    prompt = story("refused", SHOTS[0])
    prompt[name]["inputs"] |= inputs
    return prompt


def test_model_vae_and_settings(studio: Server):
    i2v = studio.base / "models" / "diffusion_models" / "tiny-i2v.safetensors"
    save_file(tiny_models.image_to_video_weights(), i2v, metadata=tiny_models.dit_metadata(causal=False))
    for prompt, message in (
        (changed("dit", unet_name=i2v.name), "36 input channels"),
        (changed("vae", vae_name="pixel_space"), "Longreel needs a Wan VAE"),
        (changed("engine", frames_per_block=12), "no room for a block of 12"),
        (changed("engine", **{"memory": "custom", **custom(window=2)}), "window of 2 frames cannot hold a sink of 3"),
    ):
        said = refusal(studio, prompt)
        assert message in said
        assert said.endswith(".")


def custom(**changes: Any) -> dict[str, Any]:
    plain = {"window": 12, "sink": 3, "bank": 3, "record_interval": 3, "record": "interactive", "active": 0}
    flags = {"keep_sink": True, "mask_padding": False, "fresh_text": False, "fold_once": False}
    return {f"memory.{name}": value for name, value in {**plain, "positions": "absolute", **flags, **changes}.items()}


def test_custom_memory_films(studio: Server):
    assert studio.queue(changed("engine", **{"memory": "custom", **custom(positions="relative", bank=1)})).succeeded


def test_guidance(studio: Server):
    prompt = engine() | {
        "prompt": node("CLIPTextEncode", clip=["text", 0], text="A red ball."),
        "guider": node("CFGGuider", model=["dit", 0], positive=["prompt", 0], negative=["prompt", 0], cfg=5.0),
        "sampler": node("LongreelCausalSampler", loop="renoise", frames_per_block=3, memory="MemFlow"),
        "noise": node("RandomNoise", noise_seed=1),
        "sigmas": node("BasicScheduler", model=["dit", 0], scheduler="simple", steps=2, denoise=1.0),
        "empty": node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/guided"),
    }
    del prompt["engine"]
    assert refusal(studio, prompt) == "Causal films are made with guidance 1, not 5; set the guidance (CFG) to 1."


def test_reel_files(studio: Server):
    prompt = story("reel files", SHOTS[0]) | {
        "save": node("LongreelSaveReel", reel=["film", 0], filename_prefix="reels/whole")
    }
    assert studio.queue(prompt).succeeded
    (whole,) = (studio.base / "output" / "reels").glob("whole*")
    inputs = studio.base / "input"
    (inputs / "cut.reel.safetensors").write_bytes(whole.read_bytes()[:-100])
    save_file(tiny_models.text_weights(), inputs / "foreign.reel.safetensors")
    (inputs / "noise.reel.safetensors").write_bytes(b"not a reel at all")
    for name, message in (
        ("cut.reel.safetensors", "is not whole"),
        ("foreign.reel.safetensors", "not one of Longreel's"),
        ("noise.reel.safetensors", "is not a reel"),
        ("gone.reel.safetensors", "There is no file 'gone.reel.safetensors'"),
    ):
        load = engine() | {"load": node("LongreelLoadReel", file=name), "video": to_video("load")}
        said = refusal(studio, load)
        assert message in said
        assert said.endswith(".")
    other = engine() | {
        "load": node("LongreelLoadReel", file=f"reels/{whole.name} [output]"),
        "shot": node("LongreelFilmShot", engine=["engine", 0], reel=["load", 0], shot=SHOTS[0], project=""),
        "video": to_video("shot"),
    }
    other["engine"]["inputs"]["width"] = 64
    assert refusal(studio, other).startswith("The reel was filmed with width 32 and this engine has 64")


def test_unwritable_output_is_said_before_anything_is_filmed(studio: Server):
    (studio.base / "output" / "blocked").write_text("a file where a folder should be")
    prompt = story("unwritable", *SHOTS)
    prompt["video"] = to_video("film", filename_prefix="blocked/film")
    said = refusal(studio, prompt)
    assert "blocked" in said
    assert said.endswith(".")
    prompt["video"] = to_video("film", filename_prefix="free/film")
    assert "shot 1 filmed" in studio.queue(prompt).outputs["film"]["text"][0]
    (studio.base / "output" / "longreel" / "a file").write_text("")
    assert "cannot be made" in refusal(studio, story("a file", SHOTS[0]))


def test_shots_that_the_reel_lacks(studio: Server):
    prompt = story("lacking", SHOTS[0])
    prompt["video"] = to_video("film", first_shot=2)
    assert refusal(studio, prompt).startswith("Shots 2 to 1 are not on this reel")
    prompt["video"] = to_video("film", first_image=100)
    assert refusal(studio, prompt) == "There is no frame 100: what is shown ends with frame 9."


def test_story_file(studio: Server):
    (studio.base / "input" / "bad.jsonl").write_text('{"prompts": []}')
    for name, number, message in (
        ("bad.jsonl", 1, "Line 1, column 1: A line holds one story"),
        ("gone.json", 1, "There is no file 'gone.json'"),
        ("example_stories.jsonl [longreel]", 99, "has no story 99"),
    ):
        prompt = story("refused", SHOTS[0])
        prompt["story"] = node("LongreelStoryboardFromFile", file=name, story=number, seconds_per_prompt=1)
        said = refusal(studio, prompt)
        assert message in said
        assert said.endswith(".")
