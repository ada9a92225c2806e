"""The whole recipe within a time budget, at a hundredth of its scale: every stage learns, and the clock is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from longreel.miniature import batch
from longreel.training.core import loop
from longreel.training.miniature import budget, take_films, vae
from longreel.training.miniature.dit import DitRecipe, Miniature
from longreel.training.miniature.export import FILES, read_dit, read_sizes
from longreel.training.miniature.probe import ProbeRecipe
from longreel.training.miniature.vae import VaeRecipe

STAGES = ("probe", "eye", "vae", "reader", "dit", "sight", "causal", "decoder")
SECONDS = 20
DIT = DitRecipe(dim=64, ffn_dim=64, layers=1, heads=1, freq_dim=32)


@pytest.fixture
def quick_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world that is not painted: dark grey backdrops, characters as squares.

    Middle grey is 0 to a VAE, and the gradient of its normalised zeros is infinite.
    """

    class Painted:
        def __init__(self, make):
            self.__wrapped__ = make

    square = torch.zeros(4, 128, 128)
    square[:, 32:96, 32:96] = 1
    monkeypatch.setattr(batch, "sprite", Painted(lambda *_: square))
    monkeypatch.setattr(
        batch, "backdrop", Painted(lambda _: (torch.full((4, 256, 640), 0.3), torch.zeros(4, 256, 640)))
    )


@pytest.fixture
def told_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look costs a tenth of a second, whatever the machine does meanwhile."""
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 10)
    for module in (budget, loop, take_films, vae):
        monkeypatch.setattr(module, "time", clock)


def small() -> budget.BudgetRecipe:
    recipe = budget.small(budget.BudgetRecipe(SECONDS / 60, dit=DIT))
    return replace(
        recipe,
        probe=ProbeRecipe(steps=10**9, clips=8, batch=1, frames=4),
        vae=VaeRecipe(width=4, image_batch=4, clip_batch=1, frames=5, rate=1e-4, muon_rate=1e-4, likeness=0.1),
        takes=replace(recipe.takes, takes=2, openings=4, spliced=2, clip=5),
    )


def test_every_stage_learns_and_the_budget_is_kept(quick_world: None, told_time: None, tmp_path: Path):
    failed = budget.train_within(small(), tmp_path / "run", tmp_path / "weights", tmp_path / "curves.png")
    assert not failed
    spent = 0.0
    for name in STAGES:
        lines = [json.loads(line) for line in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] >= 1, name
        spent += torch.load(tmp_path / "run" / f"{name}.ckpt", weights_only=True)["seconds"]
    assert spent < 1.1 * SECONDS, "a stage ends with its share, at the latest a step later"
    for name in ("probe", "eye", "vae", "reader", "dit", "text"):
        assert (tmp_path / "weights" / FILES[name]).exists()
    sizes = read_sizes(tmp_path / "weights")
    assert (sizes.dim, sizes.ffn_dim, sizes.layers, sizes.heads, sizes.freq_dim) == (64, 64, 1, 1, 32)
    read_dit(Miniature(sizes), tmp_path / "weights")
    logs = {name: (tmp_path / "run" / f"{name}.jsonl").read_text() for name in STAGES}
    assert not budget.train_within(small(), tmp_path / "run", tmp_path / "weights", tmp_path / "curves.png")
    kept = {name: (tmp_path / "run" / f"{name}.jsonl").read_text() for name in STAGES}
    assert kept == logs, "finished stages are kept"
