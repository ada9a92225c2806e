"""FilmWeaver's LoRA: a text-to-video Wan is trained to condition on keyframes and earlier frames, in stages, on the
shared loop.

Stage 1 trains the temporal cache only, stage 2 all four modes, and an optional stage 3 conditions on histories that the
model itself has sampled, against the drift of rollouts. A run's folder holds `weaver.ckpt` (to resume), `weaver.jsonl`
and `loss.png` (its curve), `recipe.json`, `step-<n>.safetensors` now and then, and in the end `weaver.safetensors` with
averaged weights and the layout profile. KeyboardInterrupt saves and stops; the same call goes on, on a CPU to the bit.

x = (1 - sigma) * clean + sigma * noise, and the model learns the velocity noise - clean of the target's tokens alone.
Source: FilmWeaver, arXiv 2512.11274; docs/methods/filmweaver.md, training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ...film.dual_cache import FILMWEAVER, LayoutProfile, Payload
from ..core.loop import Metrics
from ..core.lora import WAN_SELF_ATTENTION, LoraError, adapt, choose_layers, read_lora
from ..core.memory_plan import plan_memory
from ..core.objectives.flow_matching import SigmaRange, advance
from ..core.processes import main_first, processes
from ..core.run import quiet, run_lora, weighted_mse
from ..first_frame.train import recompute, remember_recipe, uses_bf16
from ..miniature.latent_classifier import AuxiliaryLoss, weights_of
from .samples import TEMPORAL_ONLY, Curriculum, TrainingScene, WeaverSample, draw_sample, sample_payload

_NAME = "weaver"
_OWN_STEPS = 4
"""Denoising steps of a history that the model films itself."""


@dataclass(frozen=True)
class WeaverRecipe:
    """A run. Defaults are for a real base: docs/methods/filmweaver.md, training.

    `first_steps` updates of stage 1 under `first`, `steps` of stage 2 under `second`, `rollout_steps` of stage 3, in
    which a history is the model's own with probability `rollout_share`. Each update sees `batch` samples, `at_once` of
    them in one pass: those are of one mode and size. muon_rate: of Muon, which trains the matrices where it is not 0;
    AdamW trains the rest at `rate`. average: decay of the moving average. final_share: of the rate, at the end of a
    cosine; 1 keeps it constant. subject: how much more than scenery the subjects weigh in the loss, where scenes say
    where they are; 0 is the paper's. precision: "auto" is bf16 on a GPU that has it, else float32. `checkpointing`
    recomputes blocks in the backward pass: a quarter more time for a fraction of the memory. save_every, sample_every:
    steps, 0 never.
    """

    profile: LayoutProfile = FILMWEAVER
    rank: int = 128
    alpha: float = 128.0
    dropout: float = 0.0
    layers: str = WAN_SELF_ATTENTION
    first: Curriculum = field(default_factory=lambda: Curriculum(modes=TEMPORAL_ONLY))
    second: Curriculum = field(default_factory=Curriculum)
    first_steps: int = 10_000
    steps: int = 10_000
    rollout_steps: int = 0
    rollout_share: float = 0.5
    shift: float = 5.0
    batch: int = 16
    at_once: int = 1
    rate: float = 1e-4
    muon_rate: float = 0.0
    warmup: int = 500
    final_share: float = 1.0
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999
    subject: float = 0.0
    checkpointing: bool = True
    precision: Literal["auto", "bf16", "float32"] = "auto"
    save_every: int = 500
    sample_every: int = 500
    seed: int = 0

    @property
    def updates(self) -> int:
        """Of all stages."""
        return self.first_steps + self.steps + self.rollout_steps

    def curriculum(self, step: int) -> Curriculum:
        """What samples are drawn by at an update."""
        return self.first if step < self.first_steps else self.second

    def rolls_out(self, step: int) -> bool:
        """Whether an update belongs to stage 3."""
        return step >= self.first_steps + self.steps


class WeaverMatcher:
    """A model that reads caches, and the precision it runs in. empty: the encoded empty caption [L, D]; None: zeros."""

    def __init__(
        self,
        dit: nn.Module,
        profile: LayoutProfile,
        bf16: bool,
        empty: torch.Tensor | None = None,
        critic: AuxiliaryLoss | None = None,
    ):
        # Never adapted, and in the precision of the blocks (core keeps the patch embedding in float32).
        weight: torch.Tensor = dit.get_parameter("head.modulation")
        self.dit, self.profile, self.device, self.critic = dit, profile, weight.device, critic
        width: Any = dit.text_dim
        self.empty = torch.zeros(1, width) if empty is None else empty
        # A base in float32 is cast layer by layer under autocast; any other is fed what it computes in.
        self.autocast = bf16 and weight.dtype == torch.float32
        self.dtype = torch.bfloat16 if bf16 and not self.autocast else torch.float32

    def texts(self, texts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """[B, L, D], shorter ones filled up with zeros as Wan's are; None is the empty caption."""
        rows = [self.empty if text is None else text for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device, self.dtype)

    def velocity(
        self, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, payloads: Sequence[Payload]
    ) -> torch.Tensor:
        """Predicted velocity [B, C, T, h, w], float32, of chunks at noise levels `sigma` [B]."""
        from ...host.wan.cache_tokens import told

        time = sigma.to(self.device) * 1000
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.dit(x.to(self.dtype), time, text, **told(self.profile, payloads)).float()

    def loss(
        self, samples: Sequence[WeaverSample], sigma: torch.Tensor, noise: torch.Tensor, subject: float = 0.0
    ) -> torch.Tensor:
        """Mean squared error of the velocity of the targets, known subjects weighing 1 + `subject` times as much, plus
        the auxiliary loss on the predicted clean latents; samples of one pass (see `draw_pass`).
        """
        clean = torch.stack([sample.target for sample in samples]).to(self.device, torch.float32)
        level = sigma.to(self.device)[:, None, None, None, None]
        text = self.texts([sample.text for sample in samples])
        payloads = [sample.payload for sample in samples if sample.payload is not None]
        noised = (1 - level) * clean + level * noise
        v = self.velocity(noised, sigma, text, payloads)
        error = (v - (noise - clean)).square().mean(dim=1)
        value = weighted_mse(error, [one.subject for one in samples], subject)
        if self.critic:
            # neither text nor cache names the character: no label for the classifier
            told = [None if one.text is None or one.payload is None else one.shown for one in samples]
            value = value + self.critic.loss(noised - level * v, told)
        return value

    @torch.no_grad()
    def sample(
        self,
        texts: Sequence[torch.Tensor | None],
        payloads: Sequence[Payload],
        noise: torch.Tensor,
        *,
        steps: int,
        shift: float = 5.0,
        without: Sequence[Payload] = (),
        guidance: float = 1.0,
        renoise: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Chunks [B, C, chunk, h, w] by Euler steps from `noise` of that shape.

        guidance: classifier-free guidance scale, with the payloads `without` as the unconditional pass; 1 for none.
        renoise: re-noises each prediction of the clean latents instead of an Euler step, for few-step models.
        """
        text = self.texts(texts)
        x = noise.to(self.device, torch.float32)
        for here, there in pairwise(SigmaRange(shift=shift).at(torch.linspace(1, 0, steps + 1)).tolist()):
            sigma = torch.full((len(x),), here)
            v = self.velocity(x, sigma, text, payloads)
            if guidance != 1:
                v = v + (guidance - 1) * (v - self.velocity(x, sigma, text, without))
            again = None if renoise is None else torch.randn(x.shape, generator=renoise).to(x)
            x = advance(x, v, here, there, again)
        return x


def train_weaver(
    dit: nn.Module,
    scenes: Sequence[TrainingScene],
    recipe: WeaverRecipe,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    empty: torch.Tensor | None = None,
    start_from: Path | None = None,
    critic: AuxiliaryLoss | None = None,
    sample: Callable[[int, WeaverMatcher], None] | None = None,
    tick: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a LoRA for `dit` (as ComfyUI has it, on the device to train on; it stays as it is); returns the file.

    empty: the encoded empty caption [L, D]. start_from: a finished LoRA of the same layers and rank. critic: a further
    loss, for scenes that say what they show. `sample(step, matcher)` is called every `recipe.sample_every` steps with
    what has been learned so far, `tick(step)` before every step; either may stop the run. Of many processes (see
    training/core/loop.py) the first calls them and writes; each learns from a batch of its own.

    Raises LoraError: no scenes, a model that cannot take cache tokens, or a folder with another recipe's run;
    CacheError: the scenes are too short for a mode that is asked for; KeyboardInterrupt, ComfyUI's
    InterruptProcessingException: passed on, after everything is saved.
    """
    from comfy.model_management import InterruptProcessingException

    _check(dit, scenes, recipe)
    names = choose_layers(dit, recipe.layers)
    tree, adapter = adapt(dit, names, recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout, seed=recipe.seed)
    if start_from:
        read_lora(adapter, start_from)
    if recipe.checkpointing:
        recompute(tree)
    bf16 = uses_bf16(recipe.precision, next(dit.parameters()).device)
    matcher = WeaverMatcher(tree, recipe.profile, bf16, empty, critic)
    first, several = processes().is_main_process, processes().num_processes
    with main_first():
        told = {"scenes": len(scenes), **weights_of(critic)}
        remember_recipe({**asdict(recipe), **told}, folder)
    if not first:
        say = quiet
    say(plan_memory(dit, adapter, [_Pass(_largest(scenes, recipe.profile))], at_once=recipe.at_once, bf16=bf16,
                    checkpointing=recipe.checkpointing).text())  # fmt: skip
    shared = {**metadata, **recipe.profile.to_metadata(), "shift": f"{recipe.shift:g}"}

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        return _update_loss(matcher, scenes, recipe, draw // several, draw)

    look = None if sample is None else lambda step: sample(step, matcher)
    return run_lora(
        _NAME, tree, adapter, loss_at, recipe, recipe.updates, folder, shared,
        sample=look, tick=tick, stops=(KeyboardInterrupt, InterruptProcessingException), say=say,
    )  # fmt: skip


def draw_pass(
    scenes: Sequence[TrainingScene], recipe: WeaverRecipe, step: int, name: str, count: int
) -> list[WeaverSample]:
    """`count` samples of one mode and size: what runs in one pass of update `step`. name: of the pass, its seed."""
    rng = random.Random(f"{recipe.seed}/{name}")
    curriculum = recipe.curriculum(step)
    first = draw_sample(scenes, rng, curriculum, recipe.profile)
    return [first, *(draw_sample(scenes, rng, curriculum, recipe.profile, first) for _ in range(count - 1))]


def _update_loss(
    matcher: WeaverMatcher, scenes: Sequence[TrainingScene], recipe: WeaverRecipe, step: int, draw: int
) -> tuple[torch.Tensor, Metrics]:
    """The mean loss of a batch, the `draw`-th of all; the gradients of all passes but the last are already there when
    this returns.
    """
    counts = [recipe.at_once] * (recipe.batch // recipe.at_once)
    if rest := recipe.batch % recipe.at_once:
        counts.append(rest)
    # One level from each equal part of the schedule: less noise in the gradient than independent draws.
    share = (torch.randperm(recipe.batch) + torch.rand(recipe.batch)) / recipe.batch
    levels = SigmaRange(shift=recipe.shift).at(share).split(counts)
    done = torch.zeros(())
    metrics: dict[str, float] = {}
    for number, (count, sigma) in enumerate(zip(counts, levels, strict=True)):
        samples = draw_pass(scenes, recipe, step, f"{draw}/{number}", count)
        if recipe.rolls_out(step):
            samples = roll_out_history(matcher, scenes, samples, recipe, f"{draw}/{number}")
        noise = torch.randn(count, *samples[0].target.shape).to(matcher.device)
        loss = matcher.loss(samples, sigma, noise, recipe.subject) * (count / recipe.batch)
        metrics[f"mode {samples[0].mode.value}"] = float(loss.detach()) * recipe.batch / count
        if number == len(counts) - 1:
            return loss + done.to(loss), metrics
        loss.backward()
        done = done + loss.detach().to(done)
    raise AssertionError("unreachable: a batch has a pass")


def roll_out_history(
    matcher: WeaverMatcher,
    scenes: Sequence[TrainingScene],
    samples: list[WeaverSample],
    recipe: WeaverRecipe,
    name: str,
) -> list[WeaverSample]:
    """The samples, with probability `recipe.rollout_share` with the newest frames of their histories filmed by the
    model itself, from what lies before them in the shot. Samples whose history is shorter than a chunk stay as they
    are.
    """
    profile, first = recipe.profile, samples[0]
    rng = random.Random(f"{recipe.seed}/{name}/own")
    if first.payload is None or first.history < profile.chunk or rng.random() >= recipe.rollout_share:
        return samples
    before = [_taken(scenes, one, one.start - first.history, one.start - profile.chunk) for one in samples]
    told_before = [_told(scenes, frames, one, rng, recipe) for frames, one in zip(before, samples, strict=True)]
    payloads = [payload for payload in told_before if payload is not None]
    texts = [one.text for one in samples]
    noise = torch.randn(len(samples), *first.target.shape)
    own = matcher.sample(texts, payloads, noise, steps=_OWN_STEPS, shift=recipe.shift).cpu()
    return [
        replace(one, payload=_told(scenes, torch.cat([frames, filmed], dim=1), one, rng, recipe))
        for frames, filmed, one in zip(before, own, samples, strict=True)
    ]


def _told(
    scenes: Sequence[TrainingScene], history: torch.Tensor, one: WeaverSample, rng: random.Random, recipe: WeaverRecipe
) -> Payload | None:
    return sample_payload(scenes, history, one.keyframes, rng, recipe.second, recipe.profile)


def _taken(scenes: Sequence[TrainingScene], one: WeaverSample, start: int, stop: int) -> torch.Tensor:
    return scenes[one.scene].shots[one.shot].latents[:, start:stop]


@dataclass(frozen=True, eq=False)
class _Pass:
    """What `plan_memory` reads of a sample."""

    latents: torch.Tensor


def _largest(scenes: Sequence[TrainingScene], profile: LayoutProfile) -> torch.Tensor:
    """Without content, as many latent frames as the largest target weighs together with full caches."""
    shots = [shot.latents for scene in scenes for shot in scene.shots]
    largest = max(shots, key=lambda latents: latents[0, 0].numel())
    height, width = largest.shape[2:]
    rows, columns = profile.grid(height, width)
    tokens = profile.tokens(height, width, profile.history, profile.keyframes)
    frames = profile.patch[0] * math.ceil(tokens / (rows * columns))
    return torch.empty(largest.shape[0], frames, *largest.shape[2:], device="meta")


def _check(dit: nn.Module, scenes: Sequence[TrainingScene], recipe: WeaverRecipe) -> None:
    """Refuse, before anything is computed, what cannot be trained."""
    from ...host.families.wan import PLAIN

    if not scenes:
        raise LoraError("There is nothing to learn from: encode at least one scene.")
    if type(dit) not in PLAIN:
        raise LoraError(f"{type(dit).__name__} cannot take cache tokens: load a plain text-to-video Wan model.")
    channels, given = dit.get_parameter("patch_embedding.weight").shape[1], scenes[0].shots[0].latents.shape[0]
    if channels != given:
        raise LoraError(f"The model takes {channels} channels and the scenes have {given}: "
                        "load the text-to-video model that goes with the scenes' VAE.")  # fmt: skip
    if tuple(dit.patch_size) != recipe.profile.patch:  # type: ignore[arg-type]
        raise LoraError(f"The model's patches are {list(dit.patch_size)} and the layout's "  # type: ignore[arg-type]
                        f"{list(recipe.profile.patch)}: choose a profile for this model.")  # fmt: skip
    if not 1 <= recipe.at_once <= recipe.batch:
        raise LoraError(f"{recipe.at_once} samples at once of a batch of {recipe.batch}: choose 1 to the batch's size.")
