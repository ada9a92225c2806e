"""Long tuning of any causal Wan text-to-video model: a LoRA, learned from prompts alone by distribution matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.lora import WAN_LAYERS, LoraError, adapt, choose_layers, differentiable, save_lora
from ..core.memory_plan import MemoryPlan
from ..core.processes import processes
from ..core.run import on_its_device
from ..miniature.sequences import BLOCK
from .long_data import LongTakes
from .long_tuning import CausalRecipe, LongTuning, run
from .objectives import WINDOW_BLOCKS, DistributionMatching
from .stream import Stream


def tune_wan(
    model: Any,
    teacher: Any,
    takes: LongTakes,
    table: torch.Tensor,
    empty: torch.Tensor,
    recipe: CausalRecipe,
    size: tuple[int, int],
    folder: Path,
    metadata: Mapping[str, str],
    *,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a LoRA of `model` in `folder`, resuming there; returns its file.

    model, teacher: ModelPatchers as core loads them, causal and bidirectional, of one size; takes: prompts numbering
    `table` [P, L, D]; empty: the empty prompt [1, L, D]; size: height and width of latents. Raises LoraError where the
    takes have no prompts to go on with, or nothing is asked for that can be learned of prompts alone.
    """
    from ...host.wan.causal_models import check_model

    if not recipe.matching or (takes.latents is None and (recipe.truth or recipe.reading)):
        raise LoraError("Of prompts alone a model learns by distribution matching: set --matching above 0, the others "
                        "to 0.")  # fmt: skip
    for one in (model, teacher):
        check_model(one)
    model, teacher = on_its_device(model), teacher if teacher is model else _beside(teacher)
    dit, base = model.model.diffusion_model, teacher.model.diffusion_model
    tree, student = adapt(dit, choose_layers(dit, WAN_LAYERS), recipe.rank, seed=recipe.seed)
    fake, score = adapt(base, choose_layers(base, WAN_LAYERS), recipe.fake_rank, seed=recipe.seed + 1)
    device = next(dit.parameters()).device
    rows = table.to(device)
    stream = Stream(
        tree, takes, lambda tokens: rows[tokens[:, 0]], films=recipe.films, blocks=recipe.blocks,
        size=(model.model.latent_format.latent_channels, *size), settings=recipe.settings, levels=recipe.levels,
    )  # fmt: skip
    matching = DistributionMatching(
        base, fake, empty.to(device), guidance=recipe.guidance, recompute=device.type == "cuda"
    )  # fmt: skip
    learner = nn.ModuleDict({"student": student, "fake": score})
    say(plan(dit, base, learner, recipe, size).text())
    with differentiable():
        run(LongTuning(recipe, stream, matching=matching), learner, recipe, folder, "causal-lora")
    path = folder / "causal-lora.safetensors"
    if processes().is_main_process:
        save_lora(student, path, metadata, dtype=torch.bfloat16)
    return path


def plan(dit: Any, base: Any, learner: nn.Module, recipe: CausalRecipe, size: tuple[int, int]) -> MemoryPlan:
    """What a run needs: both models, the adapters with their optimizer, the KV memory of all films, and the activations
    of the larger of two passes, the learned block's (kept whole) and the scored window's (one block of it at a time).
    """
    import comfy.model_management

    device = next(dit.parameters()).device
    weights = sum(
        p.numel() * p.element_size() for net in {id(dit): dit, id(base): base}.values() for p in net.parameters()
    )
    parameters = sum(p.numel() for p in learner.parameters())
    tokens = (-(-size[0] // dit.patch_size[1])) * (-(-size[1] // dit.patch_size[2]))
    element = 2 if device.type == "cuda" else 4
    window = recipe.settings.window or 0
    kept = 2 * len(dit.blocks) * dit.dim * element * tokens * (window + recipe.settings.bank + 1) * recipe.films
    each = 24 * dit.dim + 2 * dit.blocks[0].ffn[0].out_features
    learned = recipe.films * BLOCK * tokens * each * len(dit.blocks) * element
    frames = WINDOW_BLOCKS * BLOCK * min(recipe.scored, recipe.films) * tokens
    scored = frames * (each + dit.dim * len(dit.blocks)) * element
    free = int(comfy.model_management.get_free_memory(device)) + (weights if device.type != "cpu" else 0)
    # the KV memory counts as weights: it is there throughout
    return MemoryPlan(parameters, frames, weights + kept, 20 * parameters, max(learned, scored), free)


def _beside(teacher: Any) -> Any:
    import comfy.model_management

    teacher = teacher.clone(disable_dynamic=True)
    comfy.model_management.load_models_gpu([teacher], force_full_load=True)
    return teacher
