"""LoRA files of strangers: of another size, cut off, mutated. Each is applied whole or refused in one sentence."""

from __future__ import annotations

import random
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from longreel.film.dual_cache import CacheError
from longreel.film.first_frame import FirstFrameError
from longreel.host.adapters.dual_cache import load_cache_lora, load_storymem_lora
from longreel.host.adapters.first_frame import apply_lora
from longreel.host.adapters.lora_file import LoRAFileError
from safetensors.torch import load_file, save, save_file

from ... import tiny_models

CASES = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
LOADERS = {
    "first frame": lambda model, path: apply_lora(model, path, 1.0),
    "dual cache": lambda model, path: load_cache_lora(model, path, 1.0),
    "StoryMem": lambda model, path: load_storymem_lora(model, path, 1.0),
}


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    weights = tiny_models.dit_weights(1, 36)
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=tiny_models.dit_metadata(causal=False))


def refusal(loader: str, model: ModelPatcher, path: Path) -> str:
    """What a loader says of a file; "" where it is applied."""
    try:
        LOADERS[loader](model, path)
    except (LoRAFileError, FirstFrameError, CacheError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("loader", list(LOADERS))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_files_that_crashed_a_loader_get_a_sentence(model: ModelPatcher, case: Path, loader: str):
    message = refusal(loader, model, case)
    assert message.endswith(".")
    assert "\n" not in message


def pair(model: ModelPatcher, module: str, columns: int = 0) -> dict[str, torch.Tensor]:
    rows, wide = model.model.diffusion_model.get_submodule(module).weight.shape
    stem = f"diffusion_model.{module}"
    return {
        f"{stem}.lora_down.weight": torch.ones(2, columns or wide),
        f"{stem}.lora_up.weight": torch.ones(rows, 2),
    }


def test_a_lora_of_another_width_is_no_lora_of_this_model(model: ModelPatcher, tmp_path: Path):
    """Core applies it to 2 of 2 weights and changes none."""
    wide = pair(model, "blocks.0.self_attn.q", 9) | pair(model, "blocks.0.self_attn.k", 9)
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(LoRAFileError, match=r"does not fit 2 of 2 weights, such as blocks\.0\.self_attn\.[qk]\.weight"):
        apply_lora(model, tmp_path / "wide.safetensors", 1.0)
    save_file(wide | pair(model, "blocks.0.ffn.0"), tmp_path / "partly.safetensors")
    with pytest.raises(LoRAFileError, match="does not fit 2 of 3 weights"):
        apply_lora(model, tmp_path / "partly.safetensors", 1.0)
    difference = {"diffusion_model.blocks.0.self_attn.q.diff": torch.ones(3, 3)}
    save_file(difference, tmp_path / "diff.safetensors")
    with pytest.raises(LoRAFileError, match="does not fit 1 of 1"):
        apply_lora(model, tmp_path / "diff.safetensors", 1.0)
    assert not model.patches


def test_mutated_files_are_applied_or_refused_in_a_sentence(model: ModelPatcher, tmp_path: Path):
    """Bits, lengths and names changed at random; 300 files for each loader, the long run is tests/campaigns'."""
    rng, path = random.Random(0), tmp_path / "mutated.safetensors"
    good = [
        save(pair(model, "blocks.0.self_attn.q") | pair(model, "blocks.0.ffn.0")),
        *map(bytes, map(Path.read_bytes, CASES)),
    ]
    for _ in range(300):
        content = bytearray(rng.choice([one for one in good if one]))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            kind = rng.randrange(3)
            if kind == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del content[at : at + rng.randint(1, 64)]
            else:
                content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
            if not content:
                break
        path.write_bytes(content)
        for loader in LOADERS:
            message = refusal(loader, model, path)
            assert not message or message.endswith(".")


def test_what_is_read_is_what_was_written(model: ModelPatcher, tmp_path: Path):
    save_file(pair(model, "blocks.0.self_attn.q"), tmp_path / "one.safetensors")
    applied = apply_lora(model, tmp_path / "one.safetensors", 1.0)
    assert applied.message == "one.safetensors: 1 of 1 modules applied."
    (patch,) = applied.model.patches["diffusion_model.blocks.0.self_attn.q.weight"]
    written = load_file(tmp_path / "one.safetensors")
    assert torch.equal(patch[1].weights[0], written["diffusion_model.blocks.0.self_attn.q.lora_up.weight"])
