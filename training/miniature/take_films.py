"""What the model itself makes of long takes, block by block out of its own frames, and training on sequences of them.

A rollout goes on from its own frames, and their errors add up over a minute. A free rollout leaves the take within
seconds, so its next frames have no target. Here each block of a take starts from its own latents at a noise level that
still shows place and pose, and is denoised with the model's own sink and window as context, not the take's. Such frames
carry the errors of twenty seconds and stay aligned with the take, so that the take's next block is the target (Ross et
al., "DAgger", 2011; Guo et al., "End-to-End Training for Autoregressive Video Diffusion via Self-Resampling", 2025).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from .dit import Miniature, loss, predict, velocity, with_self_rollout
from .latent_classifier import VISIBLE_WORDS, multi_hot_labels
from .param_groups import split_matrices
from .pixel_losses import DecodedProbeLoss
from .sequences import FEW_STEPS, Batch
from .take_sequences import Pattern, TakeSequences, frames_seen
from .takes import BLOCK, PROMPTS, Footage

_WORDLESS = 0.1
_LEAD = 3
"""Blocks before the one that is filmed whose keys are made anew with it; the first of them attend to less than they
did.
"""


@dataclass(frozen=True)
class TakeTraining:
    """A run on batches of `batch` sequences. own_share: of sequences that go on from own frames, once `refilmed` takes
    are filmed again every `every` steps, from `after` of the run on; own_steps: share of batches that go on denoising
    what the model has denoised; reading: weight of the loss by a classifier of latents.
    """

    batch: int = 128
    rate: float = 1e-3
    muon_rate: float = 2e-3
    reading: float = 0.3
    own_share: float = 0.6
    own_steps: float = 0.15
    refilmed: int = 512
    every: int = 150
    after: float = 0.2
    average: float = 0.995
    seed: int = 0


@torch.no_grad()
def refilm(model: Miniature, sequences: TakeSequences, chosen: list[int], done: int) -> None:
    """Film the `chosen` takes again into `sequences.own`, each block from truth at the noise level that four-step
    sampling has after `done` steps (1 to 3).
    """
    takes, device = sequences.footage.takes, sequences.device
    rows = torch.tensor(chosen, device=device)
    truth = takes.latents[rows].float()
    own, caption = truth.clone(), takes.caption[rows]
    with mixed_precision(device):
        text = model.text(takes.tokens[rows].flatten(0, 1)).unflatten(0, (len(chosen), PROMPTS)).flatten(1, 2)
    length = text.shape[1] // PROMPTS
    for block in range(takes.frames // BLOCK):
        past = range(max(block - _LEAD, 1), block)
        at = [*([0] if block else []), *past, block]
        blocks = [Pattern("sink", 0)] if block else []
        blocks += [Pattern("past", one) for one in past] + [Pattern("noisy", block)]
        attention_mask = frames_seen(tuple(blocks))[0].to(device, non_blocking=True)
        frames = torch.tensor([one * BLOCK + i for one in at for i in range(BLOCK)]).to(device, non_blocking=True)
        here = slice(block * BLOCK, (block + 1) * BLOCK)
        text_mask = F.one_hot(caption[:, frames], PROMPTS).bool().repeat_interleave(length, dim=2)
        position = frames.expand(len(chosen), -1)
        clean = truth[:, :, here]
        for level in FEW_STEPS[done:]:
            noised = (1 - level) * clean + level * torch.randn_like(clean)
            x = torch.cat([own[:, :, frames[:-BLOCK]], noised], dim=2)
            levels = torch.zeros(len(chosen), len(frames), device=device)
            levels[:, -BLOCK:] = level * 1000
            with mixed_precision(device):
                v = predict(
                    model.dit, x, levels, text, position=position, attention_mask=attention_mask, text_mask=text_mask
                )
            clean = noised - level * v[:, :, -BLOCK:].float()
        own[:, :, here] = clean
    sequences.own[rows] = own.to(sequences.own.dtype)
    sequences.refilmed.update(chosen)


def read_loss(reader: nn.Module, guess: torch.Tensor, named: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """`reader.reading_loss` without asking the device which frames are `learned` [B, F]."""
    logits = reader(guess.transpose(1, 2).flatten(0, 1)).unflatten(0, guess.shape[:1] + guess.shape[2:3])
    each = F.binary_cross_entropy_with_logits(logits, named, reduction="none").mean(dim=-1)
    return (each * learned).sum() / learned.sum().clamp(min=1)


def step_loss(
    recipe: TakeTraining,
    model: Miniature,
    reader: nn.Module,
    kind: str,
    batch: Batch,
    probe_loss: DecodedProbeLoss | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one batch: of the velocity and of what the reader reads; in some batches of own steps alone, where an
    `probe_loss` is added.
    """
    own = random.random() < recipe.own_steps
    if own:
        batch = with_self_rollout(model, batch, random.randint(1, len(FEW_STEPS) - 1))
    told = torch.rand(len(batch.tokens), device=batch.clean.device) >= _WORDLESS
    v = velocity(model, batch, batch.tokens * told[:, None, None])
    named = multi_hot_labels(batch.resolved_tokens).gather(
        1, batch.caption[..., None].expand(-1, -1, len(VISIBLE_WORDS))
    )
    guess = batch.noised() - batch.sigma[:, None, :, None, None] * v
    read = read_loss(reader, guess, named, (batch.sigma > 0) & told[:, None])
    if own and probe_loss:
        seen = probe_loss.of_batch(batch, guess, told)
        return recipe.reading * read + seen, {f"{kind} own": read.detach(), f"{kind} seen": seen.detach()}
    if own:
        return read, {f"{kind} own": read.detach()}
    value = loss(v, batch.noise - batch.clean, batch.weight)
    return value + recipe.reading * read, {kind: value.detach(), f"{kind} read": read.detach()}


def train_on_takes(
    recipe: TakeTraining,
    model: Miniature,
    reader: nn.Module,
    footage: Footage,
    folder: Path,
    *,
    steps: int = 10**9,
    seconds: float = 0.0,
    probe_loss: DecodedProbeLoss | None = None,
    name: str = "dit",
) -> TakeSequences:
    """Train `model` in place on the device it is on, for `steps` or `seconds`, resuming from `folder`; it ends with
    averaged weights. reader: a trained one (`training.miniature.latent_classifier`). Returns the sequences with its
    films.
    """
    reader.requires_grad_(False).eval()
    sequences = TakeSequences(footage, recipe.own_share)
    schedule = Schedule(
        steps, recipe.rate, muon_lr=recipe.muon_rate, weight_decay=0.01, ema_decay=recipe.average, seconds=seconds
    )
    films = random.Random(f"films {recipe.seed}")
    count = min(recipe.refilmed, len(footage.takes))

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        random.seed(f"{recipe.seed}/{step}")
        kind, batch = sequences.draw(random.Random(f"{recipe.seed} {step}"), recipe.batch)
        return step_loss(recipe, model, reader, kind, batch, probe_loss)

    def films_again(step: int) -> None:
        if step and step % recipe.every == 0 and progress(step) >= recipe.after:
            refilm(model, sequences, films.sample(range(len(footage.takes)), count), films.choice((1, 1, 2, 2, 3)))

    began = time.monotonic()

    def progress(step: int) -> float:
        return (time.monotonic() - began) / seconds if seconds else step / steps

    groups = split_matrices(model)
    average = train(name, model, learn, schedule, folder, groups=groups, seed=recipe.seed, before=films_again)
    model.load_state_dict(average)
    return sequences
