"""Few-shot LoRA on an image-to-video Wan: flow matching inside one band of noise, on the shared loop.

A run's folder holds `lora.ckpt` (to resume), `lora.jsonl` and `loss.png` (its curve), `recipe.json`,
`step-<n>.safetensors` now and then, and in the end `lora.safetensors` with averaged weights. KeyboardInterrupt saves
and stops; the same call goes on, on a CPU to the bit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..core.loop import Metrics
from ..core.lora import WAN_LAYERS, LoraError, adapt, choose_layers
from ..core.memory_plan import plan_memory
from ..core.objectives.flow_matching import Example, Expert, FlowMatcher, SigmaRange, first_frame_of
from ..core.processes import main_first, processes
from ..core.run import quiet, run_lora
from ..miniature.latent_classifier import AuxiliaryLoss, weights_of
from ..miniature.sequences import FEW_STEPS, mix_few_step_sigmas
from .prior_preservation import PriorPreservation

Precision = Literal["auto", "bf16", "float32"]
_NAME = "lora"


@dataclass(frozen=True)
class LoraRecipe:
    """A run. Defaults are FFGo's for one expert of Wan 2.2 I2V A14B (docs/methods/ffgo.md, training).

    `steps` updates of `batch` examples each, `at_once` of them in one pass. muon_rate: of Muon, which trains the
    matrices where it is not 0; AdamW trains the rest at `rate`. average: decay of the moving average. final_share: of
    the rate, at the end of a cosine; 1 keeps it constant. subject: how much more than scenery the cast weighs in the
    loss, where examples say where it is; 0 is the paper's. few, own_steps: for bases made for few steps; the share of
    examples at the noise levels of four-step sampling, and the share of updates that go on denoising what four-step
    sampling has denoised so far. keep: the share of updates that hold ordinary prompts where the base has them (see
    keeping.py). precision: "auto" is bf16 on a GPU that has it, else float32. `checkpointing` recomputes blocks in the
    backward pass: a quarter more time for a fraction of the memory. save_every, sample_every: steps, 0 never.
    """

    rank: int = 128
    alpha: float = 128.0
    dropout: float = 0.0
    layers: str = WAN_LAYERS
    expert: Expert = "both"
    boundary: float = 0.9
    shift: float = 5.0
    steps: int = 600
    batch: int = 4
    at_once: int = 1
    rate: float = 1e-4
    muon_rate: float = 0.0
    warmup: int = 20
    final_share: float = 1.0
    weight_decay: float = 0.03
    clip: float = 0.05
    average: float = 0.99
    checkpointing: bool = True
    precision: Precision = "auto"
    save_every: int = 100
    sample_every: int = 100
    subject: float = 0.0
    few: float = 0.0
    own_steps: float = 0.0
    keep: float = 0.0
    seed: int = 0

    @property
    def band(self) -> SigmaRange:
        """The noise levels of the expert."""
        return SigmaRange.of(self.expert, self.boundary, self.shift)


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


def recompute(tree: nn.Module) -> None:
    """Gradient checkpointing of every block of a Wan model, in place."""
    blocks = tree.get_submodule("blocks")
    for key, block in blocks.named_children():
        setattr(blocks, key, _Recomputed(block))


def train_lora(
    dit: nn.Module,
    examples: Sequence[Example],
    recipe: LoraRecipe,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    critic: AuxiliaryLoss | None = None,
    kept: torch.Tensor | None = None,
    sample: Callable[[int, FlowMatcher], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a LoRA for `dit` (as ComfyUI has it, on the device to train on; it stays as it is); returns the file.

    `sample(step, matcher)` is called every `recipe.sample_every` steps with what has been learned so far and may stop
    the run. Of many processes (see training/core/loop.py) the first calls it and writes; each learns from a batch of
    its own. critic: a further loss. kept: encoded prompts [N, L, D] for `recipe.keep`.

    Raises LoraError: no examples, a model that cannot be given a first frame, a folder with another recipe's run, or
    prompts to be kept that are missing or of a model that always wants a first frame; KeyboardInterrupt: passed on,
    after everything is saved.
    """
    if not examples:
        raise LoraError("There is nothing to learn from: build a dataset with at least one clip.")
    first_frame = first_frame_of(dit, examples[0].latents.shape[0])
    device = next(dit.parameters()).device
    bf16 = uses_bf16(recipe.precision, device)
    keeper = None
    if recipe.keep:
        if kept is None or first_frame == "concat":
            raise LoraError("Only a model that films without a first frame, too, can keep how it does so, "
                            "and it needs prompts: leave out what is to be kept.")  # fmt: skip
        channels, _, height, width = examples[0].latents.shape
        keeper = PriorPreservation(FlowMatcher(dit, first_frame, bf16), kept, (channels, height, width))
    names = choose_layers(dit, recipe.layers)
    tree, adapter = adapt(dit, names, recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed)
    if recipe.checkpointing:
        recompute(tree)
    matcher = FlowMatcher(tree, first_frame, bf16, critic)
    first = processes().is_main_process
    with main_first():
        told = {"examples": len(examples), **weights_of(critic)}
        remember_recipe({**asdict(recipe), **told}, folder)
    if not first:
        say = quiet
    say(plan_memory(dit, adapter, examples, at_once=recipe.at_once, bf16=bf16,
                    checkpointing=recipe.checkpointing).text())  # fmt: skip
    shared = {**metadata, "expert": recipe.expert, "shift": f"{recipe.band.shift:g}",
              "sigma_low": f"{recipe.band.low:g}", "sigma_high": f"{recipe.band.high:g}"}  # fmt: skip

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        if keeper and float(torch.rand(())) < recipe.keep:
            value = keeper.loss(matcher)
            return value, {"kept": float(value.detach())}
        return _batch_loss(matcher, draw_examples(examples, recipe, draw), recipe)

    look = None if sample is None else lambda step: sample(step, matcher)
    return run_lora(_NAME, tree, adapter, loss_at, recipe, recipe.steps, folder, shared, sample=look, say=say)


def draw_examples(examples: Sequence[Example], recipe: LoraRecipe, draw: int) -> list[Example]:
    """The examples of a draw: every clip once, in a new order and the next of its ways, before any comes again."""
    clips: dict[int, list[Example]] = {}
    for index, example in enumerate(examples):
        clips.setdefault(-1 - index if example.clip is None else example.clip, []).append(example)
    ways, drawn = list(clips.values()), []
    for place in range(draw * recipe.batch, (draw + 1) * recipe.batch):
        turn, index = divmod(place, len(ways))
        chosen = random.Random(f"{recipe.seed}/{turn}").sample(range(len(ways)), len(ways))[index]
        drawn.append(ways[chosen][(turn + chosen) % len(ways[chosen])])
    return drawn


def _batch_loss(matcher: FlowMatcher, batch: list[Example], recipe: LoraRecipe) -> tuple[torch.Tensor, Metrics]:
    """The mean loss of a batch; the gradients of all passes but the last are already there when this returns."""
    # One level from each equal part of the band: less noise in the gradient than independent draws.
    sigma = recipe.band.at((torch.randperm(len(batch)) + torch.rand(len(batch))) / len(batch))
    if recipe.few:
        sigma = mix_few_step_sigmas(sigma, recipe.few)
    noise = [torch.randn(example.latents.shape) for example in batch]
    done = int(torch.randint(1, len(FEW_STEPS), ())) if float(torch.rand(())) < recipe.own_steps else 0

    def loss_of(part: list[int]) -> torch.Tensor:
        examples = [batch[index] for index in part]
        if done:
            loss = matcher.self_rollout_loss(examples, done, recipe.subject)
        else:
            chosen = torch.stack([noise[index] for index in part]).to(matcher.device)
            loss = matcher.loss(examples, sigma[part], chosen, recipe.subject)
        return loss * (len(part) / len(batch))

    *earlier, last = _passes(batch, recipe.at_once)
    before = 0.0
    for part in earlier:
        loss = loss_of(part)
        loss.backward()
        before += float(loss.detach())
    whole = loss_of(last) + before
    return whole, {"own": float(whole.detach())} if done else {"sigma": float(sigma.mean())}


def _passes(batch: Sequence[Example], at_once: int) -> list[list[int]]:
    """Indices in order, cut into runs of at most `at_once` examples of one shape."""
    passes: list[list[int]] = []
    for index, example in enumerate(batch):
        last = passes[-1] if passes else []
        alike = last and (batch[last[0]].latents.shape, batch[last[0]].text.shape) == (
            example.latents.shape, example.text.shape,
        )  # fmt: skip
        if alike and len(last) < at_once:
            last.append(index)
        else:
            passes.append([index])
    return passes


def remember_recipe(told: Mapping[str, Any], folder: Path) -> None:
    """Write a run's settings down, or check them against those of the run in `folder` that is to be continued.

    Raises LoraError: one of them differs that a run cannot change on its way.
    """
    free = {"steps", "rollout_steps", "save_every", "sample_every"}
    mine = json.loads(json.dumps({key: value for key, value in told.items() if key not in free}))
    path = folder / "recipe.json"
    if path.exists():
        other = json.loads(path.read_text(encoding="utf-8"))
        for key, value in mine.items():
            if other.get(key) != value:
                raise LoraError(f"The run in {folder} has {key} {other.get(key)}, not {value}: "
                                "take another folder or the same settings.")  # fmt: skip
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
