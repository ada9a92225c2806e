"""LoRAs for first-frame shots on tiny Wans: what core would load as nothing, what sits on the wrong expert."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from longreel.film.first_frame import FirstFrameError, target_modules, to_released_keys
from longreel.film.first_frame.lora import SENTINEL
from longreel.host.adapters.first_frame import apply_lora, expert_on
from safetensors.torch import save_file

from ... import tiny_models


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    weights = tiny_models.dit_weights(1, 36)
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(causal=False))


def write(
    path: Path, model: ModelPatcher, modules: tuple[str, ...], released: bool, metadata: dict[str, str] | None = None
) -> Path:
    """A rank-2 LoRA of these modules of the model."""
    generator, weights = torch.Generator().manual_seed(1), {}
    for module in modules:
        rows, columns = model.model.diffusion_model.get_submodule(module).weight.shape
        stem = f"diffusion_model.{module}"
        weights[f"{stem}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
        weights[f"{stem}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{stem}.alpha"] = torch.tensor(2.0)
    if released:
        names = to_released_keys(weights)
        weights = {names[key]: value for key, value in weights.items()}
    save_file(weights, path, metadata=metadata)
    return path


def test_both_styles_are_applied_whole_and_alike(model: ModelPatcher, tmp_path: Path):
    modules = target_modules(1)
    core = apply_lora(model, write(tmp_path / "core.safetensors", model, modules, released=False), 0.5)
    released = apply_lora(model, write(tmp_path / "released.safetensors", model, modules, released=True), 0.5)
    assert core.message == "core.safetensors: 11 of 11 modules applied."
    assert released.message == "released.safetensors: 11 of 11 modules applied."
    assert core.model.patches.keys() == released.model.patches.keys()
    assert not model.patches
    for key in core.model.patches:
        one, other = (applied.model.patch_weight_to_device for applied in (core, released))
        assert torch.equal(one(key, return_weight=True), other(key, return_weight=True))


@torch.no_grad()
def test_strength_nothing_is_the_base_to_the_bit(model: ModelPatcher, tmp_path: Path):
    path = write(tmp_path / "core.safetensors", model, target_modules(1), released=False)
    dit = model.model.diffusion_model
    generator = torch.Generator().manual_seed(2)
    x, text = (torch.randn(shape, generator=generator) for shape in ((1, 36, 2, 4, 4), (1, 5, tiny_models.TEXT_WIDTH)))

    def film(patcher: ModelPatcher) -> torch.Tensor:
        patcher.patch_model()
        made: torch.Tensor = dit(x, torch.tensor([500.0]), text, transformer_options={})
        patcher.unpatch_model()
        return made

    base = dit(x, torch.tensor([500.0]), text, transformer_options={})
    assert torch.equal(film(apply_lora(model, path, 0.0).model), base)
    assert not torch.equal(film(apply_lora(model, path, 1.0).model), base)


def test_sparse_lora_that_core_loads_as_nothing_is_converted(model: ModelPatcher, tmp_path: Path):
    modules = ("blocks.0.self_attn.q", "blocks.0.ffn.0")
    path = write(tmp_path / "sparse.safetensors", model, modules, released=True)
    weights = comfy.utils.load_torch_file(str(path))
    assert SENTINEL not in weights
    silent, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    assert not silent.patches
    applied = apply_lora(model, path, 1.0)
    assert applied.message == "sparse.safetensors: 2 of 2 modules applied, keys converted."
    assert set(applied.model.patches) == {f"diffusion_model.{module}.weight" for module in modules}


def test_lora_of_another_model_is_refused(model: ModelPatcher, tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(2, 4)}, path)
    with pytest.raises(FirstFrameError, match=r"Nothing of other.safetensors fits this model: choose a LoRA"):
        apply_lora(model, path, 1.0)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("lora.safetensors", {"expert": "low"}),
        ("wan_LOW_noise.safetensors", None),
        ("high.safetensors", {"expert": "low"}),
    ],
)
def test_wrong_expert_is_refused(model: ModelPatcher, tmp_path: Path, name: str, metadata: dict[str, str] | None):
    path = write(tmp_path / name, model, ("blocks.0.ffn.0",), released=False, metadata=metadata)
    with pytest.raises(FirstFrameError, match="The high-noise model has the low-noise LoRA: choose the high-noise one"):
        apply_lora(model, path, 1.0, "high")
    assert expert_on(apply_lora(model, path, 1.0, "low").model) == "low"
    assert expert_on(apply_lora(model, path, 1.0).model) == "low"


def test_expert_is_known_from_another_loaders_metadata(model: ModelPatcher, tmp_path: Path):
    path = write(tmp_path / "x.safetensors", model, ("blocks.0.ffn.0",), released=False, metadata={"expert": "high"})
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0, lora_metadata=metadata)
    assert expert_on(loaded) == "high"
    assert expert_on(model) is None
