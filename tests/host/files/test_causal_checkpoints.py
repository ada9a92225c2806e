"""Released checkpoints through the folders of ComfyUI: converted once, opened by core's loader, used again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import comfy.ldm.wan.ar_model
import folder_paths
import pytest
import torch
from longreel.host.files.causal_checkpoints import causal_sources, load_causal
from longreel.host.files.checkpoints import CheckpointError
from safetensors.torch import save_file

from ... import tiny_models


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    for kind in ("diffusion_models", "loras"):
        (tmp_path / kind).mkdir()
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], extensions))
        monkeypatch.setitem(folder_paths.filename_list_cache, kind, None)
        folder_paths.filename_list_cache.pop(kind)
    return tmp_path


@pytest.fixture
def wide() -> dict[str, torch.Tensor]:
    """A tiny Wan with heads of 128, as no tensor tells another size."""
    model = comfy.ldm.wan.ar_model.CausalWanModel(
        dim=128, ffn_dim=64, num_layers=1, num_heads=1, freq_dim=256, text_dim=32, device="cpu",
        operations=torch.nn,
    )  # fmt: skip
    torch.manual_seed(0)
    return {key: torch.randn_like(value) * 0.05 for key, value in model.state_dict().items()}


def lora(rank: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    name = "base_model.model.blocks.0.self_attn.q"
    return {f"{name}.lora_A.weight": torch.randn(rank, 128), f"{name}.lora_B.weight": torch.randn(128, rank)}


def q_weight(model) -> torch.Tensor:
    return model.model.diffusion_model.blocks[0].self_attn.q.weight.float()


def test_a_pickle_is_converted_once_and_opens_as_a_causal_model(wide, models):
    torch.save({"generator": {f"model.{key}": value for key, value in wide.items()}}, models / "diffusion_models/sf.pt")
    assert causal_sources() == ["sf.pt"]
    model = load_causal("sf.pt")
    assert isinstance(model.model.diffusion_model, comfy.ldm.wan.ar_model.CausalWanModel)
    assert torch.allclose(q_weight(model), wide["blocks.0.self_attn.q.weight"], atol=1e-2)
    (made,) = (models / "diffusion_models/longreel").glob("sf-*.causal.safetensors")
    first = made.stat().st_mtime_ns
    load_causal("sf.pt")
    assert made.stat().st_mtime_ns == first, "used again"
    later = first - 10**9
    os.utime(models / "diffusion_models/sf.pt", ns=(later, later))
    load_causal("sf.pt")
    assert made.stat().st_mtime_ns != first, "another file under the name, if an older one: converted again"


def test_a_lora_is_merged_or_patched(wide, models):
    torch.save({"generator": wide}, models / "diffusion_models/base.pt")
    torch.save({"generator_lora": lora()}, models / "loras/lora.pt")
    name = "base_model.model.blocks.0.self_attn.q"
    change = lora()[f"{name}.lora_B.weight"] @ lora()[f"{name}.lora_A.weight"]
    merged = load_causal("base.pt", "lora.pt")
    plain = wide["blocks.0.self_attn.q.weight"]
    assert torch.allclose(q_weight(merged), plain + change, atol=0.05)
    patched = load_causal("base.pt", "lora.pt", patch=True, strength=0.5)
    assert torch.allclose(q_weight(patched), plain, atol=1e-2)
    assert len(patched.patches) == 1
    patched.patch_model()
    assert torch.allclose(q_weight(patched), plain + 0.5 * change, atol=0.05)
    patched.unpatch_model()
    assert list((models / "diffusion_models/longreel").glob("base+lora-*.causal.safetensors"))


def test_files_of_one_name_never_exchange_weights(wide, models):
    """The releases call their files alike: lora.pt of MemFlow and of LongLive, transformer/ of any diffusers folder."""
    torch.save({"generator": wide}, models / "diffusion_models/base.pt")
    changes = {}
    for number, release in enumerate(("MemFlow", "LongLive")):
        (models / "loras" / release).mkdir()
        changes[release] = {name: value * (1 + number) for name, value in lora().items()}
        torch.save({"generator_lora": changes[release]}, models / "loras" / release / "lora.pt")
        other = {name: value * (2 + number) for name, value in wide.items()}
        folder = models / "diffusion_models" / release / "transformer"
        folder.mkdir(parents=True)
        save_file(other, folder / "a.safetensors")
        index = {"weight_map": dict.fromkeys(other, "a.safetensors")}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    plain, name = wide["blocks.0.self_attn.q.weight"], "base_model.model.blocks.0.self_attn.q"
    for _ in range(2):  # the second time from what was converted the first time
        for number, release in enumerate(("MemFlow", "LongLive")):
            change = changes[release][f"{name}.lora_B.weight"] @ changes[release][f"{name}.lora_A.weight"]
            merged = load_causal("base.pt", f"{release}/lora.pt")
            assert torch.allclose(q_weight(merged), plain + change, rtol=2e-2, atol=0.05)
            patched = load_causal("base.pt", f"{release}/lora.pt", patch=True)
            patched.patch_model()
            assert torch.allclose(q_weight(patched), plain + change, rtol=2e-2, atol=0.05)
            patched.unpatch_model()
            assert torch.allclose(q_weight(load_causal(f"{release}/transformer/")), plain * (2 + number), atol=1e-2)


def test_a_causal_file_is_opened_as_it_is(models):
    save_file(tiny_models.dit_weights(), models / "diffusion_models/ours.safetensors", tiny_models.dit_metadata())
    load_causal("ours.safetensors")
    assert not (models / "diffusion_models/longreel").exists()


def test_a_sharded_folder_is_one_choice(wide, models):
    folder = models / "diffusion_models/wan"
    folder.mkdir()
    names = sorted(wide)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: wide[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert causal_sources() == ["wan/"]
    assert torch.allclose(q_weight(load_causal("wan/")), wide["blocks.0.self_attn.q.weight"], atol=1e-2)


def test_what_cannot_be_opened_gets_one_sentence(wide, models):
    with pytest.raises(CheckpointError, match=r"There is no gone\.pt"):
        load_causal("gone.pt")
    (models / "diffusion_models/cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged"):
        load_causal("cut.safetensors")
    del wide["blocks.0.norm3.weight"]
    torch.save({"generator": wide}, models / "diffusion_models/part.pt")
    with pytest.raises(CheckpointError, match=r"lacks blocks\.0\.norm3\.weight"):
        load_causal("part.pt")
    assert not list((models / "diffusion_models").rglob("*.causal.safetensors"))
