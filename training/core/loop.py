"""The loop every recipe runs on: AdamW or Muon, warm-up and cosine, moving average, checkpoints, a log, resume.

An update learns from `accumulate` draws of every process, on one CPU, one GPU or many machines (see processes.py).
Draws are numbered through, and a draw's randomness comes from the seed and its number alone: a run killed at any moment
and started again continues as if nothing had happened, to the bit on one machine and thread count, and two processes
learn what one learns that accumulates twice as much.
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

import torch
from torch import nn

from .processes import average_gradients, from_all, from_main, processes

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainState:
    """Where a run is: `step` of `steps` are done, `loss` was the last one's (None: none yet in this process)."""

    name: str
    step: int
    steps: int
    loss: float | None
    log: Path


Callback = Callable[[TrainState], None]
_callback: ContextVar[Callback | None] = ContextVar("watcher", default=None)


@contextmanager
def callbacks(callback: Callback) -> Iterator[None]:
    """Inside, every run calls `watcher` before each step and after the last one.

    A watcher that raises KeyboardInterrupt stops the run as a key does: it saves first.
    """
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run. `rate` is AdamW's; matrices under Muon use `muon_rate` (0: AdamW for all).
    accumulate: draws of each process in an update. bf16: the loss is computed under autocast.
    """

    steps: int
    rate: float
    warmup: int = 100
    final_share: float = 0.05
    muon_rate: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.999
    accumulate: int = 1
    bf16: bool = False

    def share(self, step: int) -> float:
        """The share of the full rate at step: linear warm-up, then a cosine down to `final_share`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))


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
        self.all: list[torch.optim.Optimizer] = []
        if others:
            self.all.append(torch.optim.AdamW(others, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=decay))
        if inner:
            matrices = [matrix for _, matrix in self.kernels]
            self.all.append(
                torch.optim.Muon(matrices, lr=schedule.muon_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.all]

    def step(self, share: float) -> None:
        """One update at `share` of the full learning rates; clears the gradients."""
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
    """`torch.save` that leaves the old file or the whole new one, never a part."""
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
    before: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, torch.Tensor]:
    """Train `model` in place and return the moving average of its weights.

    `loss_at(draw)` gives the loss and figures to log; with one process and nothing accumulated a draw's number is the
    step's. `before(step)` is called before every update, in the first process only; its random numbers do not change
    what is learned. The first process writes into the folder: `<name>.ckpt` (replaced whole, every `save_every` seconds
    and at the end) and `<name>.jsonl`. A checkpoint found there is continued. KeyboardInterrupt saves before it leaves.

    Raises ProcessError: accelerate is not installed.
    """
    group = processes()
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    device = next(model.parameters()).device
    optimizers = _Optimizers(model, schedule)
    step, state = 0, None
    if group.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=device)
    # The others may have no such folder, and may have begun with other weights.
    state = from_main(state)
    if state is not None or group.num_processes > 1:
        model.load_state_dict(from_main(model.state_dict()) if state is None else state["model"])
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    if state is not None:
        step = state["step"]
        average = {key: value.to(device) for key, value in state["average"].items()}
        for optimizer, saved in zip(optimizers.all, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if group.is_main_process:
            say(f"{name}: continuing at step {step} of {schedule.steps}")

    def save() -> None:
        if group.is_main_process:
            save_whole(
                checkpoint,
                {
                    "step": step,
                    "model": model.state_dict(),
                    "average": average,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers.all],
                },
            )

    trained = [p for p in model.parameters() if p.requires_grad]
    saved_at = logged_at = time.monotonic()
    figures: dict[str, list[float]] = {}
    updating = False
    callback, newest = _callback.get(), None

    def watch() -> None:
        if callback:
            callback(TrainState(name, step, schedule.steps, newest, log))

    if state is None:
        save()
    try:
        while step < schedule.steps:
            watch()
            if before and group.is_main_process:
                before(step)
            for turn in range(schedule.accumulate):
                draw = (step * schedule.accumulate + turn) * group.num_processes + group.process_index
                torch.manual_seed(seed * 1_000_003 + draw)
                with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bf16):
                    loss, metrics = loss_at(draw)
                loss.backward()
                newest = loss.item()
                for key, figure in {"loss": newest, **metrics}.items():
                    figures.setdefault(key, []).append(figure)
            average_gradients(trained, schedule.accumulate)
            norm = nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], schedule.clip)
            figures.setdefault("norm", []).append(norm.item())
            updating = True
            optimizers.step(schedule.share(step))
            step += 1
            with torch.no_grad():
                decay = min(schedule.average, (1 + step) / (10 + step))
                for key, value in model.state_dict().items():
                    average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)
            updating = False
            if len(figures["norm"]) == 50 or step == schedule.steps:
                seconds = (time.monotonic() - logged_at) / len(figures["norm"])
                line = {"step": step, "seconds_per_step": round(seconds, 3), **_means(from_all(figures))}
                if group.is_main_process:
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in line.items()))
                figures, logged_at = {}, time.monotonic()
            if time.monotonic() - saved_at > save_every:
                save()
                saved_at = time.monotonic()
        watch()
    finally:
        # An update that was broken off is half a step: the last checkpoint is whole.
        if not updating:
            save()
    group.wait_for_everyone()
    return average


def _means(figures: list[dict[str, list[float]]]) -> Metrics:
    """The mean of each figure over all processes, in the order of the first."""
    joined: dict[str, list[float]] = {}
    for one in figures:
        for key, values in one.items():
            joined.setdefault(key, []).extend(values)
    return {key: round(sum(values) / len(values), 5) for key, values in joined.items()}
