"""A LoRA that was trained with caches: its weights act, its layout comes with it, others are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd
import pytest
import torch
from longreel.film.dual_cache import FILMWEAVER, CacheError
from longreel.host.adapters.dual_cache import load_cache_lora, load_storymem_lora, storymem_weights
from longreel.host.adapters.lora_file import LoRAFileError
from longreel.host.wan.cache_tokens import installed_profile
from safetensors.torch import save_file

from ... import tiny_models

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
    with pytest.raises((CacheError, LoRAFileError), match=message):
        load_cache_lora(model, write(tmp_path / "a.safetensors", **change), 1.0)


@pytest.fixture(scope="module")
def image_to_video():
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.dit_weights(6, in_dim=36), metadata=tiny_models.dit_metadata(causal=False)
    )


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "diffusion_model."])
@pytest.mark.parametrize("adapter", ["", ".default"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_storymem_acts_as_it_was_trained(image_to_video, tmp_path: Path, prefix: str, adapter: str, suffix: str):
    """Rank-stabilised: up @ down counts alpha / sqrt(rank) = sqrt(rank) times."""
    released = {
        name.replace("base_model.model.", prefix).replace(".weight", f"{adapter}.weight"): value
        for name, value in tiny_models.storymem_weights().items()
    }
    path = tmp_path / f"backbone_high_noise{suffix}"
    save_file(released, path) if suffix == ".safetensors" else torch.save(released, path)
    patched = load_storymem_lora(image_to_video, path, 0.5)
    assert not image_to_video.patches
    assert len(patched.patches) == 10
    plain = tiny_models.storymem_weights()
    for layer in ("self_attn.k", "cross_attn.o", "ffn.2"):
        name = f"base_model.model.blocks.0.{layer}"
        up, down = plain[f"{name}.lora_B.weight"], plain[f"{name}.lora_A.weight"]
        key = f"diffusion_model.blocks.0.{layer}.weight"
        base = image_to_video.model.state_dict()[key].clone()
        merged = comfy.lora.calculate_weight(patched.patches[key], base.clone(), key)
        assert torch.allclose(merged, base + 0.5 * 4**0.5 * up @ down, atol=1e-5)


def test_storymem_at_the_released_rank_has_alpha_1448():
    layer = "base_model.model.blocks.39.ffn.0"
    shapes = {f"{layer}.lora_A.weight": (128, 5120), f"{layer}.lora_B.weight": (13824, 128)}
    made = storymem_weights({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert float(made["diffusion_model.blocks.39.ffn.0.alpha"]) == pytest.approx(1448.15, abs=0.01)
    assert made["diffusion_model.blocks.39.ffn.0.lora_up.weight"].shape == (13824, 128)


NARROW = {name: value[:, :3].clone() for name, value in tiny_models.storymem_weights().items()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (tiny_models.lora_weights(), "no LoRA as StoryMem releases them"),
        ({"base_model.model.blocks.7.ffn.0.lora_A.weight": torch.zeros(4, 64)}, "made for another model"),
        (NARROW, "made for another model"),
        ({"base_model.model.head.lora_A.weight": torch.zeros(4, 64)}, "no LoRA as StoryMem releases them"),
    ],
)
def test_files_that_are_not_storymems_are_refused(image_to_video, tmp_path: Path, weights, message):
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises((CacheError, LoRAFileError), match=message):
        load_storymem_lora(image_to_video, tmp_path / "a.safetensors", 1.0)
