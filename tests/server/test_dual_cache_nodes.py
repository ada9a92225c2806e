"""The nodes of the dual cache in the real server, with tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from longreel.film.reel.reel import Reel, load_reel

from .. import tiny_models
from .film_prompts import Prompt, engine, node, to_video
from .harness import Server

STORY = "seconds: 0.5\nA red ball stands at the beach.\n---\nseconds: 0.5\nA red ball jumps at the beach."


EIGHT = tuple(f"seconds: 0.3, seed: {number}\nA red ball stands at the beach." for number in range(8))
IMAGE_TO_VIDEO = ("storymem", "svi")


def guided(backend: str = "filmweaver", **changes: Any) -> Prompt:
    """A cache-guided engine of tiny models; of two that take a first frame for the backends that need such."""
    prompt = engine()
    del prompt["engine"]
    pair: Prompt = {}
    if backend in IMAGE_TO_VIDEO:
        prompt["dit"] = node("UNETLoader", unet_name=tiny_models.EXPERT, weight_dtype="default")
        released = {"file": tiny_models.STORYMEM, "strength": 1.0, "made_by": "storymem"}
        pair = {name: node("LongreelFilmWeaverLora", model=["dit", 0], **released) for name in ("high", "low")}
        changes = {"low_noise_model": ["low", 0], "steps": 4, "keyframes": 1} | changes
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
    model = {"filmweaver": "lora"}.get(backend, "high" if pair else "dit")
    lora = {} if pair else {"file": tiny_models.LORA, "strength": 1.0, "made_by": "longreel"}
    ours: Prompt = {"lora": node("LongreelFilmWeaverLora", model=["dit", 0], **lora)} if lora else {}
    return (
        prompt
        | pair
        | ours
        | {
            "keys": node("LongreelKeyframeClip", file=tiny_models.CLIP, architecture="ViT-L-14"),
            "engine": node(
                "LongreelCacheGuidedEngine",
                model=[model, 0],
                clip=["text", 0],
                vae=["vae", 0],
                keyframe_clip=["keys", 0],
                backend=backend,
                **settings | changes,
            ),
        }
    )


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


def save(reel: str, name: str) -> dict[str, Any]:
    return node("LongreelSaveReel", reel=[reel, 0], filename_prefix=name)


def saved(studio: Server, name: str) -> Reel:
    """The newest reel file of that name."""
    return load_reel(max(studio.base.glob(f"output/{name}*"), key=lambda path: path.name))


def test_eight_shots_then_a_retake_an_extension_and_a_fork(studio: Server):
    """Each time only what must be filmed is filmed, and every reel comes back from its file as it was."""
    told: Prompt = guided()
    first = studio.queue(told | story("\n---\n".join(EIGHT)) | {"save": save("film", "eight")})
    assert first.succeeded, first.error
    filmed = [f"film.0.0.{number}" for number in range(1, 9)]
    assert [name for name in first.ran if name.startswith("film.")] == filmed
    before = saved(studio, "eight")

    again = [*EIGHT[:3], EIGHT[3].replace("seed: 3", "seed: 33"), *EIGHT[4:]]
    reel = told | story("\n---\n".join(again))
    retake = studio.queue(reel | {"save": save("film", "retake")})
    assert [name for name in retake.ran if name.startswith("film.")] == filmed[3:]
    after = saved(studio, "retake")
    assert [torch.equal(before.latents(i), after.latents(i)) for i in range(8)] == [True] * 3 + [False] * 5

    piece = {"shot": 6, "prompt": "A red ball jumps at the beach.", "seconds": 0.3, "seed": 9, "keep_rest": True}
    longer = node("LongreelExtendShot", engine=["engine", 0], reel=["film", 0], **piece)
    extension = studio.queue(reel | {"longer": longer, "save": save("longer", "longer")})
    assert set(extension.ran) == {"longer", "save"}
    extended = saved(studio, "longer")
    assert [shot.take_start for shot in extended.shots] == [True] * 6 + [False, True, True]
    places = [0, 1, 2, 3, 4, 5, None, 6, 7]
    kept = [(new, old) for new, old in enumerate(places) if old is not None]
    assert all(torch.equal(extended.latents(new), after.latents(old)) for new, old in kept)

    other = {"shot": "seconds: 0.3, seed: 7\nA red ball spins at the beach.", "project": ""}
    branch = {
        "fork": node("LongreelForkReel", reel=["film", 0], shot=3, seconds=0.0),
        "shot": node("LongreelFilmShot", engine=["engine", 0], reel=["fork", 0], **other),
        "save": save("shot", "fork"),
    }
    forked = studio.queue(reel | branch)
    assert set(forked.ran) == {"fork", "shot", "save"}
    fork = saved(studio, "fork")
    assert len(fork.shots) == 4
    assert all(torch.equal(fork.latents(i), after.latents(i)) for i in range(3))

    (file,) = [f"{path.name} [output]" for path in studio.base.glob("output/fork*")]
    loaded = {
        "load": node("LongreelLoadReel", file=file),
        "shot": node("LongreelFilmShot", engine=["engine", 0], reel=["load", 0], **other),
        "list": cache("load"),
        "said": node("PreviewAny", source=["list", 2]),
    }
    reloaded = studio.queue(told | loaded)
    assert reloaded.succeeded, reloaded.error
    said = reloaded.outputs["said"]["text"][0]
    assert "shot 4, latent" in said
    assert "Shot 4 was shown" in said


def test_a_story_changes_engines_between_shots(studio: Server):
    """Causal, cache-guided, causal: each goes on with the reel of the other, and all are remembered."""
    causal = engine()["engine"]
    prompt = guided() | {
        "causal": causal,
        "one": node("LongreelFilmShot", engine=["causal", 0], shot="seconds: 0.3\nA red ball.", project=""),
        "two": node(
            "LongreelFilmShot",
            engine=["engine", 0],
            reel=["one", 0],
            shot="seconds: 0.3, start: continue\nA red ball jumps.",
            project="",
        ),
        "three": node(
            "LongreelFilmShot", engine=["causal", 0], reel=["two", 0], shot="seconds: 0.3\nA red ball.", project=""
        ),
        "cache": cache("three"),
        "list": node("PreviewAny", source=["cache", 2]),
        "save": save("three", "engines"),
        "video": to_video("three"),
    }  # fmt: skip
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    said = outcome.outputs["list"]["text"][0]
    assert all(f"shot {number}, latent" in said for number in (1, 2, 3))
    reel = saved(studio, "engines")
    assert [shot.take_start for shot in reel.shots] == [True, False, True]
    assert [dict(shot.settings).get("engine") for shot in reel.shots][1] == "cache-guided"


@pytest.mark.parametrize("backend", IMAGE_TO_VIDEO)
def test_image_to_video_pairs_film_a_story(studio: Server, backend: str):
    shots = ("A red ball.", "A red ball jumps.", "A red ball.")
    text = "\n---\n".join(f"seconds: 0.5{', start: continue' * (i == 1)}\n{shot}" for i, shot in enumerate(shots))
    face: Prompt = {
        "face": node("EmptyImage", width=32, height=32, batch_size=1, color=0xFF0000),
        "cast": node("LongreelAddReferences", engine=["engine", 0], images=["face", 0], names="", pinned=False),
    }
    outcome = studio.queue(
        guided(backend) | face | story(text, reel=["cast", 0]) | {"save": save("film", backend), "v": to_video("film")}
    )
    assert outcome.succeeded, outcome.error
    reel = saved(studio, backend)
    assert [shot.latent_frames for shot in reel.shots] == [3, 2, 3], "nothing is filmed but what is shown"
    assert [shot.frames for shot in reel.shots] == [8, 8, 8]
    alone = studio.queue(guided(backend) | story(text) | {"v": to_video("film")})
    assert "films from pictures and there are none yet" in str(alone.error)


def test_context_windows_are_refused(studio: Server):
    windows = {"context_length": 16, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1}
    windows |= {"closed_loop": False, "fuse_method": "pyramid", "freenoise": False, "retain_first_frame": False}
    windows |= {"split_conds_to_windows": False}
    prompt = guided() | story() | {"v": to_video("film")}
    prompt["windows"] = node("WanContextWindowsManual", model=["lora", 0], **windows)
    prompt["engine"]["inputs"]["model"] = ["windows", 0]
    outcome = studio.queue(prompt)
    assert "remove the context window node and film in chunks" in str(outcome.error)


def test_bad_input_is_one_sentence(studio: Server):
    for backend, text, words in (
        ("vace", STORY, "load wan2.1_vace_14B"),
        ("bernini", "seconds: 0.5\nA red ball.\n---\nstart: continue\nA red ball jumps.", "remembers no motion"),
    ):
        outcome = studio.queue(guided(backend) | story(text) | {"video": to_video("film")})
        assert not outcome.succeeded
        assert words in str(outcome.error)
