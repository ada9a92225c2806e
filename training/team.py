"""The processes that train one model together: one by itself, or as many as ``accelerate launch`` has started.

    python -m longreel.training ...                            one CPU or one GPU
    accelerate launch -m longreel.training ...                 all that `accelerate config` was told of

Every process holds the whole model and works on its own share of a step's data; gradients are averaged. Because recipes
train a few tensors inside a model that is not theirs (a LoRA), nothing is wrapped: the loop averages what it updates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

# Others wait while the main process encodes a dataset or films samples.
_PATIENCE = timedelta(hours=12)


class TrainingError(RuntimeError):
    """Training cannot begin on this machine; the message is one sentence that says what to change."""


class Team:
    """This process among its equals.

    number, count: 0 to count - 1 of count. Only number 0, the main process, writes files.
    """

    def __init__(self, device: torch.device):
        """Join the others, who must do the same; alone, this does nothing.

        Args:
            device: where this process trains.

        Raises:
            TrainingError: accelerate is not installed.
        """
        self.device = device
        self._state = _join(device.type == "cpu")
        self.number: int = self._state.process_index
        self.count: int = self._state.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.number == 0

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, in place, by their mean over all processes."""
        if self.count == 1 or not tensors:
            return
        from accelerate.utils import reduce

        # One message instead of hundreds.
        flat = reduce(torch.cat([tensor.detach().flatten().float() for tensor in tensors]), "mean")
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def means(self, values: Sequence[float]) -> list[float]:
        """Each number's mean over all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float32, device=self.device)
        self.average([tensor])
        means: list[float] = tensor.tolist()
        return means

    def from_main(self, value: Any) -> Any:
        """The main process's value, in all (tensors on the CPU)."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others enter when the main process is through: they find the files that it made."""
        with self._state.main_process_first():
            yield


def join_early() -> None:
    """Before ComfyUI chooses its device: take this process's own GPU, if ``accelerate launch`` has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _join(cpu=not torch.cuda.is_available())


def _join(cpu: bool) -> Any:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise TrainingError("Training needs accelerate, which is not installed: "
                            "run `pip install accelerate` in ComfyUI's environment.") from error  # fmt: skip
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=cpu, **({"timeout": _PATIENCE} if together else {}))
