"""Several processes learn what one would from all their data together, and go on where they were stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from longreel.training import loop, team

STEPS = 12

SCRIPT = """
import sys
from pathlib import Path
import torch
from longreel.training import loop

folder, stop = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(int(__import__("os").environ.get("RANK", 0)))  # other weights in each: the main's must win
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
torch.manual_seed(100)
x = torch.randn(400, 4)

def loss_at(step):
    if step == stop:
        raise KeyboardInterrupt
    mine = loop.turn()
    assert torch.initial_seed() % 2 == (step + mine.number) % 2
    part = x[(step * mine.of + mine.number) * 8:][:8]
    return (model(part) - part.sum(1, keepdim=True)).square().mean(), {"first": part[0, 0].item()}

try:
    average = loop.train("toy", model, loss_at, loop.Schedule(12, 1e-2, warmup=2), folder, say=lambda _: None)
except KeyboardInterrupt:
    sys.exit(3)
torch.save(average, folder / f"average-{loop.Team(torch.device('cpu')).number}.pt")
"""


def one_alone(folder: Path, accumulate: int = 1, batch: int = 16) -> dict[str, torch.Tensor]:
    """The same run in this process, on the batches of both."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    torch.manual_seed(100)
    x = torch.randn(400, 4)

    def loss_at(step: int) -> tuple[torch.Tensor, loop.Metrics]:
        mine = loop.turn()
        part = x[(step * mine.of + mine.number) * batch :][:batch]
        return (model(part) - part.sum(1, keepdim=True)).square().mean(), {}

    return loop.train(
        "toy", model, loss_at, loop.Schedule(STEPS, 1e-2, warmup=2), folder, accumulate=accumulate, say=lambda _: None
    )


def two_together(folder: Path, stop: int = -1) -> list[int]:
    """Run the script in two processes over gloo; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(stop)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    return [process.wait(300) for process in running]


def test_two_processes_learn_as_one_with_twice_the_batch_and_resume(tmp_path: Path):
    alone = one_alone(tmp_path / "alone")
    together = tmp_path / "together"
    assert two_together(together, stop=5) == [3, 3]
    assert torch.load(together / "toy.ckpt")["step"] == 5
    assert two_together(together) == [0, 0]
    first, second = (torch.load(together / f"average-{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first), "the processes stay alike"
    assert all(torch.allclose(first[key], alone[key], atol=1e-6) for key in alone)
    assert len((together / "toy.jsonl").read_text().splitlines()) == 1, "only the main process writes"


def test_accumulated_passes_learn_as_one_large_batch(tmp_path: Path):
    whole, parts = one_alone(tmp_path / "whole"), one_alone(tmp_path / "parts", accumulate=2, batch=8)
    assert all(torch.allclose(whole[key], parts[key], atol=1e-6) for key in whole)
    assert loop.turn() == loop.Turn(0, 1)


def test_without_accelerate_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(team.TrainingError, match="pip install accelerate"):
        one_alone(tmp_path)


def test_mixed_precision_is_only_where_it_is_asked_for(tmp_path: Path):
    seen = []
    model = torch.nn.Linear(4, 1)

    def loss_at(step: int) -> tuple[torch.Tensor, loop.Metrics]:
        y = model(torch.randn(2, 4))
        seen.append(y.dtype)
        return y.float().square().mean(), {}

    for bf16 in (False, True):
        loop.train("toy", model, loss_at, loop.Schedule(1, 1e-2), tmp_path / str(bf16), bf16=bf16, say=lambda _: None)
    assert seen == [torch.float32, torch.bfloat16]
    assert model.weight.dtype == torch.float32
