"""What a person does to a story between shots."""

from __future__ import annotations

from dataclasses import replace

import comfy.sd
import pytest
import torch
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_memory import pin_and_ban
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import Bernini, make_backend
from longreel.engines.dual_cache_bank import edit_bank
from longreel.engines.editing import begin_with_clip, extend_shot, fork, retake_shot
from longreel.engines.engine import Engine, EngineError
from longreel.engines.filming import film_shot, prepare
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.reel.groups import KeyframeGroup, KVPinsGroup
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout
from longreel.film.storyboard.text import parse_shot, parse_storyboard
from longreel.host.families import encode_clip
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.sampling import SamplerSettings
from longreel.host.wan.cache_tokens import install
from safetensors.torch import save_file

from .. import tiny_models
from .test_causal import engine as causal  # noqa: F401

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


def film(engine: Engine, text: str, reel: Reel | None = None) -> Reel:
    shots = parse_storyboard(text).shots
    for job in prepare(engine, shots, reel, None).jobs:
        reel = film_shot(engine, job.shot, reel, None, job.place)
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


def test_a_shot_with_a_lead_is_cut_behind_it(tmp_path):
    """A first-frame shot begins with frames that are not shown; they are no part of the seconds that stay."""
    layout = ReelLayout(8.0, 32, 16, 4, 8, 4, "model", "vae", {})
    shot = FilmedShot.store(
        parse_shot("seconds: 2\nA red ball."),
        torch.zeros(1, 4, 6, 2, 4),
        previous="",
        settings={},
        take_start=True,
        frames=16,
        meta={"transition": {"lead": 5}},
    )
    half = fork(Reel.empty(layout).append(shot), 1, 1.0).shots[0]
    assert (half.lead, half.frames, half.latent_frames) == (5, 8, 4)


def test_the_causal_engine_extends_any_shot(causal: CausalEngine):  # noqa: F811
    reel = film(causal, STORY)
    piece = parse_shot("seconds: 1, start: continue, seed: 4\nA red ball jumps.")
    longer = extend_shot(causal, reel, 1, piece, keep_rest=True)
    assert [shot.take_start for shot in longer.shots] == [True, False, True, True]
    assert [longer.shots[i].file.path for i in (0, 2, 3)] == [shot.file.path for shot in reel.shots]
    whole = film(causal, "seconds: 1\nA red ball.\n---\nseconds: 1, start: continue, seed: 4\nA red ball jumps.")
    assert torch.equal(longer.latents(1), whole.latents(1)), "as if it had been filmed so at first"
    assert film(causal, "seconds: 0.5, start: continue\nA red ball.", longer).shots[-1].latent_frames


def test_the_causal_engine_goes_on_from_what_it_did_not_film(causal: CausalEngine):  # noqa: F811
    """A clip leaves no KV memory, nor does a shot that was cut short: the last block is given to the model again."""
    text = "seconds: 0.7, start: continue\nA red ball jumps.\n[0.3s] A red ball spins."
    empty, frames = Reel.empty(causal.layout()), pictures(9)
    reels = [film(causal, text, begin_with_clip(causal, empty, clip, "A clip.")) for clip in (frames, 1 - frames)]
    assert [shot.frames for shot in reels[0].shots] == [9, 11]
    assert not reels[0].shots[1].take_start
    assert not torch.allclose(reels[0].latents(1), reels[1].latents(1), atol=1e-3)
    found, stills = causal.retrieve(reels[0], "A red ball.", 9)
    sink = [still for item, still in zip(found, stills) if item.frame == 0]
    first = causal.vae.decode(reels[0].latents(0, 0, 1)).reshape(48, 32, 3)
    assert torch.allclose(sink[0], first, atol=1e-5), "the memory begins with the clip's frames"
    assert len(film(causal, "seconds: 0.5, start: continue\nA red ball.", reels[0]).shots) == 3
    half = fork(film(causal, STORY), 2, 0.7)
    assert len(film(causal, text, half).shots) == 3
    with pytest.raises(EngineError, match="shorter than a block of 3 latent frames"):
        film(causal, text, begin_with_clip(causal, empty, frames[:5], "A clip."))


def test_a_shot_is_taken_again_and_what_goes_on_from_it(causal: CausalEngine):  # noqa: F811
    text = STORY.replace("seconds: 1\nA red ball jumps.", "seconds: 1, start: continue, seed: 1\nA red ball jumps.")
    reel = film(causal, text)
    pinned = pin_and_ban(reel, [], [max(_bank(causal, reel))])
    again = retake_shot(causal, pinned, 1, 77, keep_rest=True)
    assert [shot.shot.seed for shot in again.shots] == [77, *(shot.shot.seed for shot in reel.shots[1:])]
    assert not any(torch.equal(again.latents(i), reel.latents(i)) for i in (0, 1))
    assert again.shots[2].file is reel.shots[2].file
    assert [edit.after for edit in again.edits] == [3]
    assert again.frames == reel.frames
    alone = film(causal, text.replace("seconds: 1\nA red ball.", "seconds: 1, seed: 77\nA red ball."))
    assert all(torch.equal(again.latents(i), alone.latents(i)) for i in (0, 1))
    last = retake_shot(causal, pinned, 3, 5, keep_rest=True)
    assert not any(KVPinsGroup.of(edit) for edit in last.edits), "they name frames of the old take"
    assert len(retake_shot(causal, reel, 1, 77, keep_rest=False).shots) == 2
    with pytest.raises(ReelError, match="Shot 1 is a clip of yours"):
        retake_shot(causal, begin_with_clip(causal, Reel.empty(causal.layout()), pictures(9), "A."), 1, 7, True)


def test_marks_on_keyframes_stay_when_a_shot_is_taken_again(engine: CacheGuidedEngine, story: Reel):
    again = retake_shot(engine, edit_bank(engine, story, pinned=[1]), 3, 5, keep_rest=True)
    assert [edit.after for edit in again.edits] == [3]
    assert KeyframeGroup.of(again.edits[0])
    assert any(keyframe.pinned for keyframe in engine.remembered(again).bank)


def _bank(engine: CausalEngine, reel: Reel) -> list[int]:
    found, _ = engine.retrieve(reel, "A red ball.", 99)
    return [item.frame for item in found if item.role == "bank"]


def test_engines_say_what_they_can_do(engine: CacheGuidedEngine, causal: CausalEngine):  # noqa: F811
    assert engine.capabilities.continues
    assert engine.capabilities.edits == ("keyframes",)
    bernini = replace(engine, backend=Bernini()).capabilities
    assert (bernini.continues, bernini.start_image, bernini.prompts_per_shot, bernini.references) == (
        False,
        False,
        1,
        8,
    )
    assert causal.capabilities.continues
    assert causal.capabilities.edits == ("kv_bank",)
