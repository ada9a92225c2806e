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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...film.dual_cache import FILMWEAVER, LayoutProfile, Payload
from ..core.auxiliary import AuxiliaryLoss
from ..core.loop import Metrics
from ..core.lora import WAN_LAYERS, WAN_SELF_ATTENTION, LoraError
from ..core.objectives.denoiser import stratified
from ..core.objectives.flow_matching import FlowMatching, SigmaRange
from ..core.processes import processes
from ..core.run import (
    adapted,
    planned,
    remember_settings,
    run_training,
    said_once,
    uses_bf16,
    weighted_mse,
)
from ..core.settings import FlowLoraSettings, LoraSettings, again, setting
from ..miniature.auxiliary import weights_of
from .samples import TEMPORAL_ONLY, Curriculum, TrainingScene, WeaverSample, draw_sample, sample_payload

_NAME = "weaver"
_OWN_STEPS = 4
"""Denoising steps of a history that the model films itself."""


@dataclass(frozen=True)
class WeaverSettings(FlowLoraSettings):
    """A run. Defaults are for a real base (docs/methods/filmweaver.md).

    `first_steps` updates of stage 1 under `first`, `steps` of stage 2 under `second`, `rollout_steps` of stage 3, in
    which a history is the model's own with probability `rollout_share`. The samples of one pass are of one mode and
    size. subject_weight: how much more than scenery the subjects weigh in the loss, where scenes say where they are; 0
    is the paper's.
    """

    profile: LayoutProfile = setting(FILMWEAVER)
    first: Curriculum = setting(Curriculum(modes=TEMPORAL_ONLY))
    second: Curriculum = setting(Curriculum())
    rank: int = again(
        LoraSettings, "rank", 128,
        tooltip="Size of the LoRA; its alpha is the same. More: learns more, takes more memory and disk. 16 for the "
        "miniature.",
    )  # fmt: skip
    layers: str = again(
        LoraSettings, "layers", WAN_SELF_ATTENTION, advanced=False,
        choices={"self-attention": WAN_SELF_ATTENTION, "all": WAN_LAYERS},
        tooltip="What is adapted. all: learns more, takes more memory; for the miniature.",
    )  # fmt: skip
    first_steps: int = setting(
        10_000, help="updates with the temporal cache alone", low=0, high=1_000_000,
        tooltip="Updates of stage 1, which knows the frames before only. More: motion goes on better. 10000 as "
        "published, 400 for the miniature.",
    )  # fmt: skip
    steps: int = again(
        LoraSettings, "steps", 10_000, help="updates with all four modes", low=0, high=1_000_000,
        tooltip="Updates of stage 2, with keyframes too. More: looks are held better across cuts. 10000 as published, "
        "1600 for the miniature. A higher number goes on with a finished run.",
    )  # fmt: skip
    rollout_steps: int = setting(
        0, help="updates with histories of the model's own", low=0, high=1_000_000, advanced=True,
        tooltip="Updates of stage 3, in which histories are the model's own. More: its errors add up less in long "
        "shots. Slower by half.",
    )  # fmt: skip
    rollout_share: float = setting(0.5)
    batch: int = again(
        LoraSettings, "batch", 16, tooltip="Samples in an update. More: steadier and slower. 8 for the miniature."
    )
    micro_batch: int = again(
        LoraSettings, "micro_batch", 1, widget="samples_at_once",
        tooltip="Samples in a pass, of one kind. More: faster, takes more memory.",
    )  # fmt: skip
    lr: float = again(
        LoraSettings, "lr", 1e-4,
        tooltip="Learning rate. More: faster, until it breaks. 0.001 for the miniature.",
    )  # fmt: skip
    warmup: int = again(
        LoraSettings, "warmup", 500,
        tooltip="Updates until the full rate. More: a gentler start. 50 for the miniature.",
    )  # fmt: skip
    subject_weight: float = setting(
        0.0, aliases=("subject",), help="how much more than scenery subjects weigh, where scenes say where they are"
    )
    save_every: int = again(LoraSettings, "save_every", 500)
    sample_every: int = again(LoraSettings, "sample_every", 500)

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


PAPER = WeaverSettings()
MINIATURE = WeaverSettings(
    profile=LayoutProfile(time_mode="own"), rank=16, layers=WAN_LAYERS, first_steps=400, steps=1600, batch=8,
    micro_batch=4, lr=1e-3, muon_lr=2e-3, warmup=50, final_lr_ratio=0.1, ema_decay=0.99, subject_weight=4.0,
    checkpointing=False,
)  # fmt: skip


class WeaverMatcher(FlowMatching):
    """A model that reads caches. empty: the encoded empty caption [L, D]; None: zeros. auxiliary: a further loss on its
    predictions.
    """

    def __init__(
        self,
        dit: nn.Module,
        profile: LayoutProfile,
        bf16: bool,
        empty: torch.Tensor | None = None,
        auxiliary: AuxiliaryLoss | None = None,
    ):
        super().__init__(dit, bf16)
        self.profile, self.auxiliary = profile, auxiliary
        width: Any = dit.text_dim
        self.empty = torch.zeros(1, width) if empty is None else empty

    def texts(self, texts: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """[B, L, D], shorter ones filled up with zeros as Wan's are; None is the empty caption."""
        rows = [self.empty if text is None else text for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device, self.dtype)

    def velocity(
        self, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, payloads: Sequence[Payload]
    ) -> torch.Tensor:
        """Predicted velocity [B, C, T, h, w], float32, of chunks at noise levels `sigma` [B]."""
        from ...host.wan.cache_tokens import payload_kwargs

        return self.network(x, sigma.to(self.device) * 1000, text, **payload_kwargs(self.profile, payloads))

    def loss(
        self, samples: Sequence[WeaverSample], sigma: torch.Tensor, noise: torch.Tensor, subject_weight: float = 0.0
    ) -> torch.Tensor:
        """Mean squared error of the velocity of the targets, known subjects weighing 1 + `subject_weight` times as
        much, plus the auxiliary loss on the predicted clean latents; samples of one pass (see `draw_pass`).
        """
        clean = torch.stack([sample.target for sample in samples]).to(self.device, torch.float32)
        text = self.texts([sample.text for sample in samples])
        payloads = [sample.payload for sample in samples if sample.payload is not None]
        noised = self.add_noise(clean, sigma, noise)
        v = self.velocity(noised, sigma, text, payloads)
        error = (v - (noise - clean)).square().mean(dim=1)
        value = weighted_mse(error, [one.subject for one in samples], subject_weight)
        if self.auxiliary:
            # neither text nor cache names the character: no label for the classifier
            told = [None if one.text is None or one.payload is None else one.shown for one in samples]
            value = value + self.auxiliary.loss(self.guess(noised, sigma, v), told)
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

        def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            v = self.velocity(x, sigma, text, payloads)
            return v if guidance == 1 else v + (guidance - 1) * (v - self.velocity(x, sigma, text, without))

        levels = SigmaRange(shift=shift).quantile(torch.linspace(1, 0, steps + 1)).tolist()
        again = None if renoise is None else lambda: torch.randn(noise.shape, generator=renoise)
        return self.denoise(noise.to(self.device, torch.float32), levels, predict, again)


def train_weaver(
    dit: nn.Module,
    scenes: Sequence[TrainingScene],
    settings: WeaverSettings,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    empty: torch.Tensor | None = None,
    start_from: Path | None = None,
    auxiliary: AuxiliaryLoss | None = None,
    sample: Callable[[int, WeaverMatcher], None] | None = None,
    tick: Callable[[int], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a LoRA for `dit` (as ComfyUI has it, on the device to train on; it stays as it is); returns the file.

    empty: the encoded empty caption [L, D]. start_from: a finished LoRA of the same layers and rank. auxiliary: a
    further loss, for scenes that say what they show. `sample(step, matcher)` is called every `settings.sample_every`
    steps with what has been learned so far, `tick(step)` before every step; either may stop the run. Of many
    processes (see training/core/loop.py) the first calls them and writes; each learns from a batch of its own.

    Raises LoraError: no scenes, a model that cannot take cache tokens, or a folder with another recipe's run;
    CacheError: the scenes are too short for a mode that is asked for; KeyboardInterrupt, ComfyUI's
    InterruptProcessingException: passed on, after everything is saved.
    """
    from comfy.model_management import InterruptProcessingException

    _check(dit, scenes, settings)
    tree, adapter = adapted(dit, settings, start_from)
    bf16 = uses_bf16(settings.precision, next(dit.parameters()).device)
    matcher = WeaverMatcher(tree, settings.profile, bf16, empty, auxiliary)
    several = processes().num_processes
    remember_settings(settings, folder, scenes=len(scenes), **weights_of(auxiliary))
    say = said_once(say)
    say(planned(dit, adapter, [_Pass(_largest(scenes, settings.profile))], settings, bf16))
    shared = {**metadata, **settings.profile.to_metadata(), "shift": f"{settings.shift:g}"}

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        return _update_loss(matcher, scenes, settings, draw // several, draw)

    look = None if sample is None else lambda step: sample(step, matcher)
    return run_training(
        _NAME, tree, adapter, loss_at, settings, folder, shared,
        sample=look, tick=tick, stops=(KeyboardInterrupt, InterruptProcessingException), say=say,
    )  # fmt: skip


def draw_pass(
    scenes: Sequence[TrainingScene], settings: WeaverSettings, step: int, name: str, count: int
) -> list[WeaverSample]:
    """`count` samples of one mode and size: what runs in one pass of update `step`. name: of the pass, its seed."""
    rng = random.Random(f"{settings.seed}/{name}")
    curriculum = settings.curriculum(step)
    first = draw_sample(scenes, rng, curriculum, settings.profile)
    return [first, *(draw_sample(scenes, rng, curriculum, settings.profile, first) for _ in range(count - 1))]


def _update_loss(
    matcher: WeaverMatcher, scenes: Sequence[TrainingScene], settings: WeaverSettings, step: int, draw: int
) -> tuple[torch.Tensor, Metrics]:
    """The mean loss of a batch, the `draw`-th of all; the gradients of all passes but the last are already there when
    this returns.
    """
    counts = [settings.micro_batch] * (settings.batch // settings.micro_batch)
    if rest := settings.batch % settings.micro_batch:
        counts.append(rest)
    levels = SigmaRange(shift=settings.shift).quantile(stratified(settings.batch)).split(counts)
    done = torch.zeros(())
    metrics: dict[str, float] = {}
    for number, (count, sigma) in enumerate(zip(counts, levels, strict=True)):
        samples = draw_pass(scenes, settings, step, f"{draw}/{number}", count)
        if settings.rolls_out(step):
            samples = roll_out_history(matcher, scenes, samples, settings, f"{draw}/{number}")
        noise = torch.randn(count, *samples[0].target.shape).to(matcher.device)
        loss = matcher.loss(samples, sigma, noise, settings.subject_weight) * (count / settings.batch)
        metrics[f"mode {samples[0].mode.value}"] = float(loss.detach()) * settings.batch / count
        if number == len(counts) - 1:
            return loss + done.to(loss), metrics
        loss.backward()
        done = done + loss.detach().to(done)
    raise AssertionError("unreachable: a batch has a pass")


def roll_out_history(
    matcher: WeaverMatcher,
    scenes: Sequence[TrainingScene],
    samples: list[WeaverSample],
    settings: WeaverSettings,
    name: str,
) -> list[WeaverSample]:
    """The samples, with probability `settings.rollout_share` with the newest frames of their histories filmed by the
    model itself, from what lies before them in the shot. Samples whose history is shorter than a chunk stay as they
    are.
    """
    profile, first = settings.profile, samples[0]
    rng = random.Random(f"{settings.seed}/{name}/own")
    if first.payload is None or first.history < profile.chunk or rng.random() >= settings.rollout_share:
        return samples
    before = [_taken(scenes, one, one.start - first.history, one.start - profile.chunk) for one in samples]
    told_before = [_told(scenes, frames, one, rng, settings) for frames, one in zip(before, samples, strict=True)]
    payloads = [payload for payload in told_before if payload is not None]
    texts = [one.text for one in samples]
    noise = torch.randn(len(samples), *first.target.shape)
    own = matcher.sample(texts, payloads, noise, steps=_OWN_STEPS, shift=settings.shift).cpu()
    return [
        replace(one, payload=_told(scenes, torch.cat([frames, filmed], dim=1), one, rng, settings))
        for frames, filmed, one in zip(before, own, samples, strict=True)
    ]


def _told(
    scenes: Sequence[TrainingScene],
    history: torch.Tensor,
    one: WeaverSample,
    rng: random.Random,
    settings: WeaverSettings,
) -> Payload | None:
    return sample_payload(scenes, history, one.keyframes, rng, settings.second, settings.profile)


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


def _check(dit: nn.Module, scenes: Sequence[TrainingScene], settings: WeaverSettings) -> None:
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
    if tuple(dit.patch_size) != settings.profile.patch:  # type: ignore[arg-type]
        raise LoraError(f"The model's patches are {list(dit.patch_size)} and the layout's "  # type: ignore[arg-type]
                        f"{list(settings.profile.patch)}: choose a profile for this model.")  # fmt: skip
    if not 1 <= settings.micro_batch <= settings.batch:
        raise LoraError(
            f"{settings.micro_batch} samples at once of a batch of {settings.batch}: choose 1 to the batch's size."
        )
