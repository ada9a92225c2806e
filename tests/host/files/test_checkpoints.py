"""Released layouts in, one file out that ComfyUI opens as a causal model; nothing half-written, no code run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import comfy.ldm.wan.ar_model
import comfy.sd
import comfy.utils
import pytest
import torch
from longreel.film.reel import atomic
from longreel.host.files import safetensors_io as checkpoint_files
from longreel.host.files.checkpoints import CheckpointError, convert, convert_lora, main
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FP32 = {"dtype": torch.float32, "head_dim": 24}


@pytest.fixture
def weights(golden):
    """The tiny Wan under its plain names, fp32; every value is exact in bf16."""
    named = ((name, t) for name, t in golden.tensors.items() if name.startswith("weights."))
    return {name.removeprefix("weights."): t.clone() for name, t in named}


@pytest.fixture
def lora():
    """Rank 4 on two modules, in plain names."""
    random = torch.Generator().manual_seed(1)
    pairs = {}
    for name, (rows, columns) in {"blocks.0.ffn.0": (128, 96), "blocks.2.cross_attn.k": (96, 96)}.items():
        pairs[f"{name}.lora_A.weight"] = 0.1 * torch.randn(4, columns, generator=random)
        pairs[f"{name}.lora_B.weight"] = 0.1 * torch.randn(rows, 4, generator=random)
    return pairs


def renamed(weights, name):
    return {name(key): tensor for key, tensor in weights.items()}


def to_diffusers(key):
    """Wan's names as diffusers writes them."""
    for old, new in (
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
        ("modulation", "scale_shift_table"),
        ("ffn.0", "ffn.net.0.proj"),
        ("ffn.2", "ffn.net.2"),
        ("norm3", "norm2"),
        ("self_attn", "attn1"),
        ("cross_attn", "attn2"),
    ):
        key = key.replace(old, new)
    for letter in "qkv":
        key = key.replace(f".{letter}.", f".to_{letter}.")
    return key.replace(".o.", ".to_out.0.")


LAYOUTS = {
    "self-forcing": lambda w: {"generator_ema": renamed(w, lambda k: f"model._fsdp_wrapped_module.{k}")},
    "longlive": lambda w: {"generator": renamed(w, lambda k: f"model.{k}"), "step": 3},
    "memflow": lambda w: {"generator": renamed(w, lambda k: f"generator.model.{k}")},
    "shotstream": lambda w: {
        "generator": renamed(w, lambda k: f"model.{k}"),
        "generator_ema": renamed(w, lambda k: f"model.{k}"),
        "critic": {"model.head.modulation": torch.zeros(1)},
        "step": 1,
    },
    "compiled": lambda w: renamed(w, lambda k: f"_orig_mod.{k.replace('ffn', '_checkpoint_wrapped_module.ffn')}"),
    "bare": lambda w: w,
    "comfyui": lambda w: renamed(w, lambda k: f"model.diffusion_model.{k}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_as_a_causal_model(tmp_path, weights, layout):
    source = tmp_path / "in.pt"
    torch.save(LAYOUTS[layout](weights), source)
    written = convert(source, tmp_path / "new" / "out.safetensors", head_dim=24)
    found = load_file(written)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key].float(), weights[key]) and found[key].dtype == torch.bfloat16 for key in weights)
    model = comfy.sd.load_diffusion_model(str(written))
    assert type(model.model.diffusion_model) is comfy.ldm.wan.ar_model.CausalWanModel
    assert (model.model.diffusion_model.num_heads, float(model.model.model_sampling.shift)) == (4, 5.0)


def test_released_sizes_need_no_config_beyond_causal(tmp_path):
    """A one-layer model as wide as a head of 128, with the released text and time widths."""
    import comfy.ops

    with torch.device("meta"):
        model = comfy.ldm.wan.ar_model.CausalWanModel(
            dim=128, ffn_dim=64, num_heads=1, num_layers=1, operations=comfy.ops.disable_weight_init
        )
    tensors = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "in.safetensors")
    written = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with safe_open(written, "pt") as file:
        assert json.loads(file.metadata()["config"]) == {"transformer": {"causal_ar": True}}


def test_diffusers_folder_in_shards(tmp_path, weights):
    named = renamed(weights, to_diffusers)
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    keys = sorted(named)
    index = {"weight_map": {}}
    for part, chosen in enumerate((keys[::2], keys[1::2])):
        file = f"diffusion_pytorch_model-{part + 1:05d}-of-00002.safetensors"
        save_file({key: named[key] for key in chosen}, folder / file)
        index["weight_map"] |= dict.fromkeys(chosen, file)
    listing = folder / "diffusion_pytorch_model.safetensors.index.json"
    listing.write_text(json.dumps(index))
    found = load_file(convert(tmp_path / "model", tmp_path / "out.safetensors", **FP32))
    assert all(torch.equal(found[key], weights[key]) for key in weights)

    index["weight_map"]["x"] = "../../secret.safetensors"
    listing.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks"):
        convert(folder, tmp_path / "again.safetensors", head_dim=24)
    listing.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        convert(folder, tmp_path / "again.safetensors", head_dim=24)


def test_ema_is_taken_when_asked_for(tmp_path, weights):
    other = {key: tensor + 1 for key, tensor in weights.items()}
    torch.save({"generator": weights, "generator_ema": other}, tmp_path / "in.pt")
    for ema, expected in ((False, weights), (True, other)):
        written = convert(
            tmp_path / "in.pt", tmp_path / f"{ema}.safetensors", ema=ema, head_dim=24, dtype=torch.float32
        )
        assert torch.equal(load_file(written)["head.modulation"], expected["head.modulation"])


@pytest.mark.parametrize("adapter", ["", ".default"])
def test_lora_is_merged_in_fp32(tmp_path, weights, lora, adapter):
    torch.save({"generator": weights}, tmp_path / "base.pt")
    named = {f"base_model.model.{key.replace('.weight', adapter + '.weight')}": tensor for key, tensor in lora.items()}
    torch.save({"generator_lora": named, "critic_lora": {}}, tmp_path / "lora.pt")
    written = convert(tmp_path / "base.pt", tmp_path / "out.safetensors", lora=tmp_path / "lora.pt", head_dim=24)
    found = load_file(written)
    for key, weight in weights.items():
        sides = [lora.get(key.replace(".weight", f".lora_{side}.weight")) for side in "BA"]
        expected = weight if sides[0] is None else weight + sides[0] @ sides[1]
        assert torch.equal(found[key], expected.to(torch.bfloat16))


def test_alpha_scales_and_stock_lora_equals_the_merge(tmp_path, weights, lora):
    lora["blocks.0.ffn.0.alpha"] = torch.tensor(2.0)
    torch.save({"generator": weights}, tmp_path / "base.pt")
    torch.save({f"base_model.model.{key}": tensor for key, tensor in lora.items()}, tmp_path / "lora.pt")
    merged = convert(tmp_path / "base.pt", tmp_path / "m.safetensors", lora=tmp_path / "lora.pt", **FP32)
    change = load_file(merged)["blocks.0.ffn.0.weight"] - weights["blocks.0.ffn.0.weight"]
    product = lora["blocks.0.ffn.0.lora_B.weight"] @ lora["blocks.0.ffn.0.lora_A.weight"]
    assert (change - 0.5 * product).abs().max() < 1e-6

    base = comfy.sd.load_diffusion_model(str(convert(tmp_path / "base.pt", tmp_path / "b.safetensors", **FP32)))
    stock = convert_lora(tmp_path / "lora.pt", tmp_path / "l.safetensors", dtype=torch.float32)
    patched, _ = comfy.sd.load_lora_for_models(base, None, comfy.utils.load_torch_file(str(stock)), 1.0, 0.0)
    assert len(patched.patches) == 2
    patched.patch_model()
    expected = load_file(merged)
    for key, value in patched.model.diffusion_model.state_dict().items():
        assert (value - expected[key]).abs().max() < 1e-6
    patched.unpatch_model()


class Hostile:
    """Writes a file when unpickled carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path, weights, zipped):
    marker, source = tmp_path / "owned", tmp_path / "in.pt"
    content = {"generator": weights, "extra": Hostile(marker)}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="may run code"):
        convert(source, tmp_path / "out.safetensors", head_dim=24)
    source.write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "out.safetensors", head_dim=24)
    with pytest.raises(CheckpointError):
        convert_lora(source, tmp_path / "out.safetensors")
    assert not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def without(weights, *keys):
    return {key: tensor for key, tensor in weights.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "blocks.1.ffn.2.bias", "head.head.bias"), "lacks blocks.1.ffn.2.bias, head.head.bias"),
        (lambda w: w | {"img_emb.proj.0.bias": torch.zeros(3)}, "foreign img_emb.proj.0.bias"),
        (lambda w: w | {"blocks.900000000.ffn.0.bias": torch.zeros(3)}, "foreign"),
        (lambda w: w | {"blocks.1.norm3.bias": torch.zeros(5)}, "another shape"),
        (lambda w: w | {"model.head.head.bias": torch.zeros(64)}, "twice"),
        (lambda w: without(w, "head.modulation"), "no Wan model"),
        (lambda w: w | {"patch_embedding.weight": torch.zeros(96, 36, 1, 2, 2)}, "image-to-video"),
    ],
)
def test_partial_and_foreign_models_are_refused(tmp_path, weights, change, words):
    torch.save(change(weights), tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors", head_dim=24)
    assert not (tmp_path / "out.safetensors").exists()


def test_heads_that_do_not_divide_are_refused(tmp_path, weights):
    torch.save(weights, tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match="do not divide"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")


def pair(name, rows, columns):
    return {f"{name}.lora_A.weight": torch.zeros(2, columns), f"{name}.lora_B.weight": torch.zeros(rows, 2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: pair("blocks.7.ffn.0", 128, 96), "another model"),
        (lambda p: pair("head.head", 64, 5), "does not fit"),
        (lambda p: without(p, "blocks.0.ffn.0.lora_B.weight"), "one half"),
        (lambda p: p | {"blocks.0.ffn.0.lora_B.weight": torch.zeros(128, 5)}, "different rank"),
        (lambda p: p | {"blocks.0.ffn.0.bias": torch.zeros(5)}, "is not a LoRA"),
    ],
)
def test_unsuitable_loras_are_refused(tmp_path, weights, lora, change, words):
    torch.save(weights, tmp_path / "in.pt")
    torch.save(change(lora), tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors", lora=tmp_path / "lora.pt", head_dim=24)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "lora.pt"]


@pytest.mark.parametrize("name", ["in.pt", "in.safetensors"])
def test_truncated_files_are_refused(tmp_path, weights, name):
    source = tmp_path / name
    save_file(weights, source) if name.endswith("s") else torch.save(weights, source)
    whole = source.read_bytes()
    for length in (0, 7, 1000, len(whole) // 2):
        source.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            convert(source, tmp_path / "out.safetensors", head_dim=24)


def test_missing_wrong_and_existing_paths(tmp_path, weights):
    torch.save(weights, tmp_path / "in.pt")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.safetensors").write_text("mine")
    for source, output, words in (
        ("gone.pt", "out.safetensors", "no checkpoint at"),
        ("note.txt", "out.safetensors", "no checkpoint this can read"),
        ("empty", "out.safetensors", "holds no diffusion_pytorch_model"),
        ("in.pt", "out.bin", "must end in .safetensors"),
        ("in.pt", "there.safetensors", "exists"),
        ("in.pt", "note.txt/out.safetensors", "cannot be written to"),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert(tmp_path / source, tmp_path / output, head_dim=24)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    convert(tmp_path / "in.pt", tmp_path / "there.safetensors", head_dim=24, overwrite=True)
    assert len(load_file(tmp_path / "there.safetensors")) == len(weights)


def test_disk_and_memory_are_checked_first(tmp_path, weights, monkeypatch):
    torch.save(weights, tmp_path / "in.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(CheckpointError, match="on disk"):
            convert(tmp_path / "in.pt", tmp_path / "out.safetensors", head_dim=24)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
        with pytest.raises(CheckpointError, match="of memory"):
            convert(tmp_path / "in.pt", tmp_path / "out.safetensors", head_dim=24)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_a_write_that_fails_leaves_nothing_and_keeps_the_old_file(tmp_path, weights, monkeypatch):
    torch.save(weights, tmp_path / "in.pt")
    output = tmp_path / "out.safetensors"
    output.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(tmp_path / "in.pt", output, head_dim=24, overwrite=True)
    assert output.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_command_line(tmp_path, weights, lora, capsys):
    torch.save({"generator": weights}, tmp_path / "in.pt")
    torch.save({"generator_lora": lora}, tmp_path / "lora.pt")
    output = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "lora.pt"), str(tmp_path / "lora.safetensors"), "--only-lora"]) == 0
    assert main([str(tmp_path / "gone.pt"), str(output)]) == 1
    assert "no checkpoint at" in capsys.readouterr().err
    # in a process of its own: it must do without a GPU and without the server
    command = [sys.executable, "-m", "longreel.host.files.checkpoints", str(tmp_path / "in.pt"), str(output)]
    command += ["--lora", str(tmp_path / "lora.pt"), "--head-dim", "24"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(tmp_path), check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == str(output)
    assert len(load_file(output)) == len(weights)
