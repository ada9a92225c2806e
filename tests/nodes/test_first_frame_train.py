"""Dataset and trainer as nodes: what they write, what they refuse, and that ComfyUI's inference mode is no obstacle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from longreel.film.first_frame import Reference
from longreel.film.reel.reel import ReelError
from longreel.host.miniature_clip import load_miniature_clip
from longreel.nodes.first_frame_dataset import LongreelBuildCastDataset, LongreelCastClip, LongreelMiniatureCastClips
from longreel.nodes.first_frame_train import LongreelTrainCastLora
from longreel.training.core.lora import LoraError
from longreel.training.first_frame.dataset import CastDataError
from longreel.training.first_frame.world import MINIATURE_TRIGGER
from safetensors import safe_open
from safetensors.torch import save_file

from .. import tiny_models


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("temp", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path / "output"


def clip_of(name: str = "kitchen", frames: int = 9, before: Any = (), **changes: Any) -> Any:
    """A clip of a grey square, with the square as its one reference."""
    pictures = torch.full((frames, 32, 64, 3), 0.5)
    pictures[:, 8:24, 8:24] = torch.rand(frames, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(32, 64)
    mask[8:24, 8:24] = 1
    square = Reference.from_image(pictures[0], mask, "square", "a noisy square")
    given: dict[str, Any] = {
        "references": {"reference_1": square}, "name": name, "caption": "The noisy square stands still.", "fps": 24.0,
        "plate": torch.full((1, 32, 64, 3), 0.5),
    }  # fmt: skip
    return LongreelCastClip.execute(pictures, clips=before, **given | changes).args[0]


def build(clips: Any = (), name: str = "test", frames: int = 9, keep_others: bool = True, size: Any = (64, 32)) -> Any:
    settings = {"width": size[0], "height": size[1], "frames": frames, "trigger": MINIATURE_TRIGGER}
    return LongreelBuildCastDataset.execute(name, keep_others, clips, **settings)


def lines(folder: Path) -> list[dict[str, str]]:
    return json.loads((folder / "train_data.json").read_text())


def test_clips_of_a_graph_become_the_published_layout(output: Path):
    folder, sheet, report = build(clip_of("second", before=clip_of("first"))).args
    assert folder == output / "longreel-casts" / "test"
    assert [line["file_path"] for line in lines(folder)] == ["videos/first.mp4", "videos/second.mp4"]
    assert lines(folder)[0]["text"] == f"{MINIATURE_TRIGGER} The noisy square stands still."
    assert {path.name for path in (folder / "train_materials" / "video_first").iterdir()} == {
        "main_entity.png", "object.png",
    }  # fmt: skip
    assert sheet.shape[0] == 1
    assert sheet.shape[1] > 2 * 128
    assert report.endswith(f"2 clips in {folder}")


def test_a_dataset_grows_and_is_opened_again(output: Path):
    build(clip_of("first"))
    folder, _, report = build(clip_of("second")).args
    assert [line["file_path"] for line in lines(folder)] == ["videos/first.mp4", "videos/second.mp4"]
    assert "1/1 second" in report
    stamp = (folder / "train_data.json").stat().st_mtime_ns
    assert "1/1" not in build(clip_of("second")).args[2], "what has not changed is not made again"
    assert build().args[0] == folder
    assert (folder / "train_data.json").stat().st_mtime_ns == stamp
    assert LongreelBuildCastDataset.fingerprint_inputs(name="test") == stamp
    build(clip_of("second"), keep_others=False)
    assert [line["file_path"] for line in lines(folder)] == ["videos/second.mp4"]


def test_one_sentence_for_what_no_dataset_can_be_made_of(output: Path):
    with pytest.raises(CastDataError, match="letters, digits"):
        clip_of("../away")
    with pytest.raises(CastDataError, match="at least one reference"):
        clip_of(references={})
    with pytest.raises(CastDataError, match="No clip can be used"):
        build(clip_of(frames=5))
    with pytest.raises(CastDataError, match="build the dataset first"):
        build(name="nothing here")
    with pytest.raises(CastDataError, match="same id"):
        build(clip_of("one", before=clip_of("one")))
    with pytest.raises(ReelError, match="at least one letter"):
        build(clip_of(), name="..")
    _, _, report = build(clip_of("short", frames=5, before=clip_of("long"))).args
    assert "short is left out: it has 5 frames and 9 are needed" in report


def test_the_plate_must_be_empty(output: Path):
    shown = clip_of("full")[0].load().frames[:1]
    assert "still in it" in build(clip_of("full", plate=shown)).args[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Tiny ones, made as nodes make them: in inference mode."""
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.dit_weights(), folder / "dit.safetensors", metadata=tiny_models.dit_metadata())
    save_file(tiny_models.text_weights(), folder / "longreel-miniature.safetensors")
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(folder / "dit.safetensors"))
        clip = load_miniature_clip(str(folder / "longreel-miniature.safetensors"))
        vae = comfy.sd.VAE(sd=tiny_models.vae_weights())
    return model, clip, vae


def train(models: Any, dataset: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "name": "test", "expert": "both", "steps": 4, "rank": 4, "rate": 1e-3, "batch": 2, "frames": 9, "seed": 0,
        "clips_at_once": 2, "clip_norm": 1.0, "weight_decay": 0.03, "dropout": 0.0, "shift": 5.0, "boundary": 0.9,
        "layers": r"blocks\.\d+\..*", "recoloured": False, "mirrored": False, "checkpointing": True, "sample_every": 2,
    }  # fmt: skip
    with torch.inference_mode():
        return LongreelTrainCastLora.execute(*models, dataset, **settings | changes).args


@pytest.fixture
def dataset() -> Path:
    clips = LongreelMiniatureCastClips.execute(4, 9, 0).args[0]
    return build(clips, size=(64, 64)).args[0]


def test_a_lora_is_trained_in_inference_mode(models: Any, dataset: Path, output: Path):
    before = {key: value.clone() for key, value in models[0].model.state_dict().items()}
    state = torch.random.get_rng_state()
    lora, curve, samples, report = train(models, dataset)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not comfy.model_management.in_training
    assert all(torch.equal(before[key], value) for key, value in models[0].model.state_dict().items())
    assert len(lora) == 3 * 10
    assert any(value.abs().sum() > 0 for key, value in lora.items() if key.endswith("lora_up.weight"))
    assert curve.shape[-1] == samples.shape[-1] == 3
    assert report.startswith("Memory: base")
    with safe_open(output / "loras" / "test.safetensors", "pt") as file:
        assert (file.metadata()["steps"], file.metadata()["clips"]) == ("4", "4")
    patched, _ = comfy.sd.load_lora_for_models(models[0], None, lora, 1.0, 0.0)
    assert len(patched.patches) == 10


def test_an_interrupted_run_goes_on_to_the_bit(models: Any, dataset: Path, output: Path, monkeypatch: Any):
    straight = train(models, dataset, name="straight")[0]
    import longreel.training.core.in_node as module

    class Stopped(module.Progress):
        def reach(self, done: int, text: str, draw: Any = None) -> None:
            if text.startswith("step 2/"):
                raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(module, "Progress", Stopped)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(models, dataset)
    run = output / "longreel-loras" / "test"
    with safe_open(run / "lora.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "2"
    assert not (output / "loras" / "test.safetensors").exists(), "only what is finished is listed"
    assert not comfy.model_management.in_training
    lora, _, _, report = train(models, dataset)
    assert "continuing at step 2 of 4" in report
    assert all(torch.equal(straight[key], lora[key]) for key in straight)


def test_other_settings_need_another_name(models: Any, dataset: Path):
    train(models, dataset)
    with pytest.raises(LoraError, match="has rank 4, not 8"):
        train(models, dataset, rank=8)
    with pytest.raises(LoraError, match="choose another module filter"):
        train(models, dataset, name="other", layers="nowhere")
