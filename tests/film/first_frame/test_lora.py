"""Keys of released and own LoRAs: what ComfyUI would silently load as nothing is seen and renamed."""

from __future__ import annotations

import pytest
import torch
from comfy.lora_convert import convert_lora
from longreel.film.first_frame import (
    FirstFrameError,
    check_keys,
    check_pair,
    expert_of,
    needs_conversion,
    target_modules,
    to_core_keys,
    to_released_keys,
)
from longreel.film.first_frame.lora import PARTS, SENTINEL

MODULES = target_modules(40)
CORE = [f"diffusion_model.{module}.{part}" for module in MODULES for part in PARTS]
RELEASED = [f"lora_unet__{module.replace('.', '_')}.{part}" for module in MODULES for part in PARTS]


def test_the_released_layout():
    assert len(MODULES) == 401
    assert len(set(RELEASED)) == 1203
    report = check_keys(RELEASED, MODULES)
    assert report.style == "released"
    assert set(report.modules) == set(MODULES)
    assert report.loads
    assert report.warnings == ()
    assert check_keys(CORE, MODULES).loads
    assert not needs_conversion(RELEASED)
    assert not needs_conversion(CORE)


def test_conversion_round_trip():
    assert list(to_core_keys(RELEASED).values()) == CORE
    assert list(to_released_keys(CORE).values()) == RELEASED
    assert list(to_core_keys(CORE).values()) == CORE


@pytest.mark.parametrize(
    ("flat", "dotted"),
    [
        ("blocks_7_cross_attn_k_img", "blocks.7.cross_attn.k_img"),
        ("time_embedding_0", "time_embedding.0"),
        ("text_embedding_2", "text_embedding.2"),
        ("img_emb_proj_1", "img_emb.proj.1"),
        ("head_head", "head.head"),
    ],
)
def test_other_modules_of_wan(flat: str, dotted: str):
    key = f"lora_unet__{flat}.alpha"
    assert to_core_keys([key]) == {key: f"diffusion_model.{dotted}.alpha"}
    assert to_released_keys([f"diffusion_model.{dotted}.alpha"]) == {f"diffusion_model.{dotted}.alpha": key}


def test_without_the_sentinel_comfyui_loads_nothing_and_we_see_it():
    sparse = [key for key in RELEASED if "blocks_0_" not in key]
    report = check_keys(sparse, MODULES)
    assert not report.loads
    assert needs_conversion(sparse)
    assert "as nothing" in report.warnings[0]
    assert report.warnings[1] == "Modules that are not adapted: 10, the first is blocks.0.self_attn.q."
    assert check_keys(to_core_keys(sparse).values()).loads


def test_core_has_the_same_sentinel():
    """If ComfyUI changes its mind, this tells."""
    one = torch.zeros(1)
    seen = {SENTINEL: one, "lora_unet__time_projection_1.alpha": one}
    assert "lora_unet_time_projection_1.alpha" in convert_lora(seen)
    unseen = {key: one for key in RELEASED if key != SENTINEL}
    assert convert_lora(unseen) is unseen


def test_incomplete_and_foreign_files():
    report = check_keys([key for key in RELEASED if key != "lora_unet__blocks_3_ffn_0.lora_up.weight"], MODULES)
    assert report.incomplete == ("blocks.3.ffn.0",)
    assert report.warnings == ("Modules that lack a tensor: 1, the first is blocks.3.ffn.0.",)
    foreign = (["lora_te_text_model.alpha"], ["lora_unet__down_blocks_0.alpha"], ["alpha"])
    for keys in ([], [RELEASED[0], CORE[5]], *foreign):
        report = check_keys(keys)
        assert (report.style, report.modules, report.loads) == ("unknown", (), False)
    with pytest.raises(FirstFrameError, match="no key of a Wan LoRA"):
        to_core_keys(["lora_unet__down_blocks_0.alpha"])


@pytest.mark.parametrize(
    ("name", "metadata", "expert"),
    [
        ("10_LargeMixedDatset_wan_14bHigh_f81_r128/checkpoint-600.safetensors", None, "high"),
        ("Wan22_FFGO-LoRA-LOW_bf16.safetensors", {}, "low"),
        ("low_noise.safetensors", {"expert": "High"}, "high"),
        ("highlander.safetensors", {"expert": "?"}, None),
        ("high_and_low.safetensors", None, None),
    ],
)
def test_expert(name: str, metadata: dict[str, str] | None, expert: str | None):
    assert expert_of(name, metadata) == expert


def test_pairs():
    assert check_pair("high", "low") == check_pair(None, None) == check_pair("high", None) == ()
    assert "swapped" in check_pair("low", "high")[0]
    assert check_pair("low", "low")[0].startswith("The high-noise model")
    assert check_pair("high", "high")[0].startswith("The low-noise model")
    assert len(check_pair("low", None)) == len(check_pair(None, "high")) == 1
