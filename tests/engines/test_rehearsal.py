"""An engine for a rehearsal: smaller, with fewer steps, and whose takes are none of the film's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import pytest
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_schedule import default_sigmas
from longreel.engines.engine import EngineBase, share_of
from longreel.host.miniature_clip import load_miniature_clip
from safetensors.torch import save_file

from .. import tiny_models
from .test_other_nodes import cache_guided, first_frame


def causal(clip: Any, vae: Any, _folder: Path) -> CausalEngine:
    model = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=tiny_models.dit_metadata())
    return CausalEngine(
        models=(model,), clip=clip, vae=vae, width=32, height=32, fps=16.0, sigmas=default_sigmas(model, 4)
    )


@pytest.mark.parametrize("make", [causal, cache_guided, first_frame])
def test_a_rehearsal_is_smaller_and_another_film(make: Any, tmp_path: Path):
    save_file(tiny_models.text_weights(), tmp_path / "text.safetensors")
    engine: EngineBase = make(
        load_miniature_clip(str(tmp_path / "text.safetensors")), comfy.sd.VAE(sd=tiny_models.vae_weights()), tmp_path
    )
    small = engine.rehearsal(0.5, 0.5)
    assert type(small) is type(engine)
    assert (small.width, small.height) == (engine.width // 2, engine.height // 2)
    assert small.models is engine.models
    before, after = engine.settings(), small.settings()
    changed = {name for name in before if before[name] != after[name]}
    assert {"width", "height"} < changed
    assert changed <= {"width", "height", "sigmas", "sampling", "steps"}
    assert engine.rehearsal(1.0, 1.0).settings() == before
    least = engine.rehearsal(0.01, 1.0)
    assert (least.width, least.height) == (engine.cell, engine.cell)


def test_a_causal_rehearsal_keeps_to_its_schedule(tmp_path: Path):
    save_file(tiny_models.text_weights(), tmp_path / "text.safetensors")
    engine = causal(
        load_miniature_clip(str(tmp_path / "text.safetensors")), comfy.sd.VAE(sd=tiny_models.vae_weights()), tmp_path
    )
    for share, count in ((1.0, 4), (0.75, 3), (0.5, 2), (0.01, 1)):
        sigmas = engine.rehearsal(1.0, share).sigmas
        assert len(sigmas) == count + 1
        assert set(sigmas) <= set(engine.sigmas)
        assert list(sigmas) == sorted(sigmas, reverse=True)
        assert (sigmas[0], sigmas[-1]) == (engine.sigmas[0], engine.sigmas[-1])
    assert [share_of(5, share) for share in (0.0, 0.1, 0.5, 1.0)] == [1, 1, 2, 5]
