"""FilmWeaver's dataset and trainer as nodes: from films to a LoRA that the loader reads; stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from longreel.film.dual_cache import CacheError
from longreel.host.adapters.dual_cache import load_cache_lora
from longreel.host.media.embedder import load_embedder
from longreel.host.miniature_clip import load_miniature_clip
from longreel.nodes.dual_cache_dataset import LongreelMiniatureFilms, LongreelWeaverDataset
from longreel.nodes.dual_cache_train import LongreelTrainWeaverLora
from longreel.training.core import in_node
from longreel.training.core.lora import LoraError
from longreel.training.dual_cache.scenes.films import SceneDataError
from safetensors import safe_open
from safetensors.torch import save_file

from .. import tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny ones, made as nodes make them: in inference mode."""
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.dit_weights(), folder / "dit.safetensors", metadata=tiny_models.dit_metadata())
    save_file(tiny_models.text_weights(), folder / "longreel-miniature.safetensors")
    with torch.inference_mode():
        return {
            "model": comfy.sd.load_diffusion_model(str(folder / "dit.safetensors")),
            "clip": load_miniature_clip(str(folder / "longreel-miniature.safetensors")),
            "vae": comfy.sd.VAE(sd=tiny_models.vae_weights()),
            "keyframe_clip": load_embedder(tiny_models.write_clip(folder / "clip")),
        }


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("comfy")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("temp", "output", "input"):
            (folder / name).mkdir()
            patched.setattr(folder_paths, f"{name}_directory", str(folder / name))
        yield folder / "output"


def dataset(models: dict[str, Any], films: str, **changes: Any) -> Any:
    told: dict[str, Any] = {
        "name": "test", "width": 64, "height": 64, "fps": 16.0, "cuts": "auto", "longest": 10.0, "shortest": 1.0,
        "threshold": -1.0, "window": 3, "most_people": 3, "floor": -1.0, "keyframes": 3, "again": "nothing",
    }  # fmt: skip
    with torch.inference_mode():
        return LongreelWeaverDataset.execute(**models, films=films, **told | changes).args


@pytest.fixture(scope="module")
def scenes(models: dict[str, Any], output: Path) -> Path:
    films = LongreelMiniatureFilms.execute(2, 0).args[0]
    folder, sheet, report = dataset(models, films)
    assert folder == output / "longreel-scenes" / "test" / "encoded"
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert sheet.shape[0] == 1
    assert sheet.shape[1] > 6 * 256
    assert report.splitlines()[-1].startswith("2 scenes encoded in ")
    assert "how many people are seen was not checked" in report
    return folder


def train(models: dict[str, Any], scenes: Path, **changes: Any) -> Any:
    told: dict[str, Any] = {
        "name": "test", "first_steps": 2, "steps": 4, "rank": 4, "rate": 1e-3, "batch": 2, "seed": 0,
        "time_mode": "own", "layers": "all", "samples_at_once": 2, "rollout_steps": 0, "warmup": 1, "shot_noise": 0.4,
        "history_noise": 0.1, "negative": 0.25, "shift": 5.0, "checkpointing": False, "sample_every": 3,
    }  # fmt: skip
    given = {key: models[key] for key in ("model", "clip", "vae")}
    with torch.inference_mode():
        return LongreelTrainWeaverLora.execute(**given, dataset=scenes, **told | changes).args


def test_encoded_scenes_are_opened_as_they_are(models: dict[str, Any], scenes: Path):
    folder, sheet, report = dataset(models, str(scenes), name="opened")
    assert folder == scenes
    assert sheet.shape[1] > 2 * 200
    assert report.startswith("2 encoded scenes in ")


def test_only_changed_films_make_the_node_run_again(scenes: Path, output: Path):
    films = output / "longreel-films" / "miniature-0"
    before = LongreelWeaverDataset.fingerprint_inputs(films=str(films), name="test")
    assert before == LongreelWeaverDataset.fingerprint_inputs(films=str(films), name="test")
    (films / "people.json").write_text("{}")
    assert LongreelWeaverDataset.fingerprint_inputs(films=str(films)) != before
    (films / "people.json").unlink()
    assert LongreelWeaverDataset.fingerprint_inputs(films=None) == []


def test_no_folder_is_one_sentence(models: dict[str, Any], output: Path):
    with pytest.raises(SceneDataError, match=r"There is no folder .*nowhere: write the full path"):
        dataset(models, "nowhere")


def test_a_lora_with_its_layout_comes_out(models: dict[str, Any], scenes: Path, output: Path):
    weights = {key: value.clone() for key, value in models["model"].model.state_dict().items()}
    state = torch.random.get_rng_state()
    model, curve, samples, report = train(models, scenes)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not comfy.model_management.in_training
    assert all(torch.equal(weights[key], value) for key, value in models["model"].model.state_dict().items())
    assert model is not models["model"]
    assert model.patches
    assert curve.shape[-1] == samples.shape[-1] == 3
    assert samples.shape[1] > curve.shape[1], "four modes, two rows each"
    assert report.splitlines()[0].startswith("Memory: base")
    file = output / "loras" / "test.safetensors"
    load_cache_lora(models["model"], file, 1.0)
    with safe_open(file, "pt") as opened:
        assert (opened.metadata()["steps"], opened.metadata()["scenes"]) == ("6", "2")
        assert '"time_mode": "own"' in "".join(opened.metadata().values()).replace('":"', '": "')


def test_an_interrupted_run_goes_on_to_the_bit(models: dict[str, Any], scenes: Path, output: Path, monkeypatch: Any):
    train(models, scenes, name="straight", sample_every=0)

    class Stopped(in_node.Progress):
        def reach(self, done: int, text: str, draw: Any = None) -> None:
            if text.startswith("step 3/"):
                comfy.model_management.interrupt_current_processing()
            super().reach(done, text, draw)

    with monkeypatch.context() as patched:
        patched.setattr(in_node, "Progress", Stopped)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(models, scenes, name="stopped", sample_every=0)
    with safe_open(output / "longreel-loras" / "stopped" / "weaver.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "3"
    assert not (output / "loras" / "stopped.safetensors").exists(), "only what is finished is listed"
    assert not comfy.model_management.in_training
    assert "continuing at step 3 of 6" in train(models, scenes, name="stopped", sample_every=0)[3]
    with safe_open(output / "loras" / "straight.safetensors", "pt") as one, \
         safe_open(output / "loras" / "stopped.safetensors", "pt") as other:  # fmt: skip
        assert set(one.keys()) == set(other.keys())
        assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118


def test_what_cannot_be_trained_is_refused_at_once(models: dict[str, Any], scenes: Path, tmp_path: Path):
    train(models, scenes, name="rank", first_steps=1, steps=0, sample_every=0)
    with pytest.raises(LoraError, match="has rank 4, not 8"):
        train(models, scenes, name="rank", first_steps=1, steps=0, rank=8)
    one = tmp_path / "one"
    one.mkdir()
    first = min(scenes.glob("*.safetensors"))
    with safe_open(first, "pt") as file:
        told = file.metadata() | {"shots": "1"}
        save_file({key: file.get_tensor(key) for key in file.keys() if key.startswith("shot0.")}, one / first.name,  # noqa: SIM118
                  metadata=told)  # fmt: skip
    with pytest.raises(CacheError, match=r"Mode 3 needs a shot .* that follows a shot with keyframes"):
        train(models, one, name="other")
    report = train(models, one, name="stage one", steps=0, sample_every=0)[3]
    assert report.endswith("stage one.safetensors, also for FilmWeaver LoRA Loader."), "stage 1 has no cuts"
