"""Teaching AID: adapters, DQFormer and text attention on a frozen Stable Video Diffusion, with EDM's loss.

The model runs by the same handlers as at inference (`host/svd/adapters.py`), so that what is trained is what films.
Values that the paper does not give are ours, after its nearest relatives (Seer, SimDA, This&That, SVD_Xtend).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...film.instruction.adapters import AidAdapter
from ...film.instruction.settings import AdapterSettings, ContextMode
from ..core.loop import Metrics
from ..core.lora import clone_sharing_weights
from ..core.objectives.denoiser import stratified
from ..core.objectives.edm import EDM
from ..core.run import remember_settings, run_training, uses_bf16
from ..core.settings import TrainSettings, again, setting
from ..core.trainable import ParamGroup, Trainable, write_tensors
from .data import AUGMENTATIONS, Example

__all__ = ["MINIATURE", "PAPER", "AidTrainable", "InstructionSettings", "Lesson", "held_out_loss", "train_adapter"]

HELD_OUT_SIGMAS = (0.2, 1.0, 4.0, 16.0)


@dataclass(frozen=True)
class InstructionSettings(TrainSettings):
    """An adapter's run.

    ratio: width of a layer over that of its adapters. context_mode, cross_rank: see AdapterSettings. k_max: known
    frames are drawn from 1..k_max. text_dropout, frames_dropout, both_dropout: shares of clips that lose their words,
    their frames (the picture in the words' branch, too), or both, for the passes of guidance. fallback: share of clips
    whose states are the instruction itself. known_weight: of the loss on known frames. p_mean, p_std: of ln sigma.
    """

    steps: int = again(
        TrainSettings, "steps", 6000, tooltip="Updates: 2000 for 50 to 100 clips, 6000 for 500. More: closer to the "
        "clips, and to their accidents.",
    )  # fmt: skip
    batch: int = again(TrainSettings, "batch", 8, tooltip="Clips of each update. More: steadier, slower.")
    micro_batch: int = again(
        TrainSettings, "micro_batch", 1, tooltip="Clips in one pass. More: faster, more memory; the result is the same."
    )
    lr: float = again(TrainSettings, "lr", 1e-4, tooltip="Learning rate. More: faster, until it breaks.")
    max_grad_norm: float = again(
        TrainSettings, "max_grad_norm", 1.0, tooltip="Longer gradients are cut to it. Less: calmer, slower training."
    )
    weight_decay: float = again(
        TrainSettings, "weight_decay", 0.01, tooltip="More keeps the adapter's weights smaller."
    )
    warmup: int = again(TrainSettings, "warmup", 200)
    final_lr_ratio: float = again(TrainSettings, "final_lr_ratio", 0.1)
    betas: tuple[float, float] = again(TrainSettings, "betas", (0.9, 0.999))
    save_every: int = again(TrainSettings, "save_every", 500)
    sample_every: int = again(
        TrainSettings, "sample_every", 500, tooltip="Steps between two measurements on held-out clips, with their own "
        "words and with another's. 0: never.",
    )  # fmt: skip
    ratio: int = setting(
        4, help="width of a layer over its adapters': 8 for fewer than 200 clips", low=1, high=32,
        tooltip="Width of a layer over its adapters'. More: smaller adapters. 8 for fewer than 200 clips.",
    )  # fmt: skip
    context_mode: ContextMode = setting(
        "decoupled", help="how the text attends", choices=("decoupled", "lora", "full"), advanced=True,
        tooltip="decoupled: beside the model's own attention, which stays as it was; best for few clips. full: in its "
        "place, tuned, as in the paper. lora: the same at low rank.",
    )  # fmt: skip
    cross_rank: int = setting(
        32, help="rank with context mode lora", low=1, high=256, advanced=True,
        tooltip="Size of the LoRA with context mode lora. More: it can learn more.",
    )  # fmt: skip
    k_max: int = setting(
        1, help="known frames are drawn from 1 to this", low=1, high=32,
        tooltip="Known frames are drawn from 1 to this. More: the adapter can go on from several frames.",
    )  # fmt: skip
    text_dropout: float = setting(0.05, help="share of clips without their words", low=0.0, high=0.5, advanced=True)
    frames_dropout: float = setting(0.05, help="share of clips without their frames", low=0.0, high=0.5, advanced=True)
    both_dropout: float = setting(0.05, help="share of clips without either", low=0.0, high=0.5, advanced=True)
    fallback: float = setting(
        0.1, help="share of clips whose states are the instruction itself", low=0.0, high=1.0, step=0.01, advanced=True,
        tooltip="Share of clips whose states are the instruction itself, as where no language model planned any.",
    )  # fmt: skip
    known_weight: float = setting(1.0, help="of the loss on known frames", low=0.0, high=1.0, advanced=True)
    p_mean: float = setting(0.7, help="mean of ln sigma")
    p_std: float = setting(1.6, help="standard deviation of ln sigma")


PAPER = InstructionSettings()
MINIATURE = InstructionSettings(steps=2000, batch=16, micro_batch=16, lr=1e-3, warmup=100, checkpointing=False)


class AidTrainable(Trainable):
    """An adapter in training; its file is the adapter's own, in bf16 or in its precision."""

    def __init__(self, adapter: AidAdapter, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.adapter, self.dtype = adapter.requires_grad_(True), dtype

    def groups(self) -> Sequence[ParamGroup]:
        """Biases, norms and queries do not decay; fully tuned cross-attention learns at a tenth."""
        slow, still, usual = [], [], []
        tuned = self.adapter.settings.context_mode == "full"
        for name, value in self.adapter.named_parameters():
            if tuned and name.startswith("cross."):
                slow.append(value)
            elif value.ndim == 1 or ".query_" in name or name.endswith("state_embed"):
                still.append(value)
            else:
                usual.append(value)
        parts = (
            ParamGroup(tuple(usual), muon=True),
            ParamGroup(tuple(still), weight_decay=0.0),
            ParamGroup(tuple(slow), 0.1),
        )
        return [group for group in parts if group.params]

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """The adapter's file; metadata: its notes."""
        tensors = {key: value.detach().to(self.dtype) for key, value in self.adapter.state_dict().items()}
        return write_tensors(path, tensors, self.adapter.settings.to_metadata(metadata))


class Lesson:
    """The loss of clips. base: ComfyUI's BaseModel, on its device; trainable: in training or not."""

    def __init__(self, model: Any, trainable: AidTrainable, settings: InstructionSettings, bf16: bool) -> None:
        from ...host.svd.adapters import Handlers, Strengths, install

        self.adapter, self.settings, self.base = trainable.adapter, settings, _differentiable_base(model.model)
        self.edm = EDM(
            self.base.diffusion_model, bf16, like="out.2.weight", p_mean=settings.p_mean, p_std=settings.p_std
        )
        self.patched = install(model, Handlers(self.adapter, Strengths(), recompute=settings.checkpointing))

    def loss(self, examples: Sequence[Example]) -> tuple[Tensor, Metrics]:
        """One pass over clips with random noise levels, dropouts and numbers of known frames."""
        settings, device = self.settings, self.edm.device
        sigma = self.edm.quantile(stratified(len(examples)))
        drops = torch.rand(len(examples)).tolist()
        text, frames = settings.text_dropout, settings.frames_dropout
        no_words = [r < text or text + frames <= r < text + frames + settings.both_dropout for r in drops]
        no_frames = [text <= r < text + frames + settings.both_dropout for r in drops]
        fallback = (torch.rand(len(examples)) < settings.fallback).tolist()
        counts = torch.randint(1, settings.k_max + 1, (len(examples),)).tolist()
        level = int(torch.randint(len(AUGMENTATIONS), ()))
        clean = torch.stack([example.latents for example in examples])
        noise = torch.randn(clean.shape)
        error = self.error(examples, clean, noise, sigma, counts, level, no_words, no_frames, fallback)
        weight = torch.ones(clean.shape[:2], device=device)
        for row, count in enumerate(counts):
            weight[row, :count] = settings.known_weight
        per_clip = (error.mean(dim=(2, 3, 4)) * weight).sum(1) / weight.sum(1)
        return per_clip.mean(), {"sigma": float(sigma.log().mean())}

    def error(
        self, examples: Sequence[Example], clean: Tensor, noise: Tensor, sigma: Tensor, counts: Sequence[int],
        level: int, no_words: Sequence[bool], no_frames: Sequence[bool], fallback: Sequence[bool],
    ) -> Tensor:  # fmt: skip
        """Squared errors [B, T, C, h, w] of the clean latents, weighed (sigma^2 + 1) / sigma^2."""
        device, frames = self.edm.device, clean.shape[1]
        clean, noise, sigma = clean.to(device), noise.to(device), sigma.to(device)
        x = self.edm.add_noise(clean, sigma, noise)
        shown = torch.stack([self._shown(*row) for row in zip(examples, counts, [level] * len(counts), no_frames)])
        token, context = self._context(examples, no_words, no_frames, fallback, frames)
        micro = self.base.encode_adm(
            fps=self.adapter.settings.fps,
            motion_bucket_id=self.adapter.settings.motion_bucket_id,
            augmentation_level=AUGMENTATIONS[level],
        )
        named: dict[str, Any] = {} if self.adapter.settings.time_context == "frame0" else {
            "time_context": token.repeat_interleave(frames, 0)
        }  # fmt: skip
        options = {**self.patched.model_options["transformer_options"], "wrappers": self.patched.wrappers}
        rows = sigma.repeat_interleave(frames)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.edm.autocast):
            denoised = self.base.apply_model(
                x.flatten(0, 1), rows, c_concat=shown.flatten(0, 1).to(device), c_crossattn=context.flatten(0, 1),
                y=micro.to(device).expand(len(rows), -1), num_video_frames=frames,
                transformer_options={**options, "sigmas": rows[:1]}, **named,
            )  # fmt: skip
        weight = (sigma**2 + 1) / sigma**2
        return (denoised.float().reshape(clean.shape) - clean).square() * weight.reshape(-1, 1, 1, 1, 1)

    def _shown(self, example: Example, count: int, level: int, dropped: bool) -> Tensor:
        """Rows [N, C or C + 1, h, w] beside the noise."""
        settings, frames = self.adapter.settings, len(example.latents)
        known = example.known[level, :count]
        fills = {"repeat": known[-1], "zero": torch.zeros_like(known[-1]), "grey": example.grey}
        shown = torch.cat([known, fills[settings.fill].expand(frames - count, -1, -1, -1)])
        mask = torch.zeros(frames, 1, *shown.shape[2:])
        mask[:count] = 1
        shown = torch.cat([shown, mask], dim=1) if settings.mask_channel else shown
        return torch.zeros_like(shown) if dropped else shown

    def _context(
        self, examples: Sequence[Example], no_words: Sequence[bool], no_frames: Sequence[bool],
        fallback: Sequence[bool], frames: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """SVD's token [B, 1, C] and the context [B, N, n, C] of every frame."""
        device, settings = self.edm.device, self.adapter.settings

        def stacked(rows: Sequence[Tensor], dropped: Sequence[bool]) -> Tensor:
            kept = [torch.zeros_like(row) if drop else row for row, drop in zip(rows, dropped)]
            return torch.stack(kept).to(device)

        token = stacked([example.token for example in examples], no_frames)
        if self.adapter.dqformer is None:
            return token, token[:, None].expand(-1, frames, -1, -1)
        words = [example.empty if drop else example.text for example, drop in zip(examples, no_words)]
        states = [
            word[None].expand_as(example.states) if drop or plain else example.states
            for example, word, drop, plain in zip(examples, words, no_words, fallback)
        ]
        patches = stacked([example.patches for example in examples], no_frames)
        rows = self.adapter.dqformer(torch.stack(words).to(device), patches, torch.stack(states).to(device), frames)
        both = torch.tensor([a and b for a, b in zip(no_words, no_frames)], device=device)
        rows = rows * ~both.reshape(-1, 1, 1, 1)  # the pass without both has zeros, as SVD's own
        if settings.context_mode != "decoupled":
            return token, rows
        return token, torch.cat([token[:, None].expand(-1, frames, -1, -1), rows], dim=2)


def _differentiable_base(base: Any) -> Any:
    """ComfyUI's BaseModel with a UNet that autograd takes, see clone_sharing_weights; `base` stays as it is."""
    taken = copy.copy(base)
    taken._modules = dict(base._modules)
    taken.diffusion_model = clone_sharing_weights(base.diffusion_model)
    return taken


@torch.no_grad()
def held_out_loss(lesson: Lesson, examples: Sequence[Example], swapped: bool = False) -> dict[str, float]:
    """Losses at fixed noise levels and fixed noise; swapped: each clip with the words of the next, which it should not
    fit."""
    generator = torch.Generator().manual_seed(0)
    count = len(examples)
    told = [
        replace(one, text=other.text, states=other.states) if swapped else one
        for one, other in zip(examples, [*examples[1:], *examples[:1]])
    ]
    clean = torch.stack([example.latents for example in examples])
    noise = torch.randn(clean.shape, generator=generator)
    no = [False] * count
    return {
        f"{sigma:g}": float(
            lesson.error(told, clean, noise, torch.full((count,), sigma), [1] * count, 0, no, no, no).mean()
        )
        for sigma in HELD_OUT_SIGMAS
    }


def loss_over(
    lesson: Lesson, examples: Sequence[Example], settings: TrainSettings
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """The loss of a draw: `batch` random examples, `micro_batch` of them in one pass."""

    def loss_at(draw: int) -> tuple[Tensor, Metrics]:
        chosen = torch.randint(len(examples), (settings.batch,)).tolist()
        losses = []
        for first in range(0, settings.batch, settings.micro_batch):
            part = chosen[first : first + settings.micro_batch]
            loss, told = lesson.loss([examples[number] for number in part])
            losses.append(loss * len(part) / settings.batch)
        return torch.stack(losses).sum(), told

    return loss_at


def train_adapter(
    model: Any,
    architecture: AdapterSettings,
    examples: Sequence[Example],
    settings: InstructionSettings,
    folder: Path,
    *,
    held_out: Sequence[Example] = (),
    notes: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train an adapter, or go on where a run in `folder` stopped; returns its file.

    model: Stable Video Diffusion, on its device. The losses of held-out clips, with their own words and with another's,
    go into held-out.jsonl.
    """
    from ...host.svd.adapters import begin_cross

    folder.mkdir(parents=True, exist_ok=True)
    remember_settings(settings, folder, architecture=architecture.to_metadata())
    unet = model.model.diffusion_model
    bf16 = uses_bf16(settings.precision, next(unet.parameters()).device)
    adapter = AidAdapter(architecture, torch.nn)
    empty = examples[0].empty
    fits = empty.shape == (architecture.tokens_per_frame, architecture.context_dim)
    adapter.initialise(torch.Generator().manual_seed(settings.seed), empty if fits else None)
    begin_cross(adapter, unet)
    adapter = adapter.to(next(unet.parameters()).device, torch.float32)
    trainable = AidTrainable(adapter, torch.bfloat16 if bf16 else torch.float32)
    lesson = Lesson(model, trainable, settings, bf16)

    def sample(step: int) -> None:
        own, other = held_out_loss(lesson, held_out), held_out_loss(lesson, held_out, swapped=True)
        row = {"step": step, "loss": own["1"], "own": own, "swapped": other}
        with (folder / "held-out.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        say(f"step {step}: held-out loss {own['1']:.4f}, with another's words {other['1']:.4f}")

    told = {"dataset": f"{len(examples)} clips", **(notes or {})}
    return run_training(
        "instruction-adapter", adapter, trainable, loss_over(lesson, examples, settings), settings, folder, told,
        sample=sample if held_out else None, say=say,
    )  # fmt: skip
