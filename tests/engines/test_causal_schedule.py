"""The schedule that a causal model films at, whatever its file says of it."""

from __future__ import annotations

from typing import Any

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from longreel.engines.causal_schedule import causal_schedule, default_sigmas
from longreel.film.kv_memory import LONGLIVE, MEMFLOW, SELF_FORCING, SHOTSTREAM, UNBOUNDED, MemorySettings
from longreel.host.wan.causal_models import UnsupportedModelError
from longreel.nodes.causal_engine import LongreelCausalEngine

from .. import tiny_models

# Self-Forcing's denoising_step_list [1000, 750, 500, 250], warped by timestep_shift 5.
PUBLISHED = [5 * t / (1 + 4 * t) for t in (1, 0.75, 0.5, 0.25, 0)]
CUSTOM = MemorySettings(window=15, sink=3, bank=3)


def model(metadata: dict[str, str] | None) -> ModelPatcher:
    """As a loader gives it: GGUF loaders and files without our header give no metadata, or none that say causal."""
    loaded: ModelPatcher = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=metadata)
    return loaded


@pytest.fixture(scope="module")
def plain() -> ModelPatcher:
    return model(tiny_models.dit_metadata(causal=False))


@pytest.fixture(scope="module")
def causal() -> ModelPatcher:
    return model(tiny_models.dit_metadata())


@pytest.mark.parametrize("memory", [SELF_FORCING, LONGLIVE, MEMFLOW, UNBOUNDED, CUSTOM])
def test_a_model_that_does_not_say_it_is_causal_films_as_one_that_does(plain: Any, causal: Any, memory: MemorySettings):
    found = causal_schedule(plain, 4, memory)
    assert found.sigmas == causal_schedule(causal, 4, memory).sigmas == default_sigmas(causal, 4, memory)
    assert list(found.sigmas) == pytest.approx(PUBLISHED, abs=1e-6)
    assert "shift 5" in found.reason
    assert "taken at 8" in found.reason
    assert "ModelSamplingSD3" in found.reason
    assert "as the model's file says" in causal_schedule(causal, 4, memory).reason


def test_the_preset_decides_for_every_loop_and_the_model_where_neither_does(plain: Any):
    assert causal_schedule(plain, 4, MEMFLOW, "euler").sigmas == causal_schedule(plain, 4, MEMFLOW).sigmas
    own = causal_schedule(plain, 20, UNBOUNDED, "euler")
    assert own.sigmas[10] == pytest.approx(8 * 0.5 / (1 + 7 * 0.5), abs=1e-3)
    assert own.reason == "Schedule: shift 8, the model's own."


@pytest.mark.parametrize("file", ["plain", "causal"])
def test_a_shift_that_the_user_sets_counts(file: str, request: pytest.FixtureRequest):
    patched = ModelSamplingSD3().patch(request.getfixturevalue(file), 3.0)[0]
    found = causal_schedule(patched, 4)
    assert list(found.sigmas) == pytest.approx([3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25, 0)], abs=1e-6)
    assert found.reason == "Schedule: shift 3, set by a node before this one."


def test_shotstream_has_its_own(plain: Any, causal: Any):
    found = causal_schedule(plain, 4, SHOTSTREAM)
    assert found == causal_schedule(causal, 4, SHOTSTREAM)
    assert found.sigmas[1] == pytest.approx(8 * 0.74 / (1 + 7 * 0.74))
    assert "ShotStream" in found.reason


def test_a_model_of_another_kind_is_refused_before_its_shift_is_asked_for():
    with pytest.raises(UnsupportedModelError, match="input channels"):
        causal_schedule(model_of_36(), 4)


def model_of_36() -> ModelPatcher:
    weights = tiny_models.dit_weights(1, 36)
    loaded: ModelPatcher = comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(False))
    return loaded


@pytest.mark.parametrize("connected", [False, True])
def test_the_node_says_which_it_uses_and_why(plain: Any, tmp_path: Any, connected: bool):
    from longreel.host.miniature_clip import load_miniature_clip
    from safetensors.torch import save_file

    save_file(tiny_models.text_weights(), tmp_path / tiny_models.TEXT)
    clip, vae = load_miniature_clip(str(tmp_path / tiny_models.TEXT)), comfy.sd.VAE(sd=tiny_models.vae_weights())
    sigmas = {"sigmas": torch.tensor([1.0, 0.5, 0.0])} if connected else {}
    settings = (32, 32, 16.0, 4, "renoise", 3, {"memory": "MemFlow"})
    made = LongreelCausalEngine.execute(plain, clip, vae, *settings, **sigmas)
    said, engine = made.ui.as_dict()["text"][0], made.result[0]
    if connected:
        assert engine.sigmas == (1.0, 0.5, 0.0)
        assert said == "Schedule: the sigmas that are connected."
    else:
        assert list(engine.sigmas) == pytest.approx(PUBLISHED, abs=1e-6)
        assert "shift 5" in said
