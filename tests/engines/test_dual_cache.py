"""The cache-guided engine without a server: what it films again and what not, what it remembers, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from longreel.engines import dual_cache as cache_guided
from longreel.engines import dual_cache_bank, filming
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_schedule import default_sigmas
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import Bernini, FilmWeaver, Phantom, Vace, make_backend
from longreel.engines.dual_cache_bank import edited
from longreel.engines.editing import insert_shot
from longreel.engines.engine import Engine, EngineError
from longreel.engines.filming import film_shot, prepare
from longreel.film.dual_cache import FILMWEAVER, CacheError, RetrievalPolicy, ban, inject, pin
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import Reel, ReelError, load_reel, save_reel
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.sampling import SamplerSettings, sample_chunk
from longreel.host.wan.cache_tokens import install
from PIL import Image
from safetensors.torch import save_file

from .. import tiny_models

EIGHT = "\n---\n".join(f"seconds: 0.3, seed: {number}\nA red ball stands at the beach." for number in range(8))


def wan(**options: Any) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1, **options), metadata=tiny_models.dit_metadata(causal=False)
    )


@pytest.fixture(scope="module")
def bernini(tmp_path_factory: pytest.TempPathFactory) -> CacheGuidedEngine:
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.text_weights(), folder / tiny_models.TEXT)
    return CacheGuidedEngine(
        models=(wan(),),
        clip=load_miniature_clip(str(folder / tiny_models.TEXT)),
        vae=comfy.sd.VAE(sd=tiny_models.vae_weights()),
        embedder=load_embedder(tiny_models.write_clip(folder / "clip")),
        backend=Bernini(),
        width=32,
        height=48,
        fps=16.0,
        sampling=SamplerSettings(steps=1, cfg=2.0, sampler="euler"),
    )


@pytest.fixture(scope="module")
def weaver(bernini: CacheGuidedEngine) -> CacheGuidedEngine:
    model = install(bernini.models[0], FILMWEAVER)
    return replace(bernini, models=(model,), backend=make_backend("filmweaver", model))


@pytest.fixture(scope="module", params=["storymem", "svi"])
def pair(request: pytest.FixtureRequest, bernini: CacheGuidedEngine) -> CacheGuidedEngine:
    """Two models that take a first frame, as Wan 2.2 I2V A14B, with a backend that needs such."""
    models = tuple(
        comfy.sd.load_diffusion_model_state_dict(
            tiny_models.dit_weights(seed, in_dim=36), metadata=tiny_models.dit_metadata(causal=False)
        )
        for seed in (6, 7)
    )
    sampling = SamplerSettings(steps=4, cfg=1.0, sampler="euler", boundary=0.9)
    backend = make_backend(request.param, models[0])
    return replace(bernini, models=models, backend=backend, sampling=sampling, policy=RetrievalPolicy(count=1))


def film(engine: Engine, text: str, reel: Reel | None = None, project: ProjectStore | None = None) -> Reel:
    shots = parse_storyboard(text).shots
    for job in prepare(engine, shots, reel, project).jobs:
        reel = film_shot(engine, job.shot, reel, project, job.place)
    assert reel is not None
    return reel


def from_picture(engine: CacheGuidedEngine, text: str, picture: torch.Tensor) -> Reel:
    shot = parse_shot(text)
    return engine.film(shot, Reel.empty(engine.layout()), Progress(10**6), engine.shot_inputs(shot, picture))


def test_a_story_of_cuts_and_continuations(weaver: CacheGuidedEngine):
    weaver.check()
    reel = film(
        weaver, "seconds: 2\nA red ball.\n---\nseconds: 1, start: continue\nA red ball jumps.\n---\nA red ball."
    )
    assert [shot.take_start for shot in reel.shots] == [True, False, True]
    assert [shot.frames for shot in reel.shots] == [32, 16, 80]
    assert all(shot.latent_frames % 6 == 0 for shot in reel.shots)
    assert all(torch.isfinite(reel.latents(i)).all() for i in range(3))
    bank = weaver.remembered(reel).bank
    assert {keyframe.shot for keyframe in bank} == {0, 1, 2}
    told = [shot.meta["told"] for shot in reel.shots]
    assert not any(told[0]), "a new story knows nothing"
    assert not any(told[1]), "a take is not told of its own keyframes"
    earlier = {keyframe.uid for keyframe in bank if keyframe.shot < 2}
    assert all(chunk and set(chunk) <= earlier for chunk in told[2])


def test_a_continued_shot_goes_on_from_the_frames_before(weaver: CacheGuidedEngine):
    begun = film(weaver, "seconds: 1\nA red ball.")
    other = film(weaver, "seconds: 1, seed: 5\nA red ball.")
    after = [film(weaver, "seconds: 1, start: continue, seed: 3\nA red ball.", reel) for reel in (begun, other)]
    assert not torch.allclose(after[0].latents(1), after[1].latents(1), atol=1e-3)
    history = weaver.with_history(begun, weaver.remembered(begun)).history
    assert torch.allclose(history[None], weaver.latent_format.process_in(begun.latents(0)))


def test_keyframes_reach_over_a_cut(bernini: CacheGuidedEngine):
    text = "seconds: 0.5, seed: 7\nA red ball."
    alone = film(bernini, text)
    reel = film(bernini, "seconds: 0.5\nA red ball.")
    told = film(bernini, text, reel)
    assert not torch.allclose(alone.latents(0), told.latents(1), atol=1e-3)
    before = bernini.remembered(reel)
    for keyframe in before.bank:
        before = ban(before, keyframe.uid)
    banned = edited(reel, bernini.remembered(reel), before)
    assert torch.equal(film(bernini, text, banned).latents(1), alone.latents(0)), "nothing told, nothing seen"


def test_pins_bans_and_pictures_ride_on_the_reel(bernini: CacheGuidedEngine, tmp_path: Path):
    shown = torch.rand(2, 48, 32, 3, generator=torch.Generator().manual_seed(1))
    reel = Reel.empty(bernini.layout())
    empty = bernini.remembered(reel)
    reel = edited(reel, empty, inject(empty, bernini.user_keyframes(shown, [("Ada",), ("Bo",)], pinned=True)))
    reel = film(bernini, "seconds: 0.5\nA red ball.", reel)
    bank = bernini.remembered(reel)
    users = [keyframe.uid for keyframe in bank.bank if keyframe.source == "user"]
    assert reel.shots[0].meta["told"] == [users]
    reel = edited(reel, bank, pin(ban(bank, users[0]), bank.bank[-1].uid))
    save_reel(reel, tmp_path / "a.reel.safetensors")
    loaded = load_reel(tmp_path / "a.reel.safetensors")
    for kept in (reel, loaded):
        marks = {keyframe.uid: (keyframe.pinned, keyframe.banned) for keyframe in bernini.remembered(kept).bank}
        assert marks[users[0]] == (True, True)
        assert marks[bank.bank[-1].uid] == (True, False)
    first, second = (film(bernini, "seconds: 0.5\nA red ball.", kept) for kept in (reel, loaded))
    assert torch.equal(first.latents(1), second.latents(1))
    assert users[0] not in first.shots[1].meta["told"][0]
    assert edited(reel, bank, bank) is reel


def test_references_of_a_shot_are_told_first_and_kept(weaver: CacheGuidedEngine):
    import folder_paths

    for name, colour in (("ada.png", (255, 0, 0)), ("bo.png", (0, 255, 0))):
        Image.new("RGB", (64, 64), colour).save(Path(folder_paths.get_input_directory()) / name)
    reel = film(weaver, "seconds: 0.3\nA red ball.\n---\nseconds: 0.3, references: ada.png; bo.png\nA red ball.")
    bank = weaver.remembered(reel).bank
    users = [keyframe for keyframe in bank if keyframe.source == "user"]
    assert [keyframe.characters for keyframe in users] == [("ada",), ("bo",)]
    assert reel.shots[1].meta["told"][0][:2] == [keyframe.uid for keyframe in users]


def test_a_picture_to_start_from_is_the_first_frame(weaver: CacheGuidedEngine):
    picture = torch.rand(1, 48, 32, 3, generator=torch.Generator().manual_seed(5))
    reel = from_picture(weaver, "seconds: 1\nA red ball.", picture)
    from longreel.host.families import encode_image

    assert torch.allclose(reel.latents(0)[:, :, :1], encode_image(weaver.vae, picture, 32, 48), atol=1e-4)
    assert reel.latents(0).shape[2] == reel.shots[0].latent_frames == 6


def test_a_pair_goes_on_from_a_picture_and_from_a_take(pair: CacheGuidedEngine):
    pair.check()
    picture = torch.rand(1, 48, 32, 3, generator=torch.Generator().manual_seed(5))
    text = "seconds: 6\nA red ball.\n[3s] A red ball jumps."
    reel = from_picture(pair, text, picture)
    assert reel.shots[0].latent_frames == 25
    assert len(reel.shots[0].meta["told"]) == 2, "25 latent frames are two pieces"
    from longreel.host.families import encode_image

    assert torch.allclose(reel.latents(0)[:, :, :1], encode_image(pair.vae, picture, 32, 48), atol=1e-4)
    on = "seconds: 1, start: continue, seed: 3\nA red ball jumps."
    other = from_picture(pair, text, 1 - picture)
    after = [film(pair, on, begun) for begun in (reel, other)]
    assert [shot.latent_frames for shot in after[0].shots] == [25, 4]
    assert not torch.allclose(after[0].latents(1), after[1].latents(1), atol=1e-3)
    cut = film(pair, "seconds: 1\nA red ball.", after[0])
    told = cut.shots[2].meta["told"][0]
    assert told
    assert set(told) <= {keyframe.uid for keyframe in pair.remembered(after[0]).bank}
    assert all(torch.isfinite(cut.latents(i)).all() for i in range(3))


def test_a_pair_needs_something_to_film_from(pair: CacheGuidedEngine, bernini: CacheGuidedEngine):
    with pytest.raises(EngineError, match="films from pictures and there are none yet"):
        film(pair, "A red ball.")
    with pytest.raises(EngineError, match="ask for 1 or more"):
        replace(pair, policy=RetrievalPolicy(count=0)).check()
    reel = film(bernini, "seconds: 0.3\nA red ball.")
    assert len(film(pair, "seconds: 0.3\nA red ball.", reel).shots) == 2
    bank = pair.remembered(reel)
    for keyframe in bank.bank:
        bank = ban(bank, keyframe.uid)
    with pytest.raises(EngineError, match="there are none yet"):
        film(pair, "seconds: 0.3\nA red ball.", edited(reel, pair.remembered(reel), bank))


def test_a_shot_that_goes_on_with_the_same_seed_has_other_noise(
    weaver: CacheGuidedEngine, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[torch.Tensor, int]] = []

    def spy(models: Any, given: Any, noise: torch.Tensor, settings: Any, seed: int, **rest: Any) -> torch.Tensor:
        seen.append((noise, seed))
        return sample_chunk(models, given, noise, settings, seed, **rest)

    monkeypatch.setattr(cache_guided, "sample_chunk", spy)
    film(weaver, "seconds: 1, seed: 5\nA red ball.\n---\nseconds: 0.4, seed: 5, start: continue\nA red ball jumps.")
    assert not torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] != seen[1][1]


def test_only_what_must_be_filmed_is_filmed(bernini: CacheGuidedEngine, tmp_path: Path):
    """Eight shots, then shot 4 again, shot 6 extended, a fork at 3."""

    def said(text: str) -> list[str]:
        story = prepare(bernini, parse_storyboard(text).shots, None, store)
        return [job.decision.action for job in story.jobs if job.decision]

    store = ProjectStore(tmp_path / "project")
    reel = film(bernini, EIGHT, project=store)
    assert said(EIGHT) == ["reused"] * 8
    again = EIGHT.replace("seed: 3\n", "seed: 33\n")
    assert said(again) == ["reused"] * 3 + ["filmed"] * 5
    retaken = film(bernini, again, project=store)
    assert all(torch.equal(reel.latents(i), retaken.latents(i)) for i in range(3))
    assert not torch.equal(reel.latents(3), retaken.latents(3))

    weaves = replace(bernini, models=(install(bernini.models[0], FILMWEAVER),), backend=FilmWeaver())
    longer = film(weaves, "seconds: 0.3, start: continue\nA red ball jumps.", reel.branch(6))
    extended = insert_shot(reel, longer)
    assert len(extended.shots) == 9
    assert [extended.shots[i].file.path for i in (0, 5, 7, 8)] == [reel.shots[i].file.path for i in (0, 5, 6, 7)]
    assert not extended.shots[6].take_start
    numbers = {keyframe.shot for keyframe in weaves.remembered(extended).bank}
    assert numbers == set(range(9)), "each keyframe says where its shot is now"

    fork = film(bernini, "seconds: 0.3, seed: 99\nA red ball jumps.", reel.branch(3))
    assert [shot.file.path for shot in fork.shots[:3]] == [shot.file.path for shot in reel.shots[:3]]
    assert {keyframe.shot for keyframe in bernini.remembered(fork).bank} == {0, 1, 2, 3}

    save_reel(extended, tmp_path / "a.reel.safetensors")
    loaded = load_reel(tmp_path / "a.reel.safetensors")
    last = "seconds: 0.3\nA red ball."
    assert torch.equal(film(bernini, last, loaded).latents(9), film(bernini, last, extended).latents(9))


def test_a_shot_rolled_back_and_filmed_again_is_the_same(weaver: CacheGuidedEngine):
    reel = film(weaver, "seconds: 1\nA red ball.\n---\nseconds: 1, start: continue\nA red ball jumps.")
    again = film(weaver, "seconds: 1, start: continue, seed: 1\nA red ball jumps.", reel.branch(1))
    assert torch.equal(reel.latents(1), again.latents(1))
    assert reel.fingerprint == again.fingerprint


def test_a_story_changes_engines_between_shots(weaver: CacheGuidedEngine):
    model = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=tiny_models.dit_metadata())
    causal = CausalEngine(
        models=(model,),
        clip=weaver.clip,
        vae=weaver.vae,
        width=32,
        height=48,
        fps=16.0,
        sigmas=default_sigmas(model, 1),
    )
    reel = film(causal, "seconds: 0.5\nA red ball.\n---\nseconds: 0.5, start: continue\nA red ball jumps.")
    reel = film(weaver, "seconds: 0.5, start: continue\nA red ball spins.\n---\nseconds: 0.5\nA red ball.", reel)
    bank = weaver.remembered(reel).bank
    assert {keyframe.shot for keyframe in bank} == {0, 1, 2, 3}
    assert {keyframe.uid for keyframe in bank if keyframe.shot < 3} >= set(reel.shots[3].meta["told"][0])
    reel = film(causal, "seconds: 0.5\nA red ball.", reel)
    assert len(weaver.remembered(reel).bank) > len(bank), "a shot of the causal engine gets its keyframes too"
    other = comfy.sd.load_diffusion_model_state_dict(
        tiny_models.dit_weights(seed=9), metadata=tiny_models.dit_metadata()
    )
    with pytest.raises(ReelError, match="another model"):
        film(replace(causal, models=(other,)), "A red ball.", reel)


def test_a_film_begun_with_caches_binds_the_causal_engine_that_joins(weaver: CacheGuidedEngine):
    def causal(seed: int) -> CausalEngine:
        weights = tiny_models.dit_weights(seed)
        model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata())
        return CausalEngine((model,), weaver.clip, weaver.vae, 32, 48, 16.0, default_sigmas(model, 1))

    reel = film(causal(1), "seconds: 0.5\nA red ball.", film(weaver, "seconds: 0.5\nA red ball."))
    film(weaver, "seconds: 0.5\nA red ball.", reel)
    with pytest.raises(ReelError, match="another model"):
        film(causal(2), "seconds: 0.5\nA red ball.", reel)


def test_two_models_share_the_steps(bernini: CacheGuidedEngine):
    same = replace(bernini, sampling=SamplerSettings(steps=4, cfg=1.0, sampler="euler"))
    one = film(same, "seconds: 0.5\nA red ball.")
    two = film(replace(same, models=(same.models[0], same.models[0].clone())), "seconds: 0.5\nA red ball.")
    assert torch.allclose(one.latents(0), two.latents(0), atol=1e-4)
    other = comfy.sd.load_diffusion_model_state_dict(
        {name: value * 0.5 for name, value in tiny_models.wan_weights(1).items()},
        metadata=tiny_models.dit_metadata(causal=False),
    )
    mixed = film(replace(same, models=(same.models[0], other)), "seconds: 0.5\nA red ball.")
    assert not torch.allclose(one.latents(0), mixed.latents(0), atol=1e-3)


def test_a_shot_reads_the_story_once_and_checks_the_reel_once(
    bernini: CacheGuidedEngine, monkeypatch: pytest.MonkeyPatch
):
    reel = film(bernini, "\n---\n".join(["seconds: 0.3\nA red ball."] * 3))
    bank = bernini.remembered(reel)
    reel = edited(reel, bank, pin(bank, bank.bank[0].uid))
    shot = parse_shot("seconds: 0.3\nA red ball.")
    place = prepare(bernini, [shot], reel, None).jobs[0].place
    counted: list[str] = []

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: counted.append(name) or real(*args))

    count(dual_cache_bank, "unpack")
    count(filming, "check_layout")
    count(cache_guided, "check_layout")
    film_shot(bernini, shot, reel, None, place)
    assert sorted(counted) == ["check_layout"] + ["unpack"] * 4, "three shots and an edit"


def test_steps_are_those_that_are_counted(weaver: CacheGuidedEngine):
    text = "seconds: 1\nA red ball.\n---\nseconds: 0.4\nA red ball."
    jobs = prepare(weaver, parse_storyboard(text).shots, None, None).jobs
    counted, reel = Progress(10**6), Reel.empty(weaver.layout())
    for shot in parse_storyboard(text).shots:
        reel = weaver.film(shot, reel, counted, weaver.shot_inputs(shot))
    assert counted.done == jobs[0].place.total


@pytest.mark.parametrize(
    ("shot", "message"),
    [
        ("A purple unicorn.", "does not know 'unicorn'"),
        ("start: continue\nA red ball.", "remembers no motion"),
        ("A red ball.\n[1s] A red ball jumps.", "make a shot of each prompt"),
        ("references: none.png\nA red ball.", "no file 'none.png'"),
        ("references: " + "; ".join(["a.png"] * 9) + "\nA red ball.", "takes 8 pictures and the shot refers to 9"),
    ],
)
def test_shots_are_refused_before_filming(bernini: CacheGuidedEngine, shot: str, message: str):
    with pytest.raises(ValueError, match=f"Shot 1: .*{message}"):
        prepare(bernini, [parse_shot(shot)], None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "set a multiple of 16 such as 32"),
        ({"backend": FilmWeaver()}, "put FilmWeaver LoRA Loader before"),
        ({"backend": Vace()}, "load wan2.1_vace_14B"),
        ({"policy": RetrievalPolicy(count=9)}, "takes 8 keyframes and 9 are asked for"),
        ({"backend": Phantom(), "policy": RetrievalPolicy(count=5)}, "takes 4 keyframes"),
    ],
)
def test_settings_are_refused_before_filming(bernini: CacheGuidedEngine, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(bernini, **change).check()


def test_a_lora_pair_of_different_layouts_is_refused(weaver: CacheGuidedEngine):
    other = install(weaver.models[0], replace(FILMWEAVER, phase=0.0))
    with pytest.raises(CacheError, match="phase"):
        replace(weaver, models=(weaver.models[0], other)).check()


def test_keyframes_of_another_clip_are_refused(bernini: CacheGuidedEngine, tmp_path: Path):
    from safetensors.torch import load_file

    reel = film(bernini, "seconds: 0.3\nA red ball.")
    path = tiny_models.write_clip(tmp_path / "clip")
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)
    with pytest.raises(CacheError, match="another CLIP"):
        replace(bernini, embedder=load_embedder(path)).remembered(reel)
