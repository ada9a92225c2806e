"""The corpus of wrong inputs in `cases/`, each with what becomes of it: the sentence, or what is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.dual_cache.profile import LayoutProfile
from longreel.film.first_frame.values import Layout
from longreel.film.picture_reader import read_picture
from longreel.film.reel.reel import load_reel
from longreel.film.storyboard.text import parse_storyboard
from longreel.film.video_reader import VideoReader, VideoReadError, list_videos
from longreel.host.adapters.dual_cache import load_cache_lora
from longreel.host.adapters.first_frame import apply_lora
from longreel.training.dual_cache.samples import load_scenes
from longreel.training.first_frame.dataset import CastSettings, load_dataset
from longreel.training.first_frame.sources import list_clips

from .. import tiny_models

CASES = Path(__file__).parent / "cases"
REFUSED = {
    "H07-pipes.txt": "A bar does not separate shots",
    "H20-other-width-lora.safetensors": "does not fit 10 of 10 weights",
    "castdata-JSONDecodeError.txt": "it is not JSON",
    "castdata-KeyError.txt": "it has no 'boxes'",
    "castlist-OverflowError.json": "-Infinity, which JSON does not have",
    "castlist-RecursionError.json": "its lists are too deep",
    "castlist-TypeError.json": "picture must be text, not 2",
    "layout-OverflowError.json": "Infinity, which JSON does not have",
    "layout-TypeError.json": "height must be a whole number",
    "lorakeys-IndexError.safetensors": "was made for another model",
    "lorakeys-KeyError.safetensors": "no LoRA that ComfyUI knows",
    "lorakeys-SafetensorError.safetensors": "it is cut off: download it again",
    "profile-OverflowError.json": "layout profile is damaged",
    "profile-RecursionError.json": "layout profile is damaged",
    "reelsigned-KeyError.reel.safetensors": "does not match its content",
    "reelsigned-TypeError.reel.safetensors": "shot.frames must be a whole number",
    "reelsigned-ZeroDivisionError.reel.safetensors": "layout.fps must be a number",
    "scenes-SafetensorError.safetensors": "is no encoded scene",
}
READ = {
    "H01-time-range-en-dash.txt", "H01-time-range.txt", "H03-fullwidth.txt", "H05-inner-bom.txt",
    "H05-zero-width-space.txt", "H10-gray16.png", "H11-rgba-magenta-below.png", "H12-rotated.mp4",
    "H13-apple-double.mp4", "H14-cast-list-bom.json",
}  # fmt: skip


def wan(channels: int) -> ModelPatcher:
    weights, metadata = tiny_models.dit_weights(1, channels), tiny_models.dit_metadata(causal=False)
    return comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)


def _dataset(path: Path, place: Path) -> object:
    """A case of a dataset holds the texts of its list and of an item."""
    lines, item = json.loads(path.read_text(encoding="utf-8"))
    texts = {"train_data.json": lines, "items/a1.json": item, "videos/a1.mp4": "", "images/a1.png": ""}
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    return load_dataset(place)


def _scenes(path: Path, place: Path) -> object:
    shutil.copyfile(path, place / "a.safetensors")
    return load_scenes(place)


READERS: dict[str, Callable[[Path, Path], object]] = {
    "H07": lambda path, _: parse_storyboard(path.read_text(encoding="utf-8")),
    "H20": lambda path, _: apply_lora(wan(36), path, 1.0),
    "castdata": _dataset,
    "castlist": lambda path, _: list_clips(path, CastSettings(64, 48, 9)),
    "layout": lambda path, _: Layout.from_json(path.read_text(encoding="utf-8")),
    "lorakeys-IndexError.safetensors": lambda path, _: load_cache_lora(wan(16), path, 1.0),
    "lorakeys": lambda path, _: apply_lora(wan(36), path, 1.0),
    "profile": lambda path, _: LayoutProfile.from_metadata({next(iter(FILMWEAVER.to_metadata())): path.read_text()}),
    "reelsigned": lambda path, _: load_reel(path),
    "scenes": _scenes,
}


def test_every_case_has_an_expectation():
    assert {path.name for path in CASES.iterdir()} == REFUSED.keys() | READ


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_in_a_sentence(name: str, tmp_path: Path):
    reader = READERS.get(name) or READERS[name.partition("-")[0]]
    with pytest.raises((ValueError, RuntimeError)) as raised:
        reader(CASES / name, tmp_path)
    said = str(raised.value)
    assert REFUSED[name] in said
    assert said.endswith(".")
    assert "\n" not in said
    assert type(raised.value).__module__.startswith("longreel.")


def story(name: str) -> list[tuple[float, list[float]]]:
    shots = parse_storyboard((CASES / name).read_text(encoding="utf-8")).shots
    return [(shot.seconds, [prompt.at for prompt in shot.prompts]) for shot in shots]


def test_storyboards_that_are_read_as_they_are_meant():
    assert story("H01-time-range.txt") == story("H01-time-range-en-dash.txt") == [(20, [0, 10])]
    assert story("H03-fullwidth.txt") == [(10, [0, 5])]
    assert story("H05-inner-bom.txt") == [(5, [0]), (5, [0])]
    assert story("H05-zero-width-space.txt") == [(10, [0])]


def test_pictures_that_are_read_as_they_are_meant():
    grey = read_picture(CASES / "H10-gray16.png")
    ramp = torch.linspace(0, 1, grey.shape[1])
    assert (grey[0, :, 0] - ramp).abs().max() < 0.02
    hidden = read_picture(CASES / "H11-rgba-magenta-below.png")
    assert hidden[0, 0].tolist() == [1, 1, 1], "what is fully transparent is white, not the colour below"


def test_footage_that_is_read_as_it_is_meant(tmp_path: Path):
    with VideoReader(CASES / "H12-rotated.mp4") as video:
        frame = next(iter(video.frames())).pixels()
    assert frame.shape[0] > frame.shape[1], "it was filmed upright"
    shutil.copyfile(CASES / "H12-rotated.mp4", tmp_path / "up.mp4")
    shutil.copyfile(CASES / "H13-apple-double.mp4", tmp_path / "._up.mp4")
    assert [path.name for path in list_videos(tmp_path)] == ["up.mp4"]
    with pytest.raises(VideoReadError, match="use another copy"):
        VideoReader(tmp_path / "._up.mp4")


def test_a_cast_list_with_a_byte_order_mark():
    (clip,) = list_clips(CASES / "H14-cast-list-bom.json", CastSettings(64, 48, 9))
    assert clip.id == "a"
