"""A recipe inside a node: gradients in inference mode, the bar, and ComfyUI's interrupt as save and stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch
from longreel.training.core import loop
from longreel.training.core.in_node import training_in_node


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Any]]:
    """(done, total, picture) of every update that ComfyUI's bar was given."""
    seen: list[tuple[int, int, Any]] = []

    def note(done: int, total: int, preview: Any, **_: Any) -> None:
        seen.append((done, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", note)
    return seen


def run(folder: Path, steps: int, at: Any = lambda step: None) -> dict[str, torch.Tensor]:
    """A tiny recipe, as a node would call it; `at(step)` is called in each step."""
    with torch.inference_mode(), training_in_node() as say:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss_at(step: int) -> tuple[torch.Tensor, loop.Metrics]:
            at(step)
            x = torch.randn(8, 4)
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

        return loop.train("toy", model, loss_at, loop.Schedule(steps, 1e-2, warmup=1), folder, say=say)


def test_trains_in_inference_mode_and_leaves_nothing_behind(tmp_path: Path, bar: list[tuple[int, int, Any]]):
    state = torch.random.get_rng_state()
    switches = []
    run(tmp_path, 20, lambda step: switches.append(comfy.model_management.in_training))
    assert all(switches)
    assert not comfy.model_management.in_training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [done for done, *_ in bar if done] == sorted(done for done, *_ in bar if done)
    assert bar[-1][:2] == (20, 20)
    pictures = [preview for *_, preview in bar if preview is not None]
    assert pictures, "the loss curve is previewed"
    assert pictures[0][1].size[0] > 100


def test_an_interrupt_saves_and_the_next_run_goes_on_to_the_bit(tmp_path: Path):
    straight = run(tmp_path / "straight", 12)

    def interrupt(step: int) -> None:
        if step == 5:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tmp_path / "stopped", 12, interrupt)
    assert not comfy.model_management.in_training
    assert torch.load(tmp_path / "stopped" / "toy.ckpt")["step"] == 6, "the step that was running is finished"
    resumed = []
    again = run(tmp_path / "stopped", 12, resumed.append)
    assert resumed == list(range(6, 12))
    assert all(torch.equal(straight[key], again[key]) for key in straight)


def test_recipes_see_the_interrupt_as_a_key():
    seen = []

    def recipe() -> None:
        with training_in_node() as say:
            comfy.model_management.interrupt_current_processing()
            try:
                say("a line")
            except KeyboardInterrupt:
                seen.append("saved")
                raise

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        recipe()
    assert seen == ["saved"]


def test_a_key_itself_stays_a_key():
    with pytest.raises(KeyboardInterrupt), training_in_node():
        raise KeyboardInterrupt
    assert not comfy.model_management.in_training
