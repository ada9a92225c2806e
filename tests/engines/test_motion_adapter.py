"""A motion adapter inside the engines that denoise a shot at once: first-frame and cache-guided, shot by shot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from longreel.engines.dual_cache import CacheGuidedEngine
from longreel.engines.dual_cache_backends import Bernini, make_backend
from longreel.engines.engine import EngineError
from longreel.engines.first_frame import FirstFrameEngine
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.reel.reel import Reel
from longreel.host.adapters.motion import attach, zero_adapter
from longreel.host.guidance import Window
from longreel.host.inner_guidance import MotionGuidance, guide
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.sampling import SamplerSettings
from longreel.host.wan.cache_tokens import install
from longreel.host.wan.first_frame import kind_of
from safetensors.torch import save_file

from .. import tiny_models
from ..host.joint_models import info, network_inputs, random_adapter
from .test_dual_cache import film as film_story
from .test_dual_cache import wan
from .test_first_frame import dit, picture, vae_5b
from .test_first_frame import film as film_from_picture

WHOLE = Window(0.0, 1.0)


def zero(model: ModelPatcher) -> ModelPatcher:
    channels = model.model.latent_format.latent_channels
    return attach(model, zero_adapter(model, info(channels)))


def moved(model: ModelPatcher, **options: Any) -> ModelPatcher:
    return attach(model, random_adapter(model, trunk=False), **options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> comfy.sd.CLIP:
    text = tmp_path_factory.mktemp("text") / tiny_models.TEXT
    save_file(tiny_models.text_weights(), text)
    return load_miniature_clip(str(text))


def first_frame(clip: comfy.sd.CLIP, *models: ModelPatcher, **options: Any) -> FirstFrameEngine:
    told: dict[str, Any] = {
        "vae": comfy.sd.VAE(sd=tiny_models.vae_weights()), "step_count": 4, "cfg": 3.0, "sampler": "euler",
        "scheduler": "simple", "negative": "A blue star.", "trigger": "", "transition": "fixed",
    }  # fmt: skip
    return FirstFrameEngine(models, clip, width=64, height=32, fps=16.0, **(told | options))


@pytest.fixture(scope="module")
def bernini(clip: comfy.sd.CLIP, tmp_path_factory: pytest.TempPathFactory) -> CacheGuidedEngine:
    folder: Path = tmp_path_factory.mktemp("models")
    return CacheGuidedEngine(
        models=(wan(),),
        clip=clip,
        vae=comfy.sd.VAE(sd=tiny_models.vae_weights()),
        embedder=load_embedder(tiny_models.write_clip(folder / "clip")),
        backend=Bernini(),
        width=32,
        height=48,
        fps=16.0,
        sampling=SamplerSettings(steps=2, cfg=2.0, sampler="euler"),
    )


@pytest.mark.parametrize("kind", ["concat", "latent", "frame"])
def test_first_frame_engine(clip: comfy.sd.CLIP, kind: str):
    """However the model takes its first frame: an adapter of zeros changes nothing, another one the frames after it."""
    options: dict[str, Any] = {}
    if kind == "latent":
        weights, options = tiny_models.dit_weights(5, 48, out_dim=48), {"vae": vae_5b()}
        model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(causal=False))
    else:
        model = dit(1, 36 if kind == "concat" else 16)
    assert kind_of(model) == kind

    def filmed(model: ModelPatcher) -> torch.Tensor:
        engine = first_frame(clip, model, **options)
        engine.check()
        return film_from_picture(engine, first=picture(4)).latents(0)

    base, joint = filmed(model), filmed(moved(model))
    assert torch.equal(filmed(zero(model)), base)
    assert joint.shape == base.shape
    assert not torch.allclose(joint, base, atol=1e-3)
    if kind != "concat":  # there the model paints the first frame itself
        assert torch.allclose(joint[:, :, :1], base[:, :, :1], atol=1e-5)
    guided = filmed(guide(moved(model), MotionGuidance(3.0, WHOLE)))
    assert not torch.allclose(guided, joint, atol=1e-3)


def test_first_frame_engine_with_an_adapter_on_the_high_noise_expert_alone(clip: comfy.sd.CLIP):
    high, low = dit(1, 36), dit(2, 36)
    base = film_from_picture(first_frame(clip, high, low), first=picture(4)).latents(0)
    assert torch.equal(film_from_picture(first_frame(clip, zero(high), low), first=picture(4)).latents(0), base)
    joint = film_from_picture(first_frame(clip, moved(high), low), first=picture(4)).latents(0)
    assert not torch.allclose(joint, base, atol=1e-3)


STORY = "seconds: 0.4, seed: 1\nA red ball.\n---\nseconds: 0.4, seed: 1\nA red ball jumps."


def test_cache_guided_engine(bernini: CacheGuidedEngine):
    """Beside keyframes in context, of which the second shot has some."""

    def filmed(model: ModelPatcher) -> Reel:
        engine = replace(bernini, models=(model,))
        engine.check()
        reel = film_story(engine, STORY)
        assert reel.shots[1].meta["told"][0]
        return reel

    model = bernini.models[0]
    base, none, joint = filmed(model), filmed(zero(model)), filmed(moved(model))
    guided = filmed(guide(moved(model), MotionGuidance(3.0, WHOLE)))
    for shot in range(2):
        assert torch.equal(none.latents(shot), base.latents(shot))
        assert not torch.allclose(joint.latents(shot), base.latents(shot), atol=1e-3)
        assert not torch.allclose(guided.latents(shot), joint.latents(shot), atol=1e-3)


@pytest.mark.parametrize("order", ["adapter first", "caches first"])
def test_cache_guided_engine_going_on_from_frames(bernini: CacheGuidedEngine, order: str):
    """With both caches, whichever of the two patches was put on first."""

    def filmed(adapt: Any) -> Reel:
        steps = [adapt, lambda model: install(model, FILMWEAVER)]
        model = bernini.models[0]
        for step in steps if order == "adapter first" else steps[::-1]:
            model = step(model)
        engine = replace(bernini, models=(model,), backend=make_backend("filmweaver", model))
        engine.check()
        return film_story(engine, f"{STORY}\n---\nseconds: 0.4, seed: 1, start: continue\nA red ball.")

    base, none, joint = filmed(lambda model: model), filmed(zero), filmed(moved)
    for shot in range(3):
        assert torch.equal(none.latents(shot), base.latents(shot))
        assert not torch.allclose(joint.latents(shot), base.latents(shot), atol=1e-3)


def test_each_shot_has_motion_noise_of_its_own_seed(bernini: CacheGuidedEngine):
    looked, seen = network_inputs(moved(bernini.models[0]))
    engine = replace(bernini, models=(looked,), sampling=replace(bernini.sampling, steps=1, cfg=1.0))
    film_story(engine, STORY.replace("seed: 1\nA red ball jumps.", "seed: 2\nA red ball jumps."))
    first, second = (x[:, 16:] for x, _ in seen)
    assert not torch.allclose(first, second)
    seen.clear()
    film_story(engine, STORY)
    again, same = (x[:, 16:] for x, _ in seen)
    assert torch.equal(first, again)
    assert torch.equal(again, same), "of one seed, as its appearance's"


def test_a_shot_may_have_the_adapter_and_another_not(bernini: CacheGuidedEngine):
    """One reel, an engine for each shot: what was filmed without goes on with it."""
    texts = STORY.split("\n---\n")
    adapted = replace(bernini, models=(moved(bernini.models[0]),))
    reel = film_story(adapted, texts[1], film_story(bernini, texts[0]))
    plain = film_story(bernini, STORY)
    assert torch.equal(reel.latents(0), plain.latents(0))
    assert not torch.allclose(reel.latents(1), plain.latents(1), atol=1e-3)
    fingerprints = [engine.settings()["model"] for engine in (bernini, adapted)]
    assert fingerprints[0] != fingerprints[1]


def test_engines_refuse_to_return_motion(clip: comfy.sd.CLIP, bernini: CacheGuidedEngine):
    model = moved(bernini.models[0], return_motion=True)
    for engine in (first_frame(clip, moved(dit(1, 36), return_motion=True)), replace(bernini, models=(model,))):
        with pytest.raises(EngineError, match="switch off return_motion"):
            engine.check()
