"""A LoRA that was trained with caches: its weights act, its layout comes with it, others are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd
import pytest
import torch
from longreel.film.cache import FILMWEAVER, CacheError
from longreel.host.cache_lora import load_cache_lora
from longreel.host.cache_tokens import installed_profile
from safetensors.torch import save_file

from .. import tiny_models

MATRICES = {name: value for name, value in tiny_models.lora_weights().items() if value.ndim}
PROFILE = replace(FILMWEAVER, time_mode="own", phase=0.25)


@pytest.fixture(scope="module")
def model():
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(causal=False)
    )


def write(path: Path, profile=PROFILE, weights=None) -> Path:
    save_file(weights or tiny_models.lora_weights(), path, metadata=profile.to_metadata() if profile else {})
    return path


def test_weights_and_layout_come_from_the_file(model, tmp_path: Path):
    patched = load_cache_lora(model, write(tmp_path / "a.safetensors"), 0.5)
    assert installed_profile(patched) == PROFILE
    assert installed_profile(model) is None
    assert not model.patches
    key, weights = "diffusion_model.blocks.0.self_attn.q.weight", tiny_models.lora_weights()
    up, down = (weights[f"diffusion_model.blocks.0.self_attn.q.lora_{part}.weight"] for part in ("up", "down"))
    merged = comfy.lora.calculate_weight(patched.patches[key], model.model.state_dict()[key].clone(), key)
    assert torch.allclose(merged, model.model.state_dict()[key] + 0.5 * up @ down, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": None}, "carries no layout profile"),
        ({"profile": replace(FILMWEAVER, patch=(1, 4, 4))}, r"patches are \[1, 2, 2\]"),
        (
            {"weights": {name: value[:32] for name, value in tiny_models.lora_weights().items() if value.ndim}},
            "another",
        ),
        ({"weights": {"diffusion_model.blocks.7.lora_up.weight": torch.zeros(2, 2)}}, "made for another model"),
        ({"weights": {"something": torch.zeros(2)}}, "made for another model"),
    ],
)
def test_files_that_do_not_fit_are_refused(model, tmp_path: Path, change, message):
    with pytest.raises(CacheError, match=message):
        load_cache_lora(model, write(tmp_path / "a.safetensors", **change), 1.0)
