"""What every recipe's run is made of, once it has something to train and a loss: files now and then, samples, stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...film.reel.atomic import write_text
from .curves import draw_curves
from .loop import Metrics, train
from .lora import Adapter, LoraError, adapt, choose_layers, differentiable, read_lora
from .memory_plan import Clip, plan_memory
from .processes import main_first, processes
from .settings import LoraSettings, Precision, TrainSettings
from .trainable import Trainable

_CHANGEABLE = {"steps", "rollout_steps", "save_every", "sample_every"}
"""What a run may change on its way."""


def said_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` in the first process, nothing in the others."""
    return say if processes().is_main_process else lambda line: None


def adapted(dit: nn.Module, settings: LoraSettings, start_from: Path | None = None) -> tuple[nn.Module, Adapter]:
    """`dit` with a LoRA of the settings, its blocks recomputed if they say so, and the LoRA alone; `dit` stays as it
    is. start_from: a finished LoRA of the same layers and rank.

    Raises LoraError: no layer has such a name, rank, alpha or dropout do not fit, or another LoRA to start from.
    """
    names = choose_layers(dit, settings.layers)
    tree, adapter = adapt(dit, names, settings.rank, alpha=settings.alpha, dropout=settings.dropout, seed=settings.seed)
    if start_from:
        read_lora(adapter, start_from)
    if settings.checkpointing:
        recompute(tree.get_submodule("blocks"))
    return tree, adapter


def planned(dit: nn.Module, trainable: nn.Module, examples: Sequence[Clip], settings: TrainSettings, bf16: bool) -> str:
    """What the run needs of the device's memory, in a line."""
    return plan_memory(
        dit, trainable, examples, micro_batch=settings.micro_batch, bf16=bf16, checkpointing=settings.checkpointing
    ).text()


def weighted_mse(error: torch.Tensor, subjects: Sequence[torch.Tensor | None], weight: float) -> torch.Tensor:
    """The mean of squared errors [B, F, h, w], known `subjects` [F, h, w] weighing 1 + `weight` times as much."""
    known = [torch.zeros(error.shape[1:]) if one is None else one for one in subjects]
    weights = 1 + weight * torch.stack(known).to(error.device)
    return (error * weights).sum() / weights.sum()


def on_its_device(model: Any) -> Any:
    """The model, whole and by itself on its device: the encoders have done their work."""
    import comfy.model_management

    model = model.clone(disable_dynamic=True)
    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether the forward pass runs in bf16."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


class _Recomputed(nn.Module):
    """A block whose inside is computed again in the backward pass instead of kept."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.block, *args, use_reentrant=False, **kwargs)


def recompute(blocks: nn.Module) -> None:
    """Gradient checkpointing of every child of `blocks` (a transformer's list of blocks), in place."""
    for key, block in blocks.named_children():
        setattr(blocks, key, _Recomputed(block))


def remember_settings(settings: TrainSettings, folder: Path, **more: Any) -> None:
    """Write a run's settings, and `more` that decides it, into `recipe.json`; or check them against those of the run
    in `folder` that is to be continued. Fields that the file does not have, as runs of older versions, had their
    default; those that were renamed are found under their old name.

    Raises LoraError: one of them differs that a run cannot change on its way.
    """
    with main_first():
        _remember({**settings.recorded(), **more}, settings, folder)


def _remember(told: Mapping[str, Any], settings: TrainSettings, folder: Path) -> None:
    mine = json.loads(json.dumps({key: value for key, value in told.items() if key not in _CHANGEABLE}))
    path = folder / "recipe.json"
    if not path.exists():
        write_text(path, json.dumps(mine, indent=1))
        return
    other = json.loads(path.read_text(encoding="utf-8"))
    of = {one.name: one for one in fields(settings)}
    usual = json.loads(json.dumps({key: value for key, value in type(settings)().recorded().items() if key in of}))
    for key, value in mine.items():
        names = (key, *(of[key].metadata.get("aliases", ()) if key in of else ()))
        kept = next((other[name] for name in names if name in other), usual.get(key))
        if kept != value:
            raise LoraError(f"The run in {folder} has {key} {kept}, not {value}: "
                            "take another folder or the same settings.")  # fmt: skip


def newest_sample(folder: Path) -> Path | None:
    """The picture of what a run's LoRA films, as far as it has got; None before the first one."""
    return max((folder / "samples").glob("step-*.png"), default=None)


def run_training(
    name: str,
    tree: nn.Module,
    trainable: Trainable,
    loss_at: Callable[[int], tuple[torch.Tensor, Metrics]],
    settings: TrainSettings,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    sample: Callable[[int], None] | None,
    tick: Callable[[int], None] | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    say: Callable[[str], None],
) -> Path:
    """Train `trainable`, a part of `tree`, for `settings.updates` updates; returns `<name>.safetensors`, what
    `trainable.export` made of its averaged weights. `step-<n>.safetensors` now and then is of the newest ones.

    `tick(step)` comes before every step, `sample(step)` at its turns and at the end, with `tree` in evaluation mode;
    either may stop the run. Exceptions of `stops` save, and are passed on.
    """
    first = processes().is_main_process

    def export(file: str, done: int) -> Path:
        path = trainable.export(folder / file, {**metadata, "steps": str(done)})
        if (folder / f"{name}.jsonl").exists():
            draw_curves(folder, folder / "loss.png")
        return path

    def look(step: int) -> None:
        if tick:
            tick(step)
        if step and settings.save_every and step % settings.save_every == 0:
            export(f"step-{step:06}.safetensors", step)
        if sample and settings.sample_every and step % settings.sample_every == 0:
            tree.eval()
            sample(step)
            tree.train()

    tree.train()
    with differentiable():
        try:
            average = train(
                name, trainable, loss_at, settings.schedule(), folder,
                groups=trainable.groups(), seed=settings.seed, before=look, say=say,
            )  # fmt: skip
        except stops:
            if not first:
                raise
            state = torch.load(folder / f"{name}.ckpt", weights_only=True)
            trainable.load_state_dict(state["average"])
            say(f"Stopped and saved at step {state['step']}: {export(f'{name}.safetensors', state['step'])}. "
                "The same command goes on.")  # fmt: skip
            raise
        trainable.load_state_dict(average)
        if first:
            export(f"{name}.safetensors", settings.updates)
            if sample and settings.sample_every:
                tree.eval()
                sample(settings.updates)
    return folder / f"{name}.safetensors"
