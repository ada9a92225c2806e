"""The loop every recipe runs on: AdamW or Muon, warm-up and cosine, moving average, checkpoints, a log, resume.

A step's randomness comes from the seed, the step's number and the turn alone, so that a run killed at any moment and
started again continues as if nothing had happened, to the bit on one CPU and thread count. Several processes (see
``team``) share a step's turns and stay alike: the same start, the same averaged gradients.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .stopping import Stopping
from .team import Team

Metrics = dict[str, float]
# Keeps the random numbers of a step's turns apart from those of all other steps.
_FAR = 7_919_000_003


@dataclass(frozen=True)
class Moment:
    """Where a run is: ``step`` of ``steps`` are done, ``loss`` was the last one's (None: none yet in this process)."""

    name: str
    step: int
    steps: int
    loss: float | None
    log: Path


Watcher = Callable[[Moment], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside, every run calls ``watcher`` before each step and after the last one.

    A watcher that raises KeyboardInterrupt stops the run as a key does: it saves first.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run. ``rate`` is AdamW's; matrices under Muon use ``muon_rate`` (0: AdamW for
    all).
    """

    steps: int
    rate: float
    warmup: int = 100
    final_share: float = 0.05
    muon_rate: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.999

    def share(self, step: int) -> float:
        """The share of the full rate at ``step``: linear warm-up, then a cosine down to ``final_share``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Turn:
    """Number ``number``, from 0, of the ``of`` passes that make up a step: one for each process and accumulation.

    A recipe that chooses its data by the step's number chooses by the turn too; random numbers differ by themselves.
    """

    number: int = 0
    of: int = 1

    @property
    def first(self) -> bool:
        """Whether this pass is the one that writes files and makes samples, if any."""
        return self.number == 0


_turn: ContextVar[Turn] = ContextVar("turn", default=Turn())  # noqa: B039 (frozen)


def turn() -> Turn:
    """The pass that ``loss_at`` is called for."""
    return _turn.get()


class _Optimizers:
    """AdamW for vectors, embeddings and heads; Muon, when asked for, for the matrices and kernels inside.

    torch's Muon takes matrices only; a convolution's kernel is handed to it as the matrix [out, in * taps] on the
    same storage.
    """

    def __init__(self, model: nn.Module, schedule: Schedule):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        inner = [p for name, p in trained if schedule.muon_rate and p.ndim > 1 and not _is_edge(name)]
        chosen = {id(p) for p in inner}
        self.kernels = [(p, nn.Parameter(p.detach().flatten(1))) for p in inner]
        others = [p for _, p in trained if id(p) not in chosen]
        decay = schedule.weight_decay
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=decay)
        ]
        if inner:
            matrices = [matrix for _, matrix in self.kernels]
            self.all.append(
                torch.optim.Muon(matrices, lr=schedule.muon_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.all]

    def step(self, share: float) -> None:
        """One update at ``share`` of the full learning rates; clears the gradients."""
        for kernel, matrix in self.kernels:
            matrix.grad = kernel.grad.flatten(1) if kernel.grad is not None else None
        for optimizer, rates in zip(self.all, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for kernel, _ in self.kernels:
            kernel.grad = None


def _is_edge(name: str) -> bool:
    """Input, output and embedding layers keep AdamW, as Muon's authors advise; modulation is a bias in matrix form."""
    edges = ("patch_embedding", "head.head", "words", "places", "modulation", "encoder.conv1", "decoder.head", "gamma")
    return any(edge in name for edge in edges) or name.startswith(("conv1", "conv2"))


def save_whole(path: Path, value: object) -> None:
    """``torch.save`` that leaves the old file or the whole new one, never a part."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def train(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], tuple[torch.Tensor, Metrics]],
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    save_every: float = 120.0,
    accumulate: int = 1,
    bf16: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, torch.Tensor]:
    """Train ``model`` in place and return the moving average of its weights.

    ``loss_at(step)`` gives the loss and figures to log; it is called ``accumulate`` times for each update (see
    ``Turn``), under autocast if ``bf16``. The folder receives ``<name>.ckpt`` (replaced whole, every ``save_every``
    seconds and at the end) and ``<name>.jsonl``. A checkpoint found there is continued. Only the main process writes.
    KeyboardInterrupt saves before it leaves.

    Raises:
        TrainingError: accelerate is not installed.
    """
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    device = next(model.parameters()).device
    team = Team(device)
    if team.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    optimizers = _Optimizers(model, schedule)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    step = 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None
    if team.count > 1:
        # The others may be on machines of their own, without the file, or have begun with other random weights.
        state = team.from_main(state if state or not team.is_main else _fresh(model, optimizers))
    if state:
        step = state["step"]
        model.load_state_dict(state["model"])
        average = {key: value.to(device) for key, value in state["average"].items()}
        for optimizer, saved in zip(optimizers.all, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    if step and team.is_main:
        say(f"{name}: continuing at step {step} of {schedule.steps}")

    def save() -> None:
        if not team.is_main:
            return
        save_whole(
            checkpoint,
            {
                "step": step,
                "model": model.state_dict(),
                "average": average,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers.all],
            },
        )

    def learn() -> tuple[float, Metrics]:
        """Gradients of one update; the mean loss and figures of this process's turns."""
        losses, figures = [], list[Metrics]()
        for part in range(accumulate):
            mine = Turn(part * team.count + team.number, accumulate * team.count)
            torch.manual_seed(seed * 1_000_003 + step + mine.number * _FAR)
            token = _turn.set(mine)
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss, metrics = loss_at(step)
                (loss / accumulate).backward()
            finally:
                _turn.reset(token)
            losses.append(loss.item())
            figures.append(metrics)
        team.average([p.grad for p in model.parameters() if p.grad is not None])
        means = {key: sum(each[key] for each in figures) / accumulate for key in figures[0]}
        return sum(losses) / accumulate, means

    saved_at = logged_at = time.monotonic()
    figures: dict[str, list[float]] = {}
    watcher, newest = _watcher.get(), None

    def watch() -> None:
        if watcher:
            watcher(Moment(name, step, schedule.steps, newest, log))

    with Stopping() as stopping:
        try:
            while step < schedule.steps:
                watch()
                newest, metrics = learn()
                norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], schedule.clip)
                with stopping.whole():
                    optimizers.step(schedule.share(step))
                    step += 1
                    _follow(average, model, min(schedule.average, (1 + step) / (10 + step)))
                for key, figure in {"loss": newest, "norm": norm.item(), **metrics}.items():
                    figures.setdefault(key, []).append(figure)
                if len(figures["loss"]) == 50 or step == schedule.steps:
                    now = time.monotonic()
                    line = {"step": step, "seconds_per_step": round((now - logged_at) / len(figures["loss"]), 3)}
                    means = team.means([sum(values) / len(values) for values in figures.values()])
                    line |= {key: round(mean, 5) for key, mean in zip(figures, means, strict=True)}
                    if team.is_main:
                        with log.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
                        say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in line.items()))
                    figures, logged_at = {}, now
                if time.monotonic() - saved_at > save_every:
                    with stopping.whole():
                        save()
                    saved_at = time.monotonic()
            watch()
        finally:
            with stopping.whole():
                save()
    return average


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the model; what is no float is copied."""
    for key, value in model.state_dict().items():
        average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)


def _fresh(model: nn.Module, optimizers: _Optimizers) -> dict[str, Any]:
    """The state of a run that has not begun."""
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    states = [optimizer.state_dict() for optimizer in optimizers.all]
    return {"step": 0, "model": weights, "average": {k: v.clone() for k, v in weights.items()}, "optimizers": states}
