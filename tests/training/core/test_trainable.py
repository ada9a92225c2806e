"""What is trained: groups with rates of their own, whole models and LoRAs, and files and checkpoints of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from longreel.training.core.loop import Schedule, train
from longreel.training.core.lora import Adapter, LoraError, adapt
from longreel.training.core.optimizers import Optimizers
from longreel.training.core.run import remember_settings, run_training
from longreel.training.core.settings import LoraSettings, TrainSettings, setting
from longreel.training.core.trainable import FullModel, ParamGroup, Trainable, write_tensors
from longreel.training.miniature.param_groups import split_matrices
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


class Joint(Trainable):
    """A LoRA and a matrix beside it, as a method that adds a modality has them."""

    def __init__(self, lora: Adapter):
        super().__init__()
        self.lora, self.extra = lora, nn.Linear(4, 2, bias=False)

    def groups(self) -> list[ParamGroup]:
        return [*self.lora.groups(), ParamGroup(tuple(self.extra.parameters()), lr_scale=3.0, weight_decay=0.0)]

    def export(self, path: Path, metadata: dict[str, str]) -> Path:
        return write_tensors(path, {"extra": self.extra.weight.detach()}, metadata)


def rates(optimizers: Optimizers) -> list[tuple[str, float, float, int]]:
    return [
        (type(one).__name__, group["lr"], group["weight_decay"], len(group["params"]))
        for one in optimizers.all
        for group in one.param_groups
    ]


def test_groups_learn_at_their_own_rates_under_both_optimizers():
    _, adapter = adapt(net(), ["0", "2"], 2)
    joint = Joint(adapter)
    options = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.999)}
    optimizers = Optimizers(joint, joint.groups(), muon_lr=0.0, **options)
    assert rates(optimizers) == [("AdamW", 1e-4, 0.1, 4), ("AdamW", pytest.approx(3e-4), 0.0, 1)]
    assert optimizers.all[0].param_groups[0]["betas"] == (0.9, 0.999)
    optimizers.step(0.5)
    assert rates(optimizers) == [("AdamW", 5e-5, 0.1, 4), ("AdamW", pytest.approx(1.5e-4), 0.0, 1)]
    with_muon = Optimizers(joint, joint.groups(), muon_lr=2e-3, **options)
    assert rates(with_muon) == [("AdamW", pytest.approx(3e-4), 0.0, 1), ("BatchedMuon", 2e-3, 0.1, 4)]
    with pytest.raises(ValueError, match="1 trained parameters are in no group"):
        Optimizers(joint, joint.lora.groups(), muon_lr=0.0, **options)


def test_a_checkpoint_does_not_depend_on_how_parameters_are_grouped():
    model = net()
    options = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.98), "muon_lr": 1e-2}
    one = Optimizers(model, [ParamGroup(tuple(model.parameters()), muon=True)], **options)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    two = Optimizers(model, [ParamGroup(tuple(vectors[::-1])), ParamGroup(tuple(matrices), muon=True)], **options)
    for a, b in zip(one.all, two.all, strict=True):
        shapes = [[p.shape for group in each.param_groups for p in group["params"]] for each in (a, b)]
        assert shapes[0] == shapes[1]


def test_edges_of_the_miniature_keep_adamw():
    model = nn.ModuleDict({"head": nn.ModuleDict({"head": nn.Linear(2, 2)}), "inner": nn.Linear(2, 2)})
    inner, edges = split_matrices(model)
    assert (inner.muon, edges.muon) == (True, False)
    assert {id(p) for p in inner.params} == {id(p) for p in model["inner"].parameters()}
    assert {id(p) for p in edges.params} == {id(p) for p in model["head"].parameters()}


def test_a_whole_model_is_trained_exported_and_continued(tmp_path: Path):
    settings = TrainSettings(steps=6, lr=1e-2, warmup=1, save_every=4, sample_every=0)

    def learn(folder: Path, stop: int = 99) -> tuple[Path, nn.Module]:
        model = net()

        def loss_at(draw: int) -> tuple[torch.Tensor, dict[str, float]]:
            if draw == stop:
                raise KeyboardInterrupt
            return (model(torch.rand(8, 4)) - 1).square().mean(), {}

        full = FullModel(model, "diffusion_model.")
        told = {"base": "net"}
        return run_training("all", model, full, loss_at, settings, folder, told, sample=None, say=lambda _: None), model

    path, model = learn(tmp_path / "straight")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"base": "net", "steps": "6"}
    state = load_file(path)
    assert set(state) == {f"diffusion_model.{key}" for key in model.state_dict()}
    assert torch.equal(state["diffusion_model.2.weight"], model.state_dict()["2.weight"]), "the averaged weights"
    assert not torch.equal(state["diffusion_model.2.weight"], net().state_dict()["2.weight"])
    assert (tmp_path / "straight" / "step-000004.safetensors").exists()
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed", 3)
    continued, _ = learn(tmp_path / "killed")
    assert all(torch.equal(value, state[key]) for key, value in load_file(continued).items())


def test_a_joint_run_moves_the_faster_group_further(tmp_path: Path):
    tree, adapter = adapt(net(), ["0", "2"], 2)
    joint = Joint(adapter)
    before = {key: value.clone() for key, value in joint.state_dict().items()}

    def loss_at(draw: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.rand(8, 4)
        return (tree(x) + joint.extra(x) - 3).square().mean(), {}

    after = train("joint", joint, loss_at, Schedule(1, 1e-3, warmup=0, ema_decay=0.0), tmp_path, groups=joint.groups(),
                  say=lambda _: None)  # fmt: skip
    # AdamW's first step is the learning rate, whatever the gradient.
    moved = {key: float((joint.state_dict()[key] - before[key]).abs().max()) for key in after}
    assert moved["extra.weight"] == pytest.approx(3e-3, rel=1e-3)
    assert moved["lora.pairs.0.up"] == pytest.approx(1e-3, rel=1e-3)


@dataclass(frozen=True)
class Renamed(LoraSettings):
    """Settings of which one had another name in older runs."""

    strength: float = setting(1.0, aliases=("power",))


def test_a_run_of_an_older_version_goes_on_under_its_old_names(tmp_path: Path):
    old = '{"rank": 4, "alpha": 4.0, "rate": 0.001, "clip": 0.05, "power": 2.0, "scenes": 3, "at_once": 2, "batch": 8}'
    (tmp_path / "recipe.json").write_text(old)
    same = Renamed(rank=4, lr=1e-3, max_grad_norm=0.05, strength=2.0, batch=8, micro_batch=2, steps=77)
    remember_settings(same, tmp_path, scenes=3)
    assert (tmp_path / "recipe.json").read_text() == old
    for changed, sentence in (({"lr": 1e-4}, "has lr 0.001, not 0.0001"), ({"strength": 1.0}, "has strength 2.0")):
        with pytest.raises(LoraError, match=sentence):
            remember_settings(Renamed(**{**vars(same), **changed}), tmp_path, scenes=3)
    with pytest.raises(LoraError, match="has scenes 3, not 4"):
        remember_settings(same, tmp_path, scenes=4)
    with pytest.raises(LoraError, match=r"has weight_decay 0\.01, not 0\.5"):
        remember_settings(Renamed(**{**vars(same), "weight_decay": 0.5}), tmp_path, scenes=3)
