"""From nothing to a FilmWeaver LoRA that loads, with the two commands, on the miniature as shipped."""

from __future__ import annotations

import argparse
import json

import comfy.sd
import pytest
from longreel.host.adapters.dual_cache import load_cache_lora
from longreel.host.wan.cache_tokens import installed_profile
from longreel.training.dual_cache import command as weaver_command
from longreel.training.dual_cache.samples import load_scenes
from longreel.training.miniature.export import FILES
from safetensors import safe_open

from ...server.harness import REPOSITORY

WEIGHTS = REPOSITORY / "miniature" / "weights"


def arguments(add, line):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(line.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    weaver_command.run_data(
        arguments(weaver_command.add_data_arguments, f"--folder {folder} --scenes 2 --seed 3"), WEIGHTS
    )
    return folder


def train(data, folder, more=""):
    line = f"--data {data} --folder {folder} --rank 2 --first-steps 1 --steps 2 --batch 2 --at-once 2 {more}"
    weaver_command.run_lora(arguments(weaver_command.add_lora_arguments, line), WEIGHTS)


def test_scenes_say_where_their_subjects_are_and_what_they_show(data):
    for scene in load_scenes(data):
        for shot in scene.shots:
            assert shot.subject.shape == shot.latents.shape[1:]
            assert 0 < shot.subject.mean() < 0.7
            assert shot.shown.sum() >= 4


def test_a_lora_comes_out_and_is_continued(data, tmp_path, capsys):
    train(data, tmp_path, "--sample-every 3")
    assert str(tmp_path / "weaver.safetensors") in capsys.readouterr().out
    assert min(path.name for path in (tmp_path / "samples").iterdir()).startswith("step-")
    with safe_open(tmp_path / "weaver.safetensors", "pt") as file:
        assert (file.metadata()["recipe"], file.metadata()["scenes"]) == ("filmweaver", "2")
    model = comfy.sd.load_diffusion_model(str(WEIGHTS / FILES["dit"]))
    assert installed_profile(load_cache_lora(model, tmp_path / "weaver.safetensors", 1.0)).time_mode == "own"
    told = json.loads((tmp_path / "recipe.json").read_text())
    assert (told["subject_weight"], told["reading"]) == (4.0, 0.3)
    with pytest.raises(SystemExit, match=r"has reading 0\.3, not 0\.0"):
        train(data, tmp_path, "--reading 0")


def test_a_lora_is_trained_on(data, tmp_path):
    train(data, tmp_path / "first", "--sample-every 0")
    train(data, tmp_path / "second", f"--sample-every 0 --start-from {tmp_path / 'first' / 'weaver.safetensors'}")
    assert (tmp_path / "second" / "weaver.safetensors").exists()
    with pytest.raises(SystemExit, match="has no encoded scenes"):
        train(tmp_path, tmp_path / "third")
