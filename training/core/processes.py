"""One process or many: the state that `accelerate` keeps of them, and their communication.

A plain command is one process. `accelerate launch -m longreel.training ...` starts one for every GPU of one machine or
several (`torchrun` does too, and on CPUs); they share the draws of every update, and the first of them writes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


class ProcessError(RuntimeError):
    """Training cannot start here; the message is one sentence that says what to change."""


def processes() -> Any:
    """accelerate's PartialState: `num_processes`, `process_index`, `is_main_process` and more.

    The first call joins the others and takes this process's own GPU, so it comes before ComfyUI is imported.

    Raises ProcessError: accelerate is not installed.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ProcessError("Training runs on accelerate, which is not installed: run `pip install accelerate` in "
                           "ComfyUI's environment.") from error  # fmt: skip
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Take leave of the others before the interpreter is gone: threads of the group that outlive it abort it."""
    from accelerate import PartialState

    atexit.register(PartialState().destroy_process_group)


@contextmanager
def main_first() -> Iterator[None]:
    """The first process goes through alone, then the others: what it wrote is there for them."""
    with processes().main_process_first():
        yield


def from_main(value: Any) -> Any:
    """`value` of the first process, in every process."""
    if processes().num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def from_all(value: Any) -> list[Any]:
    """The `value` of every process, in order."""
    if processes().num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return list(gather_object([value]))


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter], passes: int) -> None:
    """Turn the gradients that `passes` backward passes of each process have summed up into the mean of all of them.

    A parameter without a gradient here counts as 0 where another process has one.
    """
    trained = list(parameters)
    count = processes().num_processes
    if count > 1:
        from accelerate.utils import reduce

        used = reduce(torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device))
        trained = [p for p, users in zip(trained, used.tolist()) if users]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        # One message for all of them: an adapter has hundreds of small ones.
        summed = reduce(torch.cat([gradient.float().flatten() for gradient in gradients]))
        for p, piece in zip(trained, summed.split([p.numel() for p in trained])):
            p.grad = piece.view_as(p).to(p.dtype)
    if count * passes > 1:
        for p in trained:
            if p.grad is not None:
                p.grad /= count * passes
