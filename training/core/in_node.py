"""A recipe inside a node: ComfyUI's bar, the loss curve as preview, and its interrupt as "save and stop".

    with training_in_node() as say:
        path = train_lora(dit, examples, recipe, folder, told, say=say)

The recipe does not depend on it: the loop reports its state to a callback (`loop.watching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from comfy.model_management import InterruptProcessingException
from PIL import Image

from ...host.progress import Progress
from .curves import draw_panel, read_losses
from .loop import TrainState, callbacks
from .lora import differentiable

# The curve shows means over so many parts of the run at most: single steps are mostly noise.
_POINTS = 60


class _Stopped(KeyboardInterrupt):
    """ComfyUI's interrupt in the shape that recipes know: they save and pass it on."""


@contextmanager
def training_in_node() -> Iterator[Callable[[str], None]]:
    """Inside, a recipe trains as it does on the command line; yields what it may be given as `say`.

    Nodes run in inference mode, in which autograd refuses to work: it is left here, for the run only, and core's models
    use operations that have gradients. The process's random state is put back. Tensors that were made before may still
    be inference tensors; `lora.adapt` copes with a model's.

    Raises InterruptProcessingException: the user interrupted; the recipe has saved. Queued again it resumes.
    """
    curve = _LiveCurve()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(), differentiable(), callbacks(curve):
        try:
            yield curve.say
        except _Stopped as stop:
            raise InterruptProcessingException from stop


class _LiveCurve:
    """Watches runs, one after the other, on one node's bar."""

    def __init__(self) -> None:
        self.progress = Progress(1)
        self.run = ""
        self.points: list[tuple[int, float]] = []
        self.part: list[float] = []

    def __call__(self, moment: TrainState) -> None:
        if moment.name != self.run:
            self.run, self.points, self.part = moment.name, read_losses(moment.log), []
            self.progress = Progress(moment.steps)
        if moment.loss is not None:
            self.part.append(moment.loss)
            if len(self.part) >= max(moment.steps // _POINTS, 1):
                self.points.append((moment.step, sum(self.part) / len(self.part)))
                self.part = []
        text = f"step {moment.step}/{moment.steps}"
        if self.points:
            text += f", loss {self.points[-1][1]:.4g}"
        with _as_key():
            self.progress.reach(moment.step, text, self._draw if self.points else None)

    def say(self, text: str) -> None:
        """A recipe's line, displayed on the node and printed as on the command line."""
        print(text)
        with _as_key():
            self.progress.reach(self.progress.done, text)

    def _draw(self) -> Image.Image:
        return draw_panel(self.run, self.points)


@contextmanager
def _as_key() -> Iterator[None]:
    try:
        yield
    except InterruptProcessingException as interrupt:
        raise _Stopped from interrupt
