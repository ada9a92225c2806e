"""The common part of every LoRA run, given an adapter and a loss: checkpoints, samples, interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .curves import draw_curves
from .loop import Metrics, Schedule, train
from .lora import differentiable, save_lora
from .processes import processes


def quiet(line: str) -> None:
    """Only the first process speaks."""


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


def run_lora(
    name: str,
    tree: nn.Module,
    adapter: Any,
    loss_at: Callable[[int], tuple[torch.Tensor, Metrics]],
    recipe: Any,
    steps: int,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    sample: Callable[[int], None] | None,
    tick: Callable[[int], None] | None = None,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    say: Callable[[str], None],
) -> Path:
    """Train `adapter` of `tree` for `steps` updates as `recipe` says; returns `<name>.safetensors`.

    `recipe` has the optimiser's fields, `save_every` and `sample_every`. `tick(step)` comes before every step,
    `sample(step)` at its turns and at the end; either may stop the run. `stops` save, and are passed on.
    """
    first = processes().is_main_process

    def export(file: str, done: int) -> Path:
        path = save_lora(adapter, folder / file, {**metadata, "steps": str(done)}, dtype=torch.bfloat16)
        if (folder / f"{name}.jsonl").exists():
            draw_curves(folder, folder / "loss.png")
        return path

    def look(step: int) -> None:
        if tick:
            tick(step)
        if step and recipe.save_every and step % recipe.save_every == 0:
            export(f"step-{step:06}.safetensors", step)
        if sample and recipe.sample_every and step % recipe.sample_every == 0:
            tree.eval()
            sample(step)
            tree.train()

    schedule = Schedule(
        steps, recipe.rate, muon_rate=recipe.muon_rate, warmup=recipe.warmup, final_share=recipe.final_share,
        weight_decay=recipe.weight_decay, clip=recipe.clip, average=recipe.average,
    )  # fmt: skip
    tree.train()
    with differentiable():
        try:
            average = train(name, adapter, loss_at, schedule, folder, seed=recipe.seed, before=look, say=say)
        except stops:
            if not first:
                raise
            state = torch.load(folder / f"{name}.ckpt", weights_only=True)
            adapter.load_state_dict(state["average"])
            say(f"Stopped and saved at step {state['step']}: {export(f'{name}.safetensors', state['step'])}. "
                "The same command goes on.")  # fmt: skip
            raise
        adapter.load_state_dict(average)
        if first:
            export(f"{name}.safetensors", steps)
            if sample and recipe.sample_every:
                tree.eval()
                sample(steps)
    return folder / f"{name}.safetensors"
