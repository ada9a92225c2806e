"""The shared loop: many processes learn what one learns, and a run that was broken off goes on to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from longreel.training.core import loop
from longreel.training.core.loop import Schedule, train
from longreel.training.core.processes import ProcessError, processes

from . import learn_together
from .learn_together import STEPS, STOP, learn


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "line.ckpt", weights_only=True)


def same(a: object, b: object, **near: float) -> None:
    torch.testing.assert_close(a, b, **{"rtol": 0, "atol": 0, **near})


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes on the CPU, as `accelerate` starts them."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    subprocess.run([*command, learn_together.__file__, str(folder)], check=True, env=environment, timeout=300)
    return folder


def test_two_processes_learn_what_one_learns_from_the_double_batch(together: Path, tmp_path: Path):
    two = checkpoint(together / "straight")
    average = learn(tmp_path / "double", double=True)
    near = {"atol": 1e-6, "rtol": 1e-5}
    same(two["model"], checkpoint(tmp_path / "double")["model"], **near)
    same(two["average"], average, **near)
    # One process that takes both processes' draws one after the other: the same random numbers, too.
    learn(tmp_path / "accumulated", 2)
    same(two["model"], checkpoint(tmp_path / "accumulated")["model"], **near)
    lines = [json.loads((at / "line.jsonl").read_text()) for at in (together / "straight", tmp_path / "accumulated")]
    assert lines[0]["noise"] == pytest.approx(lines[1]["noise"], abs=2e-5)
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], abs=2e-5)
    alone = learn(tmp_path / "alone")
    assert not torch.allclose(alone["0.weight"], average["0.weight"], atol=1e-4), "half the draws are another run"


def test_two_processes_go_on_to_the_bit_and_only_the_first_writes(together: Path):
    straight, interrupted = (checkpoint(together / name) for name in ("straight", "interrupted"))
    same(straight["model"], interrupted["model"])
    same(straight["optimizers"][0]["state"], interrupted["optimizers"][0]["state"])
    for index in range(2):
        same(torch.load(together / f"average-{index}.pt"), straight["average"])
    assert sorted(path.name for path in (together / "straight").iterdir()) == ["line.ckpt", "line.jsonl"]


def test_an_interrupted_process_goes_on_to_the_bit(tmp_path: Path):
    average = learn(tmp_path / "straight", 2)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "other", 2, stop=True)
    state = checkpoint(tmp_path / "other")
    assert state["step"] == STOP // 2
    same(learn(tmp_path / "other", 2), average)


def test_half_an_update_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    average = learn(tmp_path / "straight")
    step, calls = torch.optim.AdamW.step, []

    def broken_off(self: torch.optim.AdamW, *given: object) -> object:
        calls.append(1)
        result = step(self, *given)
        if len(calls) == STOP:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", broken_off)
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path / "broken")
    assert checkpoint(tmp_path / "broken")["step"] < STOP
    same(learn(tmp_path / "broken"), average)


def test_what_is_done_before_an_update_changes_nothing(tmp_path: Path):
    seen, model = [], torch.nn.Linear(2, 2, bias=False)

    def look(step: int) -> None:
        seen.append(step)
        torch.manual_seed(step)

    def loss_at(draw: int) -> tuple[torch.Tensor, dict[str, float]]:
        return model(torch.rand(3, 2)).square().mean(), {}

    quick = Schedule(STEPS, 1e-2, bf16=True)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    looked = train("line", model, loss_at, quick, tmp_path / "a", before=look, say=lambda _: None)
    model.load_state_dict(start)
    same(train("line", model, loss_at, quick, tmp_path / "b", say=lambda _: None), looked)
    assert seen == list(range(STEPS))
    model.load_state_dict(start)
    exact = train("line", model, loss_at, Schedule(STEPS, 1e-2), tmp_path / "c", say=lambda _: None)
    assert not torch.equal(exact["weight"], looked["weight"]), "bf16 is another arithmetic"


def test_without_accelerate_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ProcessError, match="pip install accelerate"):
        learn(tmp_path)
    monkeypatch.undo()
    assert processes().num_processes == 1
    assert loop.processes is processes
