"""Weights from elsewhere, by the thousand: LoRAs and adapters as their loaders read them onto a model, and what lies
beside weights. See test_fuzz.py.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from longreel.film.dual_cache import FILMWEAVER, CacheError
from longreel.film.first_frame import FirstFrameError
from longreel.film.motion import MotionError
from longreel.host.adapters.dual_cache import load_cache_lora, load_storymem_lora
from longreel.host.adapters.first_frame import apply_lora
from longreel.host.adapters.lora_file import LoRAFileError
from longreel.host.adapters.motion import attach, read_adapter
from longreel.host.files.safetensors_io import CheckpointError, open_tensors
from safetensors.torch import save

from .. import tiny_models
from .test_fuzz import SHORT, Target, campaign, spoiled_json, spoiled_tensors

INDEX = "diffusion_pytorch_model.safetensors.index.json"
KINDS = ("first-frame LoRA", "cache LoRA", "StoryMem LoRA", "motion adapter", "checkpoint", "index")


def wan(in_dim: int = 16) -> ModelPatcher:
    weights, metadata = tiny_models.dit_weights(1, in_dim), tiny_models.dit_metadata(causal=False)
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    model, image_model = wan(), wan(36)
    lora = tiny_models.lora_weights()
    adapter, metadata = tiny_models.motion_adapter()
    refused = (LoRAFileError, FirstFrameError, CacheError)

    def attached(place: Path) -> None:
        attach(model, read_adapter(place / "a.safetensors"))

    def spoiled_index(rng: random.Random, place: Path) -> None:
        (place / "1.safetensors").write_bytes(save({"a": torch.zeros(1)}))
        spoiled_json({"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}, INDEX)(rng, place)

    def opened(place: Path) -> None:
        for stored in open_tensors(place / "a.safetensors", ()).values():
            stored.read()

    return {
        "first-frame LoRA": Target(
            refused, spoiled_tensors(save(lora)), lambda place: apply_lora(image_model, place / "a.safetensors", 1.0)
        ),
        "cache LoRA": Target(
            refused,
            spoiled_tensors(save(lora, FILMWEAVER.to_metadata())),
            lambda place: load_cache_lora(model, place / "a.safetensors", 1.0),
        ),
        "StoryMem LoRA": Target(
            refused,
            spoiled_tensors(save(tiny_models.storymem_weights())),
            lambda place: load_storymem_lora(image_model, place / "a.safetensors", 1.0),
        ),
        "motion adapter": Target((MotionError, LoRAFileError), spoiled_tensors(save(adapter, metadata)), attached),
        "checkpoint": Target((CheckpointError,), spoiled_tensors(save(tiny_models.dit_weights())), opened),
        "index": Target((CheckpointError,), spoiled_index, lambda place: open_tensors(place, ())),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_short(kind: str, targets: dict[str, Target], tmp_path: Path):
    campaign(targets[kind], tmp_path, seed=20, budget=SHORT)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_long(kind: str, targets: dict[str, Target], tmp_path: Path):
    seed, budget = os.environ.get("LONGREEL_FUZZ_SEED", "1"), os.environ.get("LONGREEL_FUZZ_BUDGET", "4000")
    campaign(targets[kind], tmp_path, int(seed), int(budget))


def test_good_files_are_read(targets: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    globals_ = spoiled_json.__globals__
    monkeypatch.setitem(globals_, "mutated", lambda value, rng: value)
    monkeypatch.setitem(globals_, "broken", lambda data, rng: data)
    for kind, target in targets.items():
        place = tmp_path / kind
        place.mkdir()
        target.spoil(random.Random(0), place)
        target.read(place)
    assert json.loads((tmp_path / "index" / INDEX).read_text())["weight_map"]
