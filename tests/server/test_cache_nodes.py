"""The nodes of the dual cache in the real server, with tiny models."""

from __future__ import annotations

from typing import Any

from longreel.film.reel import load_reel

from .. import tiny_models
from .film_prompts import Prompt, engine, node, to_video
from .harness import Server

STORY = "seconds: 0.5\nA red ball stands at the beach.\n---\nseconds: 0.5\nA red ball jumps at the beach."


def guided(backend: str = "filmweaver", **changes: Any) -> Prompt:
    """A cache-guided engine of tiny models."""
    prompt = engine()
    del prompt["engine"]
    settings = {
        "width": 32,
        "height": 32,
        "fps": 16,
        "negative": "",
        "steps": 1,
        "cfg": 1.0,
        "sampler": "euler",
        "scheduler": "simple",
        "keyframes": 3,
        "per_character": 0,
        "new_keyframes": 3,
        "shot_noise": 0.1,
        "history_noise": 0.0,
        "history_strength": 1.0,
        "reference_cfg": 5.0,
        "boundary": 0.875,
    }
    return prompt | {
        "keys": node("LongreelKeyframeClip", file=tiny_models.CLIP, architecture="ViT-L-14"),
        "lora": node("LongreelFilmWeaverLora", model=["dit", 0], file=tiny_models.LORA, strength=1.0),
        "engine": node(
            "LongreelCacheGuidedEngine",
            model=["lora", 0] if backend == "filmweaver" else ["dit", 0],
            clip=["text", 0],
            vae=["vae", 0],
            keyframe_clip=["keys", 0],
            backend=backend,
            **settings | changes,
        ),
    }


def story(text: str = STORY, project: str = "", **before: Any) -> Prompt:
    return {
        "story": node("LongreelStoryboard", text=text),
        "film": node(
            "LongreelFilmStoryboard", engine=["engine", 0], storyboard=["story", 0], project=project, **before
        ),
    }


def cache(reel: str, **changes: Any) -> dict[str, Any]:
    plain = {"pin": "", "ban": "", "release": "", "remove": "", "replace": 0, "clear": False}
    return node("LongreelDualCache", engine=["engine", 0], reel=[reel, 0], **plain | changes)


def test_a_story_with_references_is_filmed_and_its_memory_shown(studio: Server):
    prompt = guided() | story(reel=["cast", 0]) | {
        "face": node("EmptyImage", width=48, height=48, batch_size=2, color=0xFF0000),
        "cast": node("LongreelAddReferences", engine=["engine", 0], images=["face", 0], names="Ada\nBo", pinned=True),
        "cache": cache("film", pin="3"),
        "scores": node("LongreelRetrieveKeyframes", engine=["engine", 0], reel=["cache", 0], prompt="A red ball."),
        "list": node("PreviewAny", source=["cache", 2]),
        "told": node("PreviewAny", source=["scores", 1]),
        "video": to_video("cache"),
    }  # fmt: skip
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    assert len([file for file in outcome.files() if file["filename"].endswith(".mp4")]) == 1
    assert len([file for file in outcome.files() if file["filename"].endswith(".png")]) >= 5
    assert studio.queue(prompt).ran == []


def test_changing_the_memory_films_what_follows_and_nothing_else(studio: Server):
    def graph(**marks: Any) -> Prompt:
        again = {"shot": "seconds: 0.5\nA red ball spins at the beach.", "project": ""}
        return guided() | story("seconds: 0.6\nA red ball stands at the beach.") | {
            "cache": cache("film", **marks),
            "after": node("LongreelFilmShot", engine=["engine", 0], reel=["cache", 0], **again),
            "video": to_video("after"),
        }  # fmt: skip

    assert studio.queue(graph()).succeeded
    ran = studio.queue(graph(ban="1")).ran
    assert {"cache", "after"} <= set(ran)
    assert not [name for name in ran if name.startswith("film")]


def test_films_go_on_from_anywhere(studio: Server):
    prompt = guided() | story(reel=["clip", 0]) | {
        "frames": node("EmptyImage", width=48, height=48, batch_size=7, color=0x00FF00),
        "clip": node(
            "LongreelStartFromVideo", engine=["engine", 0], images=["frames", 0], from_frame=6, prompt="A red ball."
        ),
        "longer": node(
            "LongreelExtendShot",
            engine=["engine", 0],
            reel=["film", 0],
            shot=1,
            prompt="A red ball jumps at the beach.",
            seconds=0.5,
            seed=1,
            keep_rest=True,
        ),
        "back": node("LongreelForkReel", reel=["longer", 0], shot=3, seconds=0.25),
        "save": node("LongreelSaveReel", reel=["back", 0], filename_prefix="anywhere"),
        "video": to_video("back"),
    }  # fmt: skip
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    (saved,) = studio.base.glob("output/anywhere*")
    reel = load_reel(saved)
    assert [shot.take_start for shot in reel.shots] == [True, False, True]
    assert [shot.frames for shot in reel.shots] == [5, 8, 4]


def test_the_caches_condition_a_plain_ksampler(studio: Server):
    told = {"prompt": "A red ball.", "frames": 6, "goes_on": True, "seed": 0}
    sampling = {"seed": 1, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    prompt = guided() | story() | {
        "text+": node("CLIPTextEncode", clip=["text", 0], text="A red ball."),
        "text-": node("CLIPTextEncode", clip=["text", 0], text=""),
        "told": node(
            "LongreelCacheConditioning",
            engine=["engine", 0],
            positive=["text+", 0],
            negative=["text-", 0],
            reel=["film", 0],
            **told,
        ),
        "sample": node(
            "KSampler",
            model=["lora", 0],
            positive=["told", 0],
            negative=["told", 1],
            latent_image=["told", 3],
            **sampling,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "show": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    assert len(outcome.files()) == 21


def test_bad_input_is_one_sentence(studio: Server):
    for backend, text, words in (
        ("vace", STORY, "load wan2.1_vace_14B"),
        ("bernini", "seconds: 0.5\nA red ball.\n---\nstart: continue\nA red ball jumps.", "remembers no motion"),
    ):
        outcome = studio.queue(guided(backend) | story(text) | {"video": to_video("film")})
        assert not outcome.succeeded
        assert words in str(outcome.error)
