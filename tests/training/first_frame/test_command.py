"""From nothing to a LoRA that core loads, with the two commands, on models of a few thousand weights."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import comfy.sd
import comfy.utils
import pytest
import torch
from longreel.film.pixels import from_pil
from longreel.host.miniature_clip import load_miniature_clip
from longreel.training.first_frame import command as cast_command
from longreel.training.first_frame.dataset import load_dataset
from longreel.training.first_frame.encode import Encoders, encode_dataset
from longreel.training.first_frame.matcher import first_frame_of
from longreel.training.miniature.export import FILES, export_latent_classifier
from longreel.training.miniature.latent_classifier import LatentClassifier, LatentClassifierRecipe
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ... import tiny_models


def arguments(add, line):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(line.split())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, tensors in (
        ("dit", tiny_models.dit_weights()),
        ("vae", tiny_models.vae_weights()),
        ("text", tiny_models.text_weights()),
    ):
        path = folder / FILES[name]
        path.parent.mkdir(parents=True)
        save_file(tensors, path, metadata=tiny_models.dit_metadata() if name == "dit" else None)
    export_latent_classifier(LatentClassifier(LatentClassifierRecipe().width), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    line = f"--world 4 --frames 9 --folder {folder}"
    cast_command.run_data(arguments(cast_command.add_data_arguments, line))
    return folder


def train(data, folder, weights, more=""):
    line = f"--data {data} --folder {folder} --frames 9 --rank 4 --batch 2 --steps 4 --save-every 2 {more}"
    cast_command.run_lora(arguments(cast_command.add_lora_arguments, line), weights)


def test_a_dataset_becomes_a_lora_that_core_loads(data, weights, tmp_path, capsys):
    train(data, tmp_path, weights, "--sample-every 2")
    told = capsys.readouterr().out
    assert told.index("encoded 4/4") < told.index("Memory: base") < told.index("lora: step 4")
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"step-00000{n}.png" for n in (0, 2, 4)}
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["base"] == "longreel-miniature-dit"
    assert (metadata["rank"], metadata["expert"], metadata["frames"], metadata["clips"]) == ("4", "both", "9", "4")
    base = comfy.sd.load_diffusion_model(str(weights / FILES["dit"]))
    patched, _ = comfy.sd.load_lora_for_models(base, None, load_file(tmp_path / "lora.safetensors"), 1.0, 0.0)
    assert len(patched.patches) == 11

    # The same command again: nothing is encoded or trained twice.
    train(data, tmp_path, weights, "--sample-every 0")
    again = capsys.readouterr().out
    assert "encoded" not in again
    assert "continuing at step 4 of 4" in again


def test_what_is_encoded(data, weights, tmp_path):
    train(data, tmp_path, weights, "--steps 1 --sample-every 0")
    files = sorted((tmp_path / "encoded").glob("*.safetensors"))
    assert len(files) == 4
    first, second = (load_file(path) for path in files[:2])
    assert set(first) == {"latents", "text", "subject"}
    # The canvas, and behind it the three latent frames of the clip by itself.
    assert first["subject"].shape == (4, 8, 8)
    assert first["subject"][0].eq(0).all()
    assert 0.1 < first["subject"][1:].mean() < 0.9
    assert first["latents"].shape == (16, 4, 8, 8)
    assert first["text"].shape == (48, 128)
    assert not torch.equal(first["latents"][:, 0], second["latents"][:, 0])
    train(data, tmp_path / "published", weights, "--steps 1 --sample-every 0 --cut frames")
    published = load_file(tmp_path / "published" / "encoded" / files[0].name)
    assert published["latents"].shape == (16, 3, 8, 8)
    assert torch.allclose(published["latents"][:, 0], first["latents"][:, 0], atol=1e-4)
    assert torch.allclose(published["subject"], first["subject"][1:])


def test_variants_are_kept_and_counted(data, weights, tmp_path, capsys):
    train(data, tmp_path, weights, "--steps 1 --sample-every 0")
    train(data, tmp_path / "more", weights, "--steps 1 --sample-every 0 --recoloured --mirrored")
    assert "encoded 30/30 clip-001.7" in capsys.readouterr().out
    # Four casts as they are and in six other colours, and two without plates left to right.
    assert [item.plate for item in load_dataset(data)] == [False, False, True, True]
    plain, more = tmp_path / "encoded", tmp_path / "more" / "encoded"
    assert len(list(more.iterdir())) == 30
    one, same, turned = (load_file(path) for path in (plain / "clip-001.safetensors", more / "clip-001.safetensors",
                                                      more / "clip-001.7.safetensors"))  # fmt: skip
    assert torch.equal(one["latents"], same["latents"])
    assert torch.equal(one["latents"][:, 0], turned["latents"][:, 0]), "the same canvas"
    assert not torch.equal(one["text"], turned["text"]), "left and right exchanged"
    assert torch.equal(turned["subject"], one["subject"].flip(-1))
    for name in ("clip-000", "clip-003"):
        other = load_file(more / f"{name}.1.safetensors")["latents"]
        changed = (load_file(plain / f"{name}.safetensors")["latents"] - other).abs()
        assert all(changed[:, frame].max() > 1e-3 for frame in (0, -1)), "canvas and clip"
    train(data, tmp_path / "more", weights, "--steps 1 --sample-every 0 --recoloured --mirrored")
    assert "encoded" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has examples 30, not 4"):
        train(data, tmp_path / "more", weights, "--steps 1")


def test_casts_put_together_anew_are_filmed_once_and_learned(data, weights, tmp_path, capsys):
    train(data, tmp_path, weights, "--steps 1 --sample-every 0 --recast 20")
    assert "filmed 20/20" in capsys.readouterr().out
    assert json.loads((tmp_path / "recipe.json").read_text())["examples"] == 24
    films = [load_file(path) for path in sorted((tmp_path / "encoded").glob("recast-*.safetensors"))]
    assert len(films) == 20
    clip = load_file(tmp_path / "encoded" / "clip-000.safetensors")
    assert [value.shape for value in films[0].values()] == [clip[key].shape for key in films[0]]
    assert not films[0]["latents"][:, 1:].isnan().any()
    assert films[0]["subject"][0].eq(0).all()
    assert 0.1 < films[0]["subject"][1:].mean() < 0.9
    (tmp_path / "encoded" / "recast-0003.safetensors").unlink()
    train(data, tmp_path, weights, "--steps 1 --sample-every 0 --recast 20")
    again = load_file(tmp_path / "encoded" / "recast-0003.safetensors")
    assert all(torch.equal(again[key], films[3][key]) for key in again), "the same film"


@torch.no_grad()
def test_models_with_extra_channels_get_the_canvas_and_nothing_of_the_clip(data, weights, tmp_path):
    base = comfy.sd.load_diffusion_model_state_dict(
        {f"model.diffusion_model.{key}": value for key, value in tiny_models.dit_weights(in_dim=36).items()},
        model_options={"dtype": torch.float32},
        metadata=tiny_models.dit_metadata(causal=False),
    )
    assert first_frame_of(base.model.diffusion_model, 16) == "concat"
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights / FILES["vae"])), dtype=torch.float32)
    encoders = Encoders(base, load_miniature_clip(str(weights / FILES["text"])), vae, "tiny")
    items = load_dataset(data)
    mixed = [items[0], replace(items[1], canvas=items[0].canvas)]
    one, other = encode_dataset(mixed, encoders, "concat", 9, None, tmp_path, say=print)
    assert torch.equal(one.known, other.known)
    assert not torch.equal(one.latents, other.latents)
    canvas = from_pil(Image.open(items[0].canvas))[None]
    raw = vae.encode(torch.cat([canvas, torch.full((8, 64, 64, 3), 0.5)]))
    assert torch.allclose(base.model.process_latent_in(raw)[0], one.known, atol=1e-5)
    # The first latent is the first frame alone, so it is the same whether the clip or grey follows.
    assert torch.allclose(one.known[:, 0], one.latents[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("--model somewhere.safetensors", "needs its --text encoder"),
        ("--layers nowhere", "choose another module filter"),
        ("--frames 13", "has 9 frames and 13 are needed"),
        ("--size 60 64", "multiples of 16"),
        ("--data /nowhere", "build the dataset first"),
        ("--recast 2 --cut frames", "cut between latents"),
    ],
)
def test_one_sentence(data, weights, tmp_path, more, sentence):
    with pytest.raises(SystemExit, match=sentence):
        train(data, tmp_path, weights, more)
