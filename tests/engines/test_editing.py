"""What a person does to a story between shots."""

from __future__ import annotations

from dataclasses import replace

import comfy.sd
import pytest
import torch
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import Bernini, make_backend
from longreel.engines.editing import (
    add_references,
    as_cache_guided,
    begin_with_clip,
    contact_sheet,
    describe_bank,
    describe_ranking,
    edit_bank,
    extend_shot,
    fork,
)
from longreel.engines.engine import EngineError
from longreel.engines.filming import film_shot, prepare
from longreel.film.dual_cache import FILMWEAVER, CacheError
from longreel.film.reel.reel import Reel, ReelError
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.families import encode_clip
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.sampling import SamplerSettings
from longreel.host.wan.cache_tokens import install
from safetensors.torch import save_file

from .. import tiny_models

STORY = "seconds: 1\nA red ball.\n---\nseconds: 1\nA red ball jumps.\n---\nseconds: 1\nA red ball spins."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CacheGuidedEngine:
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.text_weights(), folder / tiny_models.TEXT)
    model = install(
        comfy.sd.load_diffusion_model_state_dict(
            tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(causal=False)
        ),
        FILMWEAVER,
    )
    return CacheGuidedEngine(
        models=(model,),
        clip=load_miniature_clip(str(folder / tiny_models.TEXT)),
        vae=comfy.sd.VAE(sd=tiny_models.vae_weights()),
        embedder=load_embedder(tiny_models.write_clip(folder / "clip")),
        backend=make_backend("filmweaver", model),
        width=32,
        height=48,
        fps=16.0,
        sampling=SamplerSettings(steps=1, cfg=1.0, sampler="euler"),
    )


def film(engine: CacheGuidedEngine, text: str, reel: Reel | None = None) -> Reel:
    shots = parse_storyboard(text).shots
    for shot, place in zip(shots, prepare(engine, shots, reel, None).places):
        reel = film_shot(engine, shot, reel, None, place)
    assert reel is not None
    return reel


@pytest.fixture(scope="module")
def story(engine: CacheGuidedEngine, tmp_path_factory: pytest.TempPathFactory):
    import folder_paths

    patch = pytest.MonkeyPatch()
    patch.setattr(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp")))
    yield film(engine, STORY)
    patch.undo()


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(8))


def test_keyframes_are_marked_by_number(engine: CacheGuidedEngine, story: Reel):
    bank = engine.remembered(story).bank
    reel = edit_bank(engine, story, pinned=[1], banned=[2], removed=[3], replaced=2, picture=pictures(1))
    changed = engine.remembered(reel).bank
    assert len(changed) == len(bank) - 1
    lines = describe_bank(engine.remembered(reel), reel).splitlines()
    assert lines[0].startswith("1. ")
    assert any("pinned" in line and "shot 1" in line for line in lines)
    assert any("your picture" in line for line in lines)
    shown = describe_bank(engine.remembered(story), story).splitlines()
    assert [line.split(" was shown")[0] for line in shown if "was shown" in line] == ["Shot 2", "Shot 3"]
    freed = edit_bank(engine, edit_bank(engine, story, pinned=[1], banned=[1]), freed=[1])
    assert not any(keyframe.pinned or keyframe.banned for keyframe in engine.remembered(freed).bank)
    empty = edit_bank(engine, story, clear=True)
    assert describe_bank(engine.remembered(empty), empty) == "The shot cache is empty."
    assert edit_bank(engine, story) is story
    with pytest.raises(CacheError, match="no keyframe 99"):
        edit_bank(engine, story, pinned=[99])
    with pytest.raises(CacheError, match="Connect the picture"):
        edit_bank(engine, story, replaced=1)


def test_pins_come_first_in_the_ranking(engine: CacheGuidedEngine, story: Reel):
    cache = engine.remembered(story)
    last = engine.rank(cache, "A red ball.", 3).ranking[-1].keyframe.uid
    number = [keyframe.uid for keyframe in cache.bank].index(last) + 1
    told = engine.remembered(edit_bank(engine, story, pinned=[number]))
    ranking = engine.rank(told, "A red ball.", 3)
    assert ranking.keyframes[0].uid == last
    assert describe_ranking(told, ranking).splitlines()[0].split()[1:2] == ["pinned:"]
    assert contact_sheet([keyframe.picture.image() for keyframe in ranking.keyframes], 32, 48).shape == (
        len(ranking.keyframes), 48, 32, 3,
    )  # fmt: skip
    many = contact_sheet([torch.zeros(48, 83, 3)] * 200, 832, 480)
    assert many.shape[0] == 200
    assert many.numel() * 4 <= 512 * 1024**2
    assert contact_sheet([], 32, 48).shape == (1, 48, 32, 3)


def test_references_are_told_to_the_next_shot(engine: CacheGuidedEngine):
    reel = add_references(engine, Reel.empty(engine.layout()), pictures(2), [("Ada", "Bo"), ()], True)
    assert [keyframe.characters for keyframe in engine.remembered(reel).bank] == [("Ada", "Bo"), ()]
    told = film(engine, "seconds: 0.5\nA red ball.", reel).shots[0].meta["told"]
    assert {len(chunk) for chunk in told} == {2}
    with pytest.raises(CacheError, match="2 pictures came with 1 lines"):
        add_references(engine, reel, pictures(2), [("Ada",)], True)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (4, 1), (5, 5), (12, 9)])
def test_a_clip_becomes_a_shot_to_go_on_from(engine: CacheGuidedEngine, count: int, kept: int):
    frames = pictures(count)
    reel = begin_with_clip(engine, Reel.empty(engine.layout()), frames, "A clip.")
    assert (reel.frames, reel.shots[0].latent_frames) == (kept, 1 + (kept - 1) // 4)
    assert torch.allclose(reel.latents(0), encode_clip(engine.vae, frames[count - kept :], 32, 48), atol=1e-4)
    longer = film(engine, "seconds: 1, start: continue\nA red ball.", reel)
    assert not longer.shots[1].take_start
    other = begin_with_clip(engine, Reel.empty(engine.layout()), 1 - frames, "A clip.")
    moved = film(engine, "seconds: 1, start: continue\nA red ball.", other)
    assert not torch.allclose(longer.latents(1), moved.latents(1), atol=1e-3)
    cut = film(engine, "seconds: 1\nA red ball.", reel)
    assert cut.shots[1].meta["told"][0], "and is remembered over a cut"


def test_any_shot_can_be_extended(engine: CacheGuidedEngine, story: Reel):
    piece = parse_shot("seconds: 1, start: continue\nA red ball jumps.")
    longer = extend_shot(engine, story, 2, piece, keep_rest=True)
    assert [shot.take_start for shot in longer.shots] == [True, True, False, True]
    assert [longer.shots[i].file.path for i in (0, 1, 3)] == [story.shots[i].file.path for i in (0, 1, 2)]
    assert longer.frames == story.frames + longer.shots[2].frames
    assert len(extend_shot(engine, story, 2, piece, keep_rest=False).shots) == 3
    again = film(engine, "seconds: 0.5\nA red ball.", longer)
    assert again.shots[-1].meta["told"][0]
    with pytest.raises(ReelError, match="no shot 4"):
        extend_shot(engine, story, 4, piece, keep_rest=True)
    with pytest.raises(EngineError, match="remembers no motion"):
        extend_shot(replace(engine, backend=Bernini()), story, 2, piece, keep_rest=True)


def test_a_reel_goes_back_to_any_moment(engine: CacheGuidedEngine, story: Reel):
    assert [len(fork(story, number).shots) for number in (0, 1, 3)] == [0, 1, 3]
    half = fork(story, 2, 0.5)
    assert [shot.frames for shot in half.shots] == [16, 8]
    assert half.shots[1].latent_frames == 3
    assert torch.equal(half.latents(1), story.latents(1)[:, :, :3])
    assert half.fingerprint != story.branch(2).fingerprint
    frames = {keyframe.frame for keyframe in engine.remembered(half).bank if keyframe.shot == 1}
    assert frames
    assert max(frames) < 3
    assert fork(story, 2, 5.0).shots[1] is story.shots[1]
    longer = film(engine, "seconds: 1, start: continue\nA red ball spins.", half)
    assert (longer.frames, longer.shots[2].take_start) == (16 + 8 + 16, False)
    again = fork(longer, 3, 0.25)
    assert [shot.latent_frames for shot in again.shots] == [6, 3, 1]
    with pytest.raises(ReelError, match="no shot 4"):
        fork(story, 4)


def test_another_engine_is_told_apart():
    with pytest.raises(EngineError, match="use Cache-Guided Engine"):
        as_cache_guided(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("goes_on", [False, True])
def test_conditioning_for_other_samplers_is_that_of_a_shot(engine: CacheGuidedEngine, story: Reel, goes_on: bool):
    prompt = engine.clip.encode_from_tokens_scheduled(engine.clip.tokenize("A red ball."))
    given = engine.tell(story, prompt, prompt, "A red ball.", 21, goes_on, 3)
    assert (given.frames, given.trim) == (6, 0)
    payload = given.positive[0][1]["model_conds"]["longreel_cache"].cond
    kinds = [segment.kind for segment in payload.segments]
    called = engine.rank(engine.remembered(story), "A red ball.", 2 if goes_on else 3).keyframes
    assert kinds == ["shot"] * len(called) + ["temporal"] * (3 if goes_on else 0)
    assert torch.equal(payload.segments[0].latent, called[0].latent)
    with pytest.raises(EngineError, match="no motion to go on from"):
        engine.tell(Reel.empty(engine.layout()), prompt, prompt, "A red ball.", 21, True, 3)
