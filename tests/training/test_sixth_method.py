"""A method from outside: an adapter, a trainer, a command and a node, without a line changed in anybody's file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from longreel import training
from longreel.nodes import training_run
from longreel.training import __main__ as command_line
from longreel.training.core.settings import from_widgets, node_inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .. import tiny_models

TRAIN = '''
"""A LoRA and a matrix of its own on any Wan, by flow matching of random latents."""

from dataclasses import dataclass

import torch
from torch import nn

from ..core.lora import save_lora
from ..core.objectives.denoiser import stratified
from ..core.objectives.flow_matching import FlowMatching, SigmaRange
from ..core.run import adapted, remember_settings, run_training, uses_bf16, weighted_mse
from ..core.settings import FlowLoraSettings, again, setting
from ..core.trainable import ParamGroup, Trainable


@dataclass(frozen=True)
class SixthSettings(FlowLoraSettings):
    rank: int = again(FlowLoraSettings, "rank", 8, tooltip="Its size.")
    steps: int = again(FlowLoraSettings, "steps", 3, tooltip="Updates.")
    strength: float = setting(0.5, help="of the sixth sense", tooltip="Strength.", low=0.0, high=1.0)


PAPER, MINIATURE = SixthSettings(), SixthSettings(rank=2, checkpointing=False)


class Sixth(Trainable):
    def __init__(self, lora):
        super().__init__()
        self.lora, self.sense = lora, nn.Parameter(torch.zeros(16, 1, 1, 1))

    def groups(self):
        return [*self.lora.groups(), ParamGroup((self.sense,), lr_scale=3.0)]

    def export(self, path, metadata):
        return save_lora(self.lora, path, {**metadata, "sense": f"{float(self.sense.detach().norm()):g}"})


def train_sixth(dit, settings, folder, say=print):
    tree, lora = adapted(dit, settings)
    sixth = Sixth(lora)
    matcher = FlowMatching(tree, uses_bf16(settings.precision, torch.device("cpu")))
    remember_settings(settings, folder)

    def loss_at(draw):
        clean, noise = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 16, 2, 4, 4)
        sigma = SigmaRange(shift=settings.shift).quantile(stratified(2))
        text = torch.zeros(2, 5, 128)
        v = matcher.network(matcher.add_noise(clean, sigma, noise), sigma * 1000, text, transformer_options={})
        error = (v + settings.strength * sixth.sense - (noise - clean)).square().mean(dim=1)
        return weighted_mse(error, [None, None], 0.0), {}

    return run_training("sixth", tree, sixth, loss_at, settings, folder, {"recipe": "sixth"}, sample=None, say=say)
'''
COMMAND = '''
"""`sixth-lora` trains it."""

from pathlib import Path

from ..core.command_line import Command, add_model_arguments, command_line, load_base
from ..core.settings import add_arguments, chosen_settings
from .train import MINIATURE, PAPER, train_sixth


def arguments(parser):
    parser.add_argument("--folder", type=Path, required=True)
    add_model_arguments(parser, "a Wan")
    add_arguments(parser, PAPER, MINIATURE)


@command_line()
def run(chosen, weights):
    settings = chosen_settings(chosen, PAPER if chosen.model else MINIATURE)
    base = load_base(chosen.model or weights / "dit.safetensors", chosen.base_dtype)
    print(train_sixth(base.model.diffusion_model, settings, chosen.folder))


COMMANDS = {"sixth-lora": Command("a sixth method", arguments, run)}
'''


@pytest.fixture
def sixth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The room, on a path of its own that training's rooms are also looked for on."""
    room = tmp_path / "rooms" / "sixth"
    room.mkdir(parents=True)
    for name, source in (("__init__", '"""A sixth method."""'), ("train", TRAIN), ("command", COMMAND)):
        (room / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(training, "__path__", [*training.__path__, str(room.parent)])
    before = signal.getsignal(signal.SIGTERM)
    yield import_module("longreel.training.sixth.train")
    signal.signal(signal.SIGTERM, before)  # a command changes it for its process
    for name in [name for name in sys.modules if name.startswith("longreel.training.sixth")]:
        del sys.modules[name]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(tiny_models.dit_weights(), tmp_path / "dit.safetensors", metadata=tiny_models.dit_metadata(causal=False))
    return tmp_path


def test_its_command_is_found_trains_and_goes_on(
    sixth: ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = set(command_line.COMMANDS)
    found = command_line.find_commands(training.__path__)
    assert set(found) - before == {"sixth-lora"}
    monkeypatch.setattr(command_line, "COMMANDS", found)
    monkeypatch.setattr(command_line, "WEIGHTS", weights)
    line = ["training", "sixth-lora", "--folder", str(weights / "run"), "--rate", "0.001", "--strength", "0.25"]
    monkeypatch.setattr(sys, "argv", line)
    command_line.main()
    assert "sixth: step 3" in capsys.readouterr().out
    with safe_open(weights / "run" / "sixth.safetensors", "pt") as file:
        assert {**file.metadata(), "sense": ""} == {
            "recipe": "sixth", "steps": "3", "rank": "2", "alpha": "2", "sense": "",
        }  # fmt: skip
        assert float(file.metadata()["sense"]) > 0
    monkeypatch.setattr(sys, "argv", [*line, "--strength", "0.5"])
    with pytest.raises(SystemExit, match=r"has strength 0\.25, not 0\.5"):
        command_line.main()
    monkeypatch.setattr(sys, "argv", [*line, "--steps", "4"])
    command_line.main()
    assert "continuing at step 3 of 4" in capsys.readouterr().out


def test_its_node_trains_and_core_loads_the_adapter(
    sixth: ModuleType, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("temp", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))

    class TrainSixth(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            inputs = [io.Model.Input("model"), *node_inputs(sixth.PAPER, "rank", "steps", "strength")]
            return io.Schema(node_id="LongreelTrainSixth", inputs=inputs, outputs=[io.String.Output()])

        @classmethod
        def execute(cls, model, **chosen) -> io.NodeOutput:
            settings = from_widgets(sixth.PAPER, chosen)
            run = training_run.run_folder("mine")
            dit = model.model.diffusion_model
            made = training_run.trained(
                cls, run, "core's Load LoRA", lambda say: sixth.train_sixth(dit, settings, run, say)
            )
            return io.NodeOutput(str(made.file), made.report, made.curve, ui=made.ui)

    assert [one.id for one in TrainSixth.define_schema().inputs] == ["model", "rank", "steps", "strength"]
    base = comfy.sd.load_diffusion_model(str(weights / "dit.safetensors"), model_options={"dtype": torch.float32})
    with torch.inference_mode():
        path, report, curve = TrainSixth.execute(base, rank=2, steps=2, strength=0.5).args
    assert Path(path) == tmp_path / "output" / "loras" / "mine.safetensors"
    assert report == f"{path}, also for core's Load LoRA."
    assert curve.shape[0] == 1
    patched, _ = comfy.sd.load_lora_for_models(base, None, load_file(path), 1.0, 0.0)
    assert len(patched.patches) == 11
