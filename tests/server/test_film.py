"""Filming in the real server, with tiny models: caches, projects, kills, interrupts, and core's nodes beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import load_reel
from PIL import Image
from safetensors.torch import load_file

from .. import tiny_models
from .film_prompts import SHOTS, Prompt, engine, node, story, to_video
from .harness import REPOSITORY, Server, ServerError

PROMPTS = REPOSITORY / "tests" / "prompts"


def frames_of(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def latents_of(server: Server, project: str) -> dict[str, torch.Tensor]:
    """The latents of each shot of a project, by file name."""
    stored = ProjectStore(server.base / "output" / "longreel" / project).shots()
    return {shot.file.path.name: shot.latents().clone() for shot in stored}


def on_text(start: str, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """An event handler that acts at the first progress text that begins so."""
    waiting = [act]

    def handle(event: dict[str, Any]) -> None:
        if waiting and event["type"] == "progress_text" and event["data"]["text"].startswith(start):
            waiting.pop()()

    return handle


def unheard(prompt: str) -> str:
    """What a node says of the second of SHOTS, which is too short for two prompts."""
    return f"shot 2: no block is left for the prompt at 0 s: {prompt}"


def without_takes(said: str) -> list[str]:
    """The lines of a node that says what it does with each shot, without the names of their takes."""
    return re.sub(r" \(take [0-9a-f]{8}\)", "", said).splitlines()


def test_storyboard_becomes_a_video_and_is_cached(studio: Server):
    first = studio.queue(story("cached", *SHOTS))
    assert first.succeeded, first.error
    (file,) = first.files()
    assert frames_of(studio.path_of(file)) == 29
    assert {"shot 2/3", "shot 3/3, block 2/2", "frame 0/29"} <= set(first.texts)
    assert any(text.endswith("kB on disk") and "3 shots, 1.8 s (29 frames at 16 fps)" in text for text in first.texts)
    assert studio.queue(story("cached", *SHOTS)).ran == []


def test_only_the_edited_shot_and_those_after_it_run(studio: Server):
    studio.queue(story("edited", *SHOTS))
    edited = studio.queue(story("edited", SHOTS[0], SHOTS[1].replace("jumps", "sways"), SHOTS[2]))
    filmed = [name for name in edited.ran if name.startswith("film.")]
    assert [name.rpartition(".")[2] for name in filmed] == ["2", "3"]
    assert without_takes(edited.outputs["film"]["text"][0]) == [
        "shot 1 reused: nothing changed",
        "shot 2 filmed: prompt changed",
        "shot 3 filmed: an earlier shot changed",
        unheard("A red ball sways at the beach."),
    ]
    longer = studio.queue(story("edited", SHOTS[0], SHOTS[1].replace("jumps", "sways"), *SHOTS[2:], SHOTS[2]))
    assert [name for name in longer.ran if name.startswith("film.")] == ["film.0.0.4"]


def test_shots_survive_a_killed_server(studio: Server):
    def prompt(project: str) -> Prompt:
        filmed = story(project, SHOTS[0], SHOTS[1], "seconds: 10\nThe same character walks.")
        return filmed | {"video": to_video("film", last_shot=1)}

    try:
        with pytest.raises(ServerError, match="broke off"):
            studio.queue(prompt("killed"), on_event=on_text("shot 3/3", studio.kill))
    finally:
        studio.restart()
    assert len(latents_of(studio, "killed")) == 2
    again = studio.queue(prompt("killed"))
    said = ["shot 1 reused: nothing changed", "shot 2 reused: nothing changed", "shot 3 filmed: not filmed before"]
    assert without_takes(again.outputs["film"]["text"][0]) == [*said, unheard("A red ball jumps at the beach.")]
    assert not any(text.startswith(("shot 1/3, block", "shot 2/3, block")) for text in again.texts)
    assert all(line in studio.log_text() for line in said)
    assert studio.queue(prompt("undisturbed")).succeeded
    killed, undisturbed = latents_of(studio, "killed"), latents_of(studio, "undisturbed")
    assert len(killed) == 3
    assert killed.keys() == undisturbed.keys()
    assert all(torch.equal(killed[name], undisturbed[name]) for name in killed)


@pytest.mark.parametrize("project", ["lost", ""])
def test_a_shot_file_that_goes_while_the_server_runs_is_filmed_again(studio: Server, project: str):
    def prompt(shown: int) -> Prompt:
        return story(project, *SHOTS[:2]) | {"video": to_video("film", last_shot=shown)}

    assert studio.queue(prompt(2)).succeeded
    folder = studio.base / ("output/longreel/lost" if project else "temp/longreel")
    newest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    again = studio.queue(prompt(1))
    assert again.succeeded, again.error
    if project:
        said = ["shot 1 reused: nothing changed", "shot 2 filmed: not filmed before"]
        heard = unheard("A red ball jumps at the beach.")
        assert without_takes(again.outputs["film"]["text"][0]) == [*said, heard]
        assert len(list(folder.glob("*.safetensors"))) == 2
    assert studio.queue(prompt(1)).ran == [], "what was filmed again is cached as before"


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_interrupt_leaves_nothing_and_the_next_queue_works(studio: Server):
    studio.queue(story("interrupted", SHOTS[0]))
    places = [studio.base / "output", studio.base / "temp"]
    before = [files_below(place) for place in places]
    long = "seconds: 60\nThe same character walks."
    stopped = studio.queue(story("interrupted", SHOTS[0], long), on_event=on_text("shot 2/2, block", studio.interrupt))
    assert stopped.interrupted
    assert [files_below(place) for place in places] == before
    after = studio.queue(story("interrupted", SHOTS[0], SHOTS[2]))
    assert after.succeeded, after.error
    fresh = studio.queue(story("not interrupted", SHOTS[0], SHOTS[2]))
    assert fresh.succeeded
    stored, expected = latents_of(studio, "interrupted"), latents_of(studio, "not interrupted")
    assert all(torch.equal(stored[name], expected[name]) for name in expected)


def test_reel_is_saved_loaded_and_continued(studio: Server):
    prompt = story("saved", *SHOTS[:2]) | {
        "save": node("LongreelSaveReel", reel=["film", 0], filename_prefix="reels/saved"),
        "load": node("LongreelLoadReel", file=["save", 0]),
        "on": node(
            "LongreelFilmShot",
            engine=["engine", 0],
            reel=["load", 0],
            shot="start: continue\n" + "A red ball.",
            project="",
        ),
        "out": to_video("on", format="webm", first_shot=2, last_shot=3, first_image=5, images=7),
        "picture": node("PreviewImage", images=["out", 1]),
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error["exception_message"]
    (saved,) = (studio.base / "output" / "reels").glob("saved*.reel.safetensors")
    reel = load_reel(saved)
    assert len(reel.shots) == 2
    (webm,) = (file for file in outcome.outputs["out"]["images"])
    assert frames_of(studio.path_of(webm)) == reel.shots[1].frames + 80
    assert len(outcome.outputs["picture"]["images"]) == 7
    listed = studio.object_info()["LongreelLoadReel"]["input"]["required"]["file"][1]["options"]
    assert f"reels/{saved.name} [output]" in listed


def test_start_image_begins_the_shot(studio: Server):
    def prompt(colour: int) -> Prompt:
        return engine() | {
            "picture": node("EmptyImage", width=50, height=40, batch_size=1, color=colour),
            "shot": node(
                "LongreelFilmShot", engine=["engine", 0], start_image=["picture", 0], shot=SHOTS[0], project="start"
            ),
            "video": to_video("shot"),
        }

    assert studio.queue(prompt(0xFF0000)).succeeded
    assert studio.queue(prompt(0x00FF00)).succeeded
    red, green = latents_of(studio, "start").values()
    assert not torch.allclose(red[:, :, :1], green[:, :, :1], atol=0.01)


def test_model_is_as_if_untouched_in_core_nodes(studio: Server):
    def sample(width: Any) -> Prompt:
        return {
            "dit": engine()["dit"],
            "text": engine()["text"],
            "positive": node("CLIPTextEncode", clip=["text", 0], text="A red ball."),
            "negative": node("CLIPTextEncode", clip=["text", 0], text="A star."),
            "empty": node("EmptyHunyuanLatentVideo", width=width, height=32, length=9, batch_size=1),
            "sample": node(
                "KSampler",
                model=["dit", 0],
                positive=["positive", 0],
                negative=["negative", 0],
                latent_image=["empty", 0],
                seed=7,
                steps=2,
                cfg=4.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            ),
            "save": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/core"),
        }

    def saved() -> Path:
        return max((studio.base / "output" / "latents").glob("core*.latent"))

    studio.post("/free", {"unload_models": True, "free_memory": True})
    assert studio.queue(sample(32)).succeeded
    alone = load_file(saved())["latent_tensor"]
    studio.post("/free", {"unload_models": True, "free_memory": True})
    # The size comes from the film's picture, so the film is filmed first, with the same MODEL.
    size = {"size": node("GetImageSize", image=["video", 1])}
    assert studio.queue(story("", *SHOTS) | sample(["size", 0]) | size).succeeded
    assert torch.equal(load_file(saved())["latent_tensor"], alone)


STAND_INS = {
    "longreel-miniature-dit.safetensors": tiny_models.DIT,
    "longreel-miniature-vae.safetensors": tiny_models.VAE,
    "longreel-miniature-text.safetensors": tiny_models.TEXT,
    "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors": tiny_models.EXPERT,
    "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors": tiny_models.EXPERT,
    "Wan22_FFGO-LoRA-HIGH_bf16.safetensors": tiny_models.HIGH,
    "Wan22_FFGO-LoRA-LOW_bf16.safetensors": tiny_models.LOW,
    "wan_2.1_vae.safetensors": tiny_models.VAE,
    "ViT-L-14/open_clip_model.safetensors": tiny_models.CLIP,
    "longreel-miniature-clip/open_clip_model.safetensors": tiny_models.CLIP,
    "longreel-miniature-filmweaver.safetensors": tiny_models.LORA,
    "longreel-miniature-cast.safetensors": tiny_models.HIGH,
    "longreel-miniature-cast-base.safetensors": tiny_models.DIT,
    "longreel-miniature-cast-text.safetensors": tiny_models.TEXT,
    "longreel-miniature-memory.safetensors": tiny_models.HIGH,
    "longreel-miniature-motion.safetensors": tiny_models.MOTION,
    "my-motion.safetensors": tiny_models.MOTION,
    "wan2.1_t2v_1.3B_fp16.safetensors": tiny_models.DIT,
    "wan2.1_t2v_14B_fp8_scaled.safetensors": tiny_models.DIT,
    "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors": tiny_models.HIGH,
    "StoryMem/backbone_high_noise.safetensors": tiny_models.STORYMEM,
    "StoryMem/backbone_low_noise.safetensors": tiny_models.STORYMEM,
}
WORDS = {"CLIPTextEncode": ("text",), "LongreelFirstFramePrompt": ("action", "scene", "camera", "style")}
"""What only a real text encoder reads; the miniature's stands in for it."""


def shortened(prompt: Prompt) -> Prompt:
    """A shipped prompt on the tiny models, with all times and the picture made small."""
    text = json.dumps(prompt)
    for name, tiny in STAND_INS.items():
        text = text.replace(name, tiny)
    text = re.sub(r"seconds: ([\d.]+)", lambda match: f"seconds: {max(float(match[1]) / 20, 0.1)}", text)
    text = re.sub(r"\[(\d+)s\]", lambda match: f"[{int(match[1]) / 20}s]", text)
    small: Prompt = json.loads(text.replace('"seconds_per_prompt": 5', '"seconds_per_prompt": 0.25'))
    for each in small.values():
        each["inputs"] |= {key: 32 for key in ("width", "height") if key in each["inputs"]}
        each["inputs"] |= {"length": min(each["inputs"]["length"], 9)} if "length" in each["inputs"] else {}
    if any(each["class_type"] == "CLIPLoader" for each in small.values()):
        speak_miniature(small)
    return small


def speak_miniature(prompt: Prompt) -> None:
    """Put the miniature's text encoder, and words it knows, into a prompt made for umt5."""
    for each in prompt.values():
        kind, inputs = each["class_type"], each["inputs"]
        inputs |= {name: "A ball walks." for name in WORDS.get(kind, ()) if isinstance(inputs[name], str)}
        inputs |= {"trigger": "The same character."} if "trigger" in inputs else {}
        if kind == "CLIPLoader":
            each |= node("LongreelMiniatureTextEncoder", file=tiny_models.TEXT)
        if kind == "LongreelReference":
            inputs |= {"name": "ball", "description": ""}
        if kind == "LongreelLoadCausalCheckpoint":
            inputs |= {"checkpoint": tiny_models.DIT, "lora": "none"}
        if kind == "LongreelFilmShot":
            inputs["shot"] = re.sub(r"^[A-Z].*$", "A red ball walks.", inputs["shot"], flags=re.MULTILINE)
        if kind == "LongreelStoryboard":
            inputs["text"] = re.sub(r"^[A-Z].*$", "A red ball walks.", inputs["text"], flags=re.MULTILINE)


OTHERS = ("-cast-dataset", "-cast-lora", "-motion-adapter", "-instruction-adapter", "plan-states", "do-this")
FILMS = sorted(file for file in PROMPTS.glob("*.json") if not file.stem.endswith(OTHERS))
"""Prompts that end in a video and run on tiny models; the others have tests of their own."""


@pytest.mark.parametrize("file", FILMS, ids=lambda file: file.stem)
def test_shipped_prompt_runs(studio: Server, file: Path):
    # Load Image's picture in a fresh ComfyUI, here with something cut out of it.
    picture = Image.new("RGBA", (64, 48), "red")
    picture.paste((0, 0, 0, 0), (0, 0, 20, 48))
    picture.save(studio.base / "input" / "example.png")
    outcome = studio.queue(shortened(json.loads(file.read_text(encoding="utf-8"))))
    assert outcome.succeeded, outcome.error["exception_message"]
    videos = [studio.path_of(shown) for shown in outcome.files() if shown["filename"].endswith(".mp4")]
    assert videos
    assert all(frames_of(video) > 0 for video in videos)
