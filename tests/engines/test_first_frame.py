"""The first-frame engine without a server: equal to core's own graphs, trimmed, cast by name, and what it refuses."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from longreel.engines import first_frame
from longreel.engines.filming import film_shot, prepare
from longreel.engines.first_frame import LEADS, FirstFrameEngine
from longreel.film.first_frame import Reference, compose
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import Reel, load_reel, save_reel
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.families import encode_image
from longreel.host.files.pictures import fingerprint_files
from longreel.host.media.decode import film_frames
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.sampling import stages_by_boundary
from longreel.host.wan.first_frame import kind_of
from PIL import Image
from safetensors.torch import save_file

import nodes as core_nodes

from .. import tiny_models
from ..host.families.test_wan import _vae

WIDTH, HEIGHT = 64, 32
SHOT = "seconds: 0.5, seed: 3\nA red ball stands at the beach."


def dit(seed: int = 1, in_dim: int = 16) -> ModelPatcher:
    """A tiny Wan with the model's own shift replaced by 5."""
    weights, metadata = tiny_models.dit_weights(seed, in_dim), tiny_models.dit_metadata(causal=False)
    model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)
    shifted: ModelPatcher = ModelSamplingSD3().patch(model, 5.0)[0]
    return shifted


def vae_5b() -> comfy.sd.VAE:
    """A narrow Wan 2.2 VAE, 16 pixels to a side of a latent as ComfyUI sets it up."""
    vae = copy.copy(_vae("2.2", 8))
    vae.downscale_ratio = (lambda frames: (frames + 3) // 4, 16, 16)
    vae.upscale_ratio = (lambda frames: frames * 4 - 3, 16, 16)
    vae.downscale_index_formula = vae.upscale_index_formula = (4, 16, 16)
    return vae


def picture(seed: int = 1, width: int = WIDTH, height: int = HEIGHT) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def reference(name: str, seed: int, description: str = "") -> Reference:
    return Reference.from_image(picture(seed, 20, 20), name=name, description=description)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> FirstFrameEngine:
    """An engine like Wan 2.2 I2V A14B's: two experts with 36 input channels."""
    text = tmp_path_factory.mktemp("text") / tiny_models.TEXT
    save_file(tiny_models.text_weights(), text)
    return FirstFrameEngine(
        models=(dit(1, 36), dit(2, 36)),
        clip=load_miniature_clip(str(text)),
        vae=comfy.sd.VAE(sd=tiny_models.vae_weights()),
        width=WIDTH,
        height=HEIGHT,
        fps=16.0,
        step_count=5,
        cfg=6.0,
        sampler="euler",
        scheduler="simple",
        negative="A blue star.",
        trigger="",
        cast=(reference("ball", 1), reference("Star", 2)),
        plate=picture(9),
        transition="fixed",
    )


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("temp", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))


def film(engine: FirstFrameEngine, text: str = SHOT, first: torch.Tensor | None = None) -> Reel:
    reel = Reel.empty(engine.layout())
    for shot in parse_storyboard(text).shots:
        reel = engine.film(shot, reel, Progress(1), engine.shot_inputs(shot, first))
    return reel


def conditioning(engine: FirstFrameEngine, text: str) -> Any:
    return engine.clip.encode_from_tokens_scheduled(engine.clip.tokenize(text))


# Equal to core's own graphs


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
def test_pair_films_what_two_ksamplers_make(pair: FirstFrameEngine, sampler: str):
    engine = replace(pair, sampler=sampler)
    engine.check()
    mine = film(engine).latents(0)
    first = compose(engine.cast, engine.plate, "auto", (WIDTH, HEIGHT)).picture
    positive, negative, latent = WanImageToVideo.execute(
        conditioning(engine, "A red ball stands at the beach."),
        conditioning(engine, "A blue star."),
        engine.vae,
        WIDTH,
        HEIGHT,
        13,  # 8 frames of the shot and 4 of the collage, to the next 4n + 1
        1,
        start_image=first,
    ).args
    switch = stages_by_boundary(engine.models, "simple", 5, 0.9)[0].last
    assert 0 < switch < 5
    run = core_nodes.KSamplerAdvanced().sample
    plain = (sampler, "simple", positive, negative)
    half = run(engine.models[0], "enable", 3, 5, 6.0, *plain, latent, 0, switch, "enable")[0]
    whole = run(engine.models[1], "disable", 3, 5, 6.0, *plain, half, switch, 10000, "disable")[0]
    assert torch.equal(mine, whole["samples"])
    swapped = film(replace(engine, models=engine.models[::-1])).latents(0)
    assert not torch.allclose(mine, swapped, atol=1e-3)


def test_single_image_to_video_model_films_what_ksampler_makes(pair: FirstFrameEngine):
    engine = replace(pair, models=pair.models[:1])
    engine.check()
    first = picture(4)
    alone = film(replace(engine, cast=()), first=first).latents(0)
    positive, negative, latent = WanImageToVideo.execute(
        conditioning(engine, "A red ball stands at the beach."),
        conditioning(engine, "A blue star."),
        engine.vae,
        WIDTH,
        HEIGHT,
        13,
        1,
        start_image=first,
    ).args
    theirs = core_nodes.KSampler().sample(engine.models[0], 3, 5, 6.0, "euler", "simple", positive, negative, latent)[0]
    assert torch.equal(alone, theirs["samples"])


def test_5b_films_what_ksampler_makes(pair: FirstFrameEngine):
    model = comfy.sd.load_diffusion_model_state_dict(
        tiny_models.dit_weights(5, 48, out_dim=48), metadata=tiny_models.dit_metadata(causal=False)
    )
    assert kind_of(model) == "latent"
    engine = replace(pair, models=(model,), vae=vae_5b(), cast=())
    engine.check()
    first = picture(4)
    mine = film(engine, first=first).latents(0)
    latent = Wan22ImageToVideoLatent.execute(engine.vae, WIDTH, HEIGHT, 13, 1, start_image=first).args[0]
    plain = (conditioning(engine, "A red ball stands at the beach."), conditioning(engine, "A blue star."))
    theirs = core_nodes.KSampler().sample(model, 3, 5, 6.0, "euler", "simple", *plain, latent)[0]
    assert torch.equal(mine, theirs["samples"])


def test_text_to_video_model_is_given_a_clean_first_frame(pair: FirstFrameEngine, monkeypatch: pytest.MonkeyPatch):
    engine = replace(pair, models=(dit(1),), cast=())
    assert kind_of(engine.models[0]) == "frame"
    first, seen = picture(4), []
    network = engine.models[0].model.diffusion_model
    real = network.forward_orig

    def watch(x: torch.Tensor, timestep: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append((x[:, :, 0], timestep))
        flow: torch.Tensor = real(x, timestep, *rest, **named)
        return flow

    monkeypatch.setattr(network, "forward_orig", watch)
    latents = film(engine, first=first).latents(0)
    encoded = encode_image(engine.vae, first, WIDTH, HEIGHT)
    assert torch.allclose(latents[:, :, :1], encoded, atol=1e-5)
    clean = engine.models[0].model.process_latent_in(encoded)[:, :, 0]
    assert len(seen) >= 5
    for x, timestep in seen:
        assert torch.allclose(x, clean.expand_as(x), atol=1e-5)
        assert (timestep[:, 0] == 0).all()
        assert (timestep[:, 1:] == timestep[:, 1:2]).all()
        assert (timestep[:, 1] > 0).all()
    other = film(engine, first=picture(5)).latents(0)
    assert not torch.allclose(latents[:, :, 1:], other[:, :, 1:], atol=1e-3)


@pytest.mark.parametrize(("steps", "switch"), [(4, 2), (6, 3), (8, 3), (20, 8), (30, 11), (40, 15), (50, 18)])
def test_expert_switch_of_the_published_schedule(pair: FirstFrameEngine, steps: int, switch: int):
    assert stages_by_boundary(pair.models, "simple", steps, 0.9)[0].last == switch
    levels = comfy.samplers.calculate_sigmas(pair.models[0].get_model_object("model_sampling"), "simple", steps)
    assert len(levels) == steps + 1
    assert levels[switch - 1] >= 0.9 > levels[switch]


# The transition


def test_what_is_trimmed_stays_in_the_latents(pair: FirstFrameEngine):
    """The film shows exactly the frames behind the lead, shot after shot, after saving and loading too."""
    reel = film(pair, f"{SHOT}\n---\n{SHOT}")
    assert [(shot.lead, shot.frames, shot.latent_frames) for shot in reel.shots] == [(4, 8, 4), (4, 8, 4)]
    shown = torch.cat(list(film_frames(reel, pair.vae)))
    decoded = [torch.cat(list(film_frames(_whole(reel, i), pair.vae))) for i in range(2)]
    assert [len(frames) for frames in decoded] == [13, 13]
    assert torch.equal(shown, torch.cat([frames[4:12] for frames in decoded]))
    assert torch.equal(torch.cat(list(film_frames(reel, pair.vae, 6, 11))), shown[6:11])
    path = Path(folder_paths.temp_directory) / "two.safetensors"
    save_reel(reel, path)
    assert torch.equal(torch.cat(list(film_frames(load_reel(path), pair.vae))), shown)


def _whole(reel: Reel, shot: int) -> Reel:
    """A reel of one shot with nothing trimmed."""
    part = reel.shots[shot]
    untrimmed = replace(part, meta={}, frames=1 + 4 * (part.latent_frames - 1), previous="")
    return Reel.empty(reel.layout).append(untrimmed)


def test_auto_trims_what_it_finds_and_says_so(pair: FirstFrameEngine):
    engine = replace(pair, transition="auto")
    reel = film(engine)
    (shot,) = reel.shots
    said = shot.meta["transition"]
    assert shot.latent_frames == 1 + 4  # 8 frames and 8 to spare
    # Random weights show no collage, or one that never goes: either way the clip is cut as it is said.
    assert said["status"] in ("found", "no cut", "no collage")
    assert shot.lead == said["lead"] <= 24
    assert shot.frames == min(8, 17 - shot.lead)
    assert LEADS["auto"] == 8


def test_next_shot_makes_up_for_a_late_cut(pair: FirstFrameEngine, monkeypatch: pytest.MonkeyPatch):
    from longreel.film.first_frame import Cut

    late = Cut(12, "found", 0.0, (), "")
    monkeypatch.setattr(first_frame, "find_cut", lambda *_: late)
    engine = replace(pair, transition="auto")
    first = film(engine)
    assert (first.shots[0].lead, first.shots[0].frames) == (12, 5)
    shot = parse_shot(SHOT)
    both = engine.film(shot, first, Progress(1), engine.shot_inputs(shot, picture()))
    assert both.shots[1].frames == 9  # 11 are missing to the 16 of the storyboard, 21 are filmed


# The cast


def test_shots_name_their_references(pair: FirstFrameEngine):
    file = np.dstack(((picture(7, 24, 24)[0].numpy() * 255).astype(np.uint8), np.zeros((24, 24), np.uint8)))
    file[4:20, 4:20, 3] = 255
    Image.fromarray(file).save(Path(folder_paths.input_directory) / "red box.png")
    Image.fromarray(file[..., :3]).save(Path(folder_paths.input_directory) / "room.png")
    shot = parse_shot('references: star; "red box.png"; plate=room.png\nA red ball.')
    from_file = Reference.from_image(torch.from_numpy(file / 255.0).float(), name="red box")
    room = torch.from_numpy(file[None, ..., :3] / 255.0).float()
    wanted = compose([pair.cast[1], from_file], room, "auto", (WIDTH, HEIGHT)).picture
    assert torch.equal(pair.shot_inputs(shot).picture, wanted)
    # Film Shot is run again when a file changes, the plate's too.
    before = fingerprint_files(shot.references)
    Image.new("RGB", (8, 8)).save(Path(folder_paths.input_directory) / "room.png")
    assert fingerprint_files(shot.references) != before
    everybody = compose(pair.cast, pair.plate, "auto", (WIDTH, HEIGHT)).picture
    assert torch.equal(pair.shot_inputs(parse_shot("A red ball.")).picture, everybody)


def test_prompt_has_the_trigger_and_the_looks(pair: FirstFrameEngine):
    told: list[str] = []
    engine = replace(pair, trigger="The same character.", cast=(reference("ball", 1, "red"), reference("star", 2)))
    real = engine.clip.tokenize
    engine.clip.tokenize = lambda text: told.append(text) or real(text)  # type: ignore[method-assign]
    try:
        engine.shot_inputs(parse_shot("references: ball\nA ball walks."))
    finally:
        engine.clip.tokenize = real  # type: ignore[method-assign]
    assert told == ["The same character. A ball walks. The ball is red."]


def test_a_cast_is_loaded_and_composed_once(pair: FirstFrameEngine, monkeypatch: pytest.MonkeyPatch):
    """Once to plan a shot and once to film it, with a trigger that asks for the cast's looks too."""
    Image.new("RGBA", (24, 24), (255, 0, 0, 255)).save(Path(folder_paths.input_directory) / "box.png")
    Image.new("RGB", (24, 24)).save(Path(folder_paths.input_directory) / "room.png")
    counted: list[str] = []

    def count(name: str) -> None:
        real = getattr(first_frame, name)
        monkeypatch.setattr(first_frame, name, lambda *args, **named: counted.append(name) or real(*args, **named))

    for name in ("load_cut_out", "load_picture", "compose", "build_prompt"):
        count(name)
    engine = replace(pair, trigger="The same character.")
    shot = parse_shot("seconds: 0.5, references: ball; box.png; plate=room.png\nA red ball and a box.")
    (job,) = prepare(engine, [shot], None, None).jobs
    assert sorted(counted) == ["build_prompt", "compose", "load_cut_out", "load_picture"]
    counted.clear()
    film_shot(engine, shot, None, None, job.place)
    assert sorted(counted) == ["build_prompt", "compose", "load_cut_out", "load_picture"]


def test_a_plan_holds_no_pictures(pair: FirstFrameEngine, monkeypatch: pytest.MonkeyPatch):
    """A story of fifty shots keeps as much as one of two: a fingerprint of each picture, and never two at once."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    real = FirstFrameEngine.shot_inputs

    def watch(engine: FirstFrameEngine, *args: Any) -> Any:
        nonlocal most
        inputs = real(engine, *args)
        alive.append(weakref.ref(inputs.picture))
        most = max(most, sum(one() is not None for one in alive))
        return inputs

    monkeypatch.setattr(FirstFrameEngine, "shot_inputs", watch)
    story = prepare(pair, [parse_shot(SHOT)] * 50, None, None)
    assert len(alive) == len(story.jobs) == 50
    assert most <= 2, "the one before lives until the next takes its name"
    assert not any(one() is not None for one in alive)
    assert len({job.fingerprint for job in story.jobs}) == 50


def test_project_reuses_shots_until_the_cast_changes(pair: FirstFrameEngine, tmp_path: Path):
    def shoot(engine: FirstFrameEngine) -> list[str]:
        store, shots, reel = ProjectStore(tmp_path / "project"), parse_storyboard(f"{SHOT}\n---\n{SHOT}").shots, None
        story = prepare(engine, shots, reel, store)
        counted = []
        for job in story.jobs:
            reel = film_shot(engine, job.shot, reel, store, job.place)
            counted.append(job.place.total)
        assert counted == [10, 10]
        return [job.decision.action for job in story.jobs if job.decision]

    assert shoot(pair) == ["filmed", "filmed"]
    assert shoot(pair) == ["reused", "reused"]
    assert shoot(replace(pair, cast=pair.cast[::-1])) == ["filmed", "filmed"]


def test_steps_are_those_that_are_counted(pair: FirstFrameEngine):
    counted = Progress(100)
    shot = parse_shot(SHOT)
    pair.film(shot, Reel.empty(pair.layout()), counted, pair.shot_inputs(shot, picture()))
    assert counted.done == 5


# What it refuses before filming


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 72}, "width of 72 does not fit this model: set a multiple of 16 such as 64"),
        ({"negative": "A purple unicorn."}, "does not know 'unicorn'"),
        ({"step_count": 1}, "None of 1 steps is left to the low-noise model"),
        ({"boundary": 0.0001}, "left to the low-noise model"),
    ],
)
def test_settings(pair: FirstFrameEngine, change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(pair, **change).check()


def test_models(pair: FirstFrameEngine):
    with pytest.raises(ValueError, match="takes 20 input channels"):
        replace(pair, models=(dit(1, 20),)).check()
    with pytest.raises(ValueError, match="Only image-to-video models come as a pair"):
        replace(pair, models=(dit(1), pair.models[1])).check()
    with pytest.raises(ValueError, match=r"latents have 16 channels and the VAE's 48: load wan_2.1_vae"):
        replace(pair, vae=_vae("2.2", 8)).check()


def test_experts_with_each_others_lora(pair: FirstFrameEngine):
    high, low = (model.clone() for model in pair.models)
    high.set_attachments("lora_metadata", {"expert": "low"})
    low.set_attachments("lora_metadata", {"expert": "high"})
    with pytest.raises(ValueError, match="The two LoRAs are swapped"):
        replace(pair, models=(high, low)).check()
    replace(pair, models=(low, high)).check()


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ("start: continue\nA red ball.", "set its start to cut"),
        ("A red ball.\n[1s] A blue star.", "has one prompt"),
        ("A purple unicorn.", "does not know 'unicorn'"),
        ("references: mug\nA red ball.", r"No reference is called 'mug' \(in the cast: ball, Star\)"),
        ("references: ball; plate=gone.png\nA red ball.", "no file 'gone.png'"),
        ("references: ball; plate=a.png; plate=b.png\nA red ball.", "one background plate and this has 2"),
        (f"references: {'; '.join(['ball'] * 9)}\nA red ball.", "takes 1 to 8 references, not 9"),
    ],
)
def test_shots(pair: FirstFrameEngine, shot: str, message: str):
    with pytest.raises(ValueError, match=f"Shot 1: .*{message}"):
        prepare(pair, [parse_shot(shot)], None, None)


def test_first_frames(pair: FirstFrameEngine):
    shot = parse_shot("A red ball.")
    with pytest.raises(ValueError, match="The first frame is 32 x 32 and the film 64 x 32: compose it"):
        prepare(pair, [shot], None, None, picture(1, 32, 32))
    with pytest.raises(ValueError, match="has references and a first frame too"):
        prepare(pair, [parse_shot("references: ball\nA red ball.")], None, None, picture())
    with pytest.raises(ValueError, match="The shot has no references"):
        prepare(replace(pair, cast=()), [shot], None, None)
