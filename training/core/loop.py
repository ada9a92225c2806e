"""The loop every recipe runs on: AdamW or Muon, warm-up and cosine, moving average, checkpoints, a log, resume.

An update learns from `accumulate` draws of every process, on one CPU, one GPU or many machines (see processes.py).
Draws are numbered through, and a draw's randomness comes from the seed and its number alone: a run killed at any moment
and started again continues as if nothing had happened, to the bit on one machine and thread count, and two processes
learn what one learns that accumulates twice as much.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...film.reel.atomic import whole_file
from .optimizers import Optimizers
from .processes import average_gradients, from_all, from_main, processes
from .trainable import ParamGroup

Metrics = Mapping[str, float | torch.Tensor]
"""Figures of a step; tensors stay on their device until they are logged, so that a GPU is never waited for."""


class DivergedError(RuntimeError):
    """The loss is no number any more; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class TrainState:
    """Where a run is: `step` of `steps` are done, `loss` was the last one's (None: none yet in this process)."""

    name: str
    step: int
    steps: int
    loss: float | None
    log: Path


class Stateful(Protocol):
    """What a run carries from step to step beside its weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Callback = Callable[[TrainState], None]
_callback: ContextVar[Callback | None] = ContextVar("callback", default=None)


@contextmanager
def callbacks(callback: Callback) -> Iterator[None]:
    """Inside, every run calls `callback` before each step and after the last one.

    A callback that raises KeyboardInterrupt stops the run as a key does: it saves first.
    """
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rates of a run. lr: AdamW's; matrices under Muon learn at muon_lr (0: AdamW for all).
    max_grad_norm: longer gradients are cut to it. ema_decay: of the moving average of the weights. betas: AdamW's.
    accumulate: draws of each process in an update. bf16: the loss is computed under autocast. seconds: a time budget,
    earlier processes of the same run included; the run ends with it, and its learning rate falls by the part of it that
    is spent, so that every machine ends with the lowest; steps is then the most.
    """

    steps: int
    lr: float
    warmup: int = 100
    final_lr_ratio: float = 0.05
    muon_lr: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    betas: tuple[float, float] = (0.9, 0.98)
    accumulate: int = 1
    bf16: bool = False
    seconds: float = 0.0

    def lr_scale(self, step: int, spent: float = 0.0) -> float:
        """The part of the full rate at `step`, after `spent` seconds: linear warm-up, then a cosine down to
        `final_lr_ratio`.
        """
        progress = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        if self.seconds:
            progress = min(spent / self.seconds, 1.0)
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def save_whole(path: Path, value: object) -> None:
    """`torch.save` that leaves the old file or the whole new one, never a part."""
    with whole_file(path) as part:
        torch.save(value, part)


def train(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], tuple[torch.Tensor, Metrics]],
    schedule: Schedule,
    folder: Path,
    *,
    groups: Sequence[ParamGroup] | None = None,
    further: Stateful | None = None,
    seed: int = 0,
    save_every: float = 120.0,
    before: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, torch.Tensor]:
    """Train `model` in place and return the moving average of its weights.

    `loss_at(draw)` gives the loss and figures to log; with one process and nothing accumulated a draw's number is the
    step's. groups: as of a Trainable; None: all of the model, its matrices under Muon where the schedule has it.
    `before(step)` is called before every update, in the first process only; its random numbers do not change what is
    learned. `further` is kept in the checkpoint, the first process's: others begin theirs anew when a run is continued.
    The first process writes into the folder: `<name>.ckpt` (replaced whole, every `save_every` seconds and at the end)
    and `<name>.jsonl`. A checkpoint found there is continued. KeyboardInterrupt saves before it leaves.

    Raises ProcessError: accelerate is not installed; DivergedError: the loss is not finite.
    """
    group = processes()
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    device = next(model.parameters()).device
    if groups is None:
        groups = [ParamGroup(tuple(model.parameters()), muon=True)]
    optimizers = Optimizers(
        model, groups, lr=schedule.lr, muon_lr=schedule.muon_lr, weight_decay=schedule.weight_decay,
        betas=schedule.betas,
    )  # fmt: skip
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
    before_now = 0.0
    if state is not None:
        step, before_now = state["step"], state.get("seconds", 0.0)
        average = {key: value.to(device) for key, value in state["average"].items()}
        optimizers.load_state_dicts(state["optimizers"])
        if further is not None and group.is_main_process:
            further.load_state_dict(state["further"])
        if group.is_main_process:
            say(f"{name}: continuing at step {step} of {schedule.steps}")

    started = time.monotonic()

    def spent() -> float:
        return before_now + time.monotonic() - started

    def save() -> None:
        if group.is_main_process:
            save_whole(
                checkpoint,
                {
                    "step": step,
                    "seconds": spent(),
                    "model": model.state_dict(),
                    "average": average,
                    "optimizers": optimizers.state_dicts(),
                    **({} if further is None else {"further": further.state_dict()}),
                },
            )

    trained = [p for p in model.parameters() if p.requires_grad]
    floating = [(key, value) for key, value in model.state_dict().items() if value.is_floating_point()]
    others = [(key, value) for key, value in model.state_dict().items() if not value.is_floating_point()]
    saved_at = logged_at = time.monotonic()
    figures: dict[str, list[float | torch.Tensor]] = {}
    updating = False
    callback = _callback.get()
    newest: torch.Tensor | None = None

    def watch() -> None:
        if callback:
            callback(TrainState(name, step, schedule.steps, None if newest is None else newest.item(), log))

    def over() -> bool:
        return step >= schedule.steps or bool(schedule.seconds and spent() >= schedule.seconds)

    if state is None:
        save()
    try:
        ended = over()
        while not ended:
            watch()
            if before and group.is_main_process:
                before(step)
            for turn in range(schedule.accumulate):
                draw = (step * schedule.accumulate + turn) * group.num_processes + group.process_index
                torch.manual_seed(seed * 1_000_003 + draw)
                with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bf16):
                    loss, metrics = loss_at(draw)
                loss.backward()
                newest = loss.detach()
                for key, figure in {"loss": newest, **metrics}.items():
                    figures.setdefault(key, []).append(figure)
            average_gradients(trained, schedule.accumulate)
            norm = nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], schedule.max_grad_norm)
            figures.setdefault("norm", []).append(norm.detach())
            updating = True
            optimizers.step(schedule.lr_scale(step, spent()))
            step += 1
            with torch.no_grad():
                decay = min(schedule.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_([average[key] for key, _ in floating], [value for _, value in floating], 1 - decay)
                for key, value in others:
                    average[key].copy_(value)
            updating = False
            # asked once a step: a budget that ran out a moment later would end the run without its last line
            ended = over()
            if len(figures["norm"]) == 50 or ended:
                numbers = {key: [float(figure) for figure in values] for key, values in figures.items()}
                seconds = (time.monotonic() - logged_at) / len(figures["norm"])
                line = {"step": step, "seconds_per_step": round(seconds, 3), **_means(from_all(numbers))}
                if not math.isfinite(line["loss"]):
                    raise DivergedError(f"The loss of '{name}' is {line['loss']} at step {step}: lower the rate.")
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


def _means(figures: list[dict[str, list[float]]]) -> dict[str, float]:
    """The mean of each figure over all processes, in the order of the first."""
    joined: dict[str, list[float]] = {}
    for one in figures:
        for key, values in one.items():
            joined.setdefault(key, []).extend(values)
    return {key: round(sum(values) / len(values), 5) for key, values in joined.items()}
