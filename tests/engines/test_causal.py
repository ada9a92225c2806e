"""The causal engine without a server: shots onto reels, and what it refuses before filming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.ops
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.ldm.lightricks.model import LTXVModel
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_schedule import default_sigmas
from longreel.engines.filming import film_shot, prepare
from longreel.film.kv_memory import LONGLIVE, MEMFLOW
from longreel.film.reel.groups import KVMemoryGroup
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import Reel, ReelError
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from safetensors.torch import save_file

from .. import tiny_models

STORY = """\
seconds: 1
A red ball stands at the beach.
---
seconds: 1, start: continue
A red ball jumps at the beach.
[0.4s] A red ball spins at the beach.
---
seconds: 0.7
The same character walks."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CausalEngine:
    text = tmp_path_factory.mktemp("text") / tiny_models.TEXT
    save_file(tiny_models.text_weights(), text)
    model = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=tiny_models.dit_metadata())
    vae = comfy.sd.VAE(sd=tiny_models.vae_weights())
    return CausalEngine(
        models=(model,),
        clip=load_miniature_clip(str(text)),
        vae=vae,
        width=32,
        height=48,
        fps=16.0,
        sigmas=default_sigmas(model, 2),
    )


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()


def film(engine: CausalEngine, text: str, reel: Reel | None = None) -> Reel:
    for shot in parse_storyboard(text).shots:
        reel = engine.film(shot, reel or Reel.empty(engine.layout()), Progress(1), engine.shot_inputs(shot))
    assert reel is not None
    return reel


def test_story_becomes_a_reel(engine: CausalEngine):
    engine.check()
    reel = film(engine, STORY)
    assert [shot.take_start for shot in reel.shots] == [True, False, True]
    assert [shot.frames for shot in reel.shots] == [16, 16, 11]
    assert all(shot.latent_frames % 3 == 0 for shot in reel.shots)
    assert [reel.latents(i).shape for i in range(3)] == [(1, 16, shot.latent_frames, 6, 4) for shot in reel.shots]
    assert all(torch.isfinite(reel.latents(i)).all() for i in range(3))
    memory = KVMemoryGroup.of(reel.shots[-1])
    assert memory is not None
    assert memory.position == sum(shot.latent_frames for shot in reel.shots)


def test_same_shots_same_film_and_other_seed_other_film(engine: CausalEngine):
    once, twice = film(engine, STORY), film(engine, STORY)
    assert all(torch.equal(once.latents(i), twice.latents(i)) for i in range(3))
    assert once.fingerprint == twice.fingerprint
    other = film(engine, STORY.replace("seconds: 0.7", "seconds: 0.7, seed: 9"))
    assert torch.equal(once.latents(1), other.latents(1))
    assert not torch.equal(once.latents(2), other.latents(2))


def test_memory_reaches_over_a_cut(engine: CausalEngine):
    told = film(engine, "seconds: 0.5\nA red ball.\n---\nseconds: 0.5\nThe same character.")
    alone = film(engine, "seconds: 0.5, seed: 1\nThe same character.")
    assert not torch.allclose(told.latents(1), alone.latents(0), atol=1e-3)


def test_picture_is_the_first_frame(engine: CausalEngine):
    picture = torch.rand(1, 48, 32, 3, generator=torch.Generator().manual_seed(5))
    shot = parse_shot("seconds: 0.5\nA red ball.")
    reel = engine.film(shot, Reel.empty(engine.layout()), Progress(1), engine.shot_inputs(shot, picture))
    from longreel.host.families import encode_image

    assert torch.allclose(reel.latents(0)[:, :, :1], encode_image(engine.vae, picture, 32, 48), atol=1e-4)


def test_project_reuses_what_is_unchanged_and_says_why(engine: CausalEngine, tmp_path: Path):
    def shoot(text: str) -> tuple[Reel, list[str]]:
        store, shots, reel = ProjectStore(tmp_path / "project"), parse_storyboard(text).shots, None
        story = prepare(engine, shots, reel, store)
        for job in story.jobs:
            reel = film_shot(engine, job.shot, reel, store, job.place)
        assert reel is not None
        return reel, [line.partition(" (take ")[0] for line in story.describe().splitlines()]

    first, said = shoot(STORY)
    assert said == [f"shot {number} filmed: not filmed before" for number in (1, 2, 3)]
    again, said = shoot(STORY)
    assert said == [f"shot {number} reused: nothing changed" for number in (1, 2, 3)]
    assert [shot.file.path for shot in first.shots] == [shot.file.path for shot in again.shots]
    changed, said = shoot(STORY.replace("jumps", "sways"))
    assert said == [
        "shot 1 reused: nothing changed",
        "shot 2 filmed: prompt changed",
        "shot 3 filmed: an earlier shot changed",
    ]
    assert changed.fingerprint != first.fingerprint


@pytest.mark.parametrize("folder", ["has gone", "cannot be made"])
def test_what_was_filmed_is_kept_whatever_becomes_of_the_project(
    engine: CausalEngine, tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture
):
    store, shot = ProjectStore(tmp_path / "projects" / "film"), parse_shot("seconds: 0.5\nA red ball.")
    place = prepare(engine, [shot], None, store).jobs[0].place
    store.folder.rmdir()
    store.folder.parent.rmdir()
    if folder == "cannot be made":
        store.folder.parent.touch()
    reel = film_shot(engine, shot, None, store, place)
    assert reel.latents(0).shape == (1, 16, 3, 6, 4)
    assert (reel.shots[0].file.path.parent == store.folder) == (folder == "has gone")
    assert ("shot 1 is not in the project" in caplog.text) == (folder == "cannot be made")


def test_steps_are_those_that_are_counted(engine: CausalEngine):
    story = prepare(engine, parse_storyboard(STORY).shots, None, None)
    counted = Progress(10**6)
    reel = None
    for shot in parse_storyboard(STORY).shots:
        reel = engine.film(shot, reel or Reel.empty(engine.layout()), counted, engine.shot_inputs(shot))
    assert counted.done == story.jobs[0].place.total
    assert [(job.place.shot, job.place.shots) for job in story.jobs] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "width of 40 does not fit this model: set a multiple of 16 such as 32"),
        ({"height": 8}, "height of 8 .* such as 16"),
        ({"sigmas": (1.0, 0.5)}, "fall step by step to 0"),
        ({"sigmas": (0.8, 0.5, 0.0)}, "no clip to begin from"),
        ({"frames_per_block": 10}, "no room for a block of 10"),
    ],
)
def test_settings_are_refused_before_filming(engine: CausalEngine, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(engine, **change).check()


def test_image_to_video_model_is_refused(engine: CausalEngine):
    weights = tiny_models.image_to_video_weights()
    model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(causal=False))
    with pytest.raises(ValueError, match="36 input channels"):
        replace(engine, models=(model,)).check()


def test_vae_of_another_family_is_refused(engine: CausalEngine):
    vae = comfy.sd.VAE(sd={})
    with pytest.raises(ValueError, match="needs a Wan VAE"):
        replace(engine, vae=vae).check()


def test_what_will_not_be_as_asked_is_said_before_filming(engine: CausalEngine):
    shot = parse_shot("seconds: 0.5\nA red ball.\n[0.49s] A red ball jumps.")
    story = prepare(engine, [shot], None, None)
    assert story.report() == "shot 1: no block is left for the prompt at 0.49 s: A red ball jumps."
    assert story.warnings == (story.report(),)


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ("A purple unicorn.", "does not know 'unicorn'"),
        ("references: a.png; b.png\nA red ball.", "from one picture and this has 2"),
        ("start: continue, references: a.png\nA red ball.", "set its start to cut"),
        ("references: none.png\nA red ball.", "no file 'none.png'"),
        ("start: continue\nA red ball.", "continues nothing"),
        ("seconds: 0.01\nA red ball.", "less than a frame"),
    ],
)
def test_shots_are_refused_before_filming(engine: CausalEngine, shot: str, message: str):
    with pytest.raises(ValueError, match=f"Shot 1: .*{message}"):
        prepare(engine, [parse_shot(shot)], None, None)


def test_reel_of_other_settings_is_refused(engine: CausalEngine):
    reel, shot = film(engine, "seconds: 0.5\nA red ball."), parse_shot("seconds: 0.5\nA red ball.")
    place = prepare(engine, [shot], reel, None).jobs[0].place
    with pytest.raises(ReelError, match="width 32 and this engine has 64"):
        film_shot(replace(engine, width=64), shot, reel, None, place)
    with pytest.raises(ValueError, match="bank 3, the memory settings now say 0"):
        film_shot(replace(engine, memory=LONGLIVE), shot, reel, None, place)
    assert film_shot(replace(engine, memory=MEMFLOW), shot, reel, None, place).frames == 16


def test_model_of_another_family_is_refused(engine: CausalEngine):
    plain = {
        "in_channels": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "caption_channels": 8,
        "num_layers": 1,
    }
    weights = LTXVModel(**plain, operations=comfy.ops.disable_weight_init).state_dict()
    config = {name: plain[name] for name in ("in_channels", "caption_channels")}
    metadata = {"config": json.dumps({"transformer": config})}
    model = comfy.sd.load_diffusion_model_state_dict(
        {name: value.zero_() for name, value in weights.items()}, metadata=metadata
    )
    with pytest.raises(ValueError, match="LTXV is not a Wan model"):
        replace(engine, models=(model,)).check()


def test_reel_of_another_model_is_refused(engine: CausalEngine):
    reel = film(engine, "seconds: 0.5\nA red ball.")
    weights = tiny_models.dit_weights(seed=9)
    other = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata())
    with pytest.raises(ReelError, match=r"^The reel was filmed with another model: connect the one it was filmed with"):
        prepare(replace(engine, models=(other,)), [parse_shot("A red ball.")], reel, None)
