"""Few-shot LoRA on an image-to-video Wan: flow matching inside one band of noise, on the shared loop.

A run's folder holds `lora.ckpt` (to resume), `lora.jsonl` and `loss.png` (its curve), `recipe.json`,
`step-<n>.safetensors` now and then, and in the end `lora.safetensors` with averaged weights. KeyboardInterrupt saves
and stops; the same call goes on, on a CPU to the bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core.auxiliary import AuxiliaryLoss
from ..core.loop import Metrics
from ..core.lora import WAN_LAYERS, LoraError
from ..core.objectives.denoiser import stratified
from ..core.objectives.flow_matching import Expert, SigmaRange
from ..core.run import adapted, planned, remember_settings, run_training, said_once, uses_bf16
from ..core.settings import FlowLoraSettings, LoraSettings, again, setting
from ..miniature.auxiliary import weights_of
from ..miniature.sequences import FEW_STEPS, mix_few_step_sigmas
from .matcher import Example, FirstFrameMatcher, first_frame_of
from .prior_preservation import PriorPreservation

_NAME = "lora"


@dataclass(frozen=True)
class FirstFrameSettings(FlowLoraSettings):
    """A run. Defaults are FFGo's for one expert of Wan 2.2 I2V A14B (docs/methods/ffgo.md, training).

    expert, boundary: which noise levels of a high/low-noise pair are trained. subject_weight: how much more than
    scenery the cast weighs in the loss, where examples say where it is; 0 is the paper's. few_step_rate,
    self_rollout_rate: for bases made for few steps; the share of examples at the noise levels of four-step sampling,
    and the share of updates that go on denoising what four-step sampling has denoised so far. prior_weight: the share
    of updates that hold ordinary prompts where the base has them (see prior_preservation.py).
    """

    expert: Expert = setting(
        "both", help="of a high/low-noise pair", choices=("both", "high", "low"),
        tooltip="Which noise is learned. high, low: for that model of a Wan 2.2 pair. both: one model that does all.",
    )  # fmt: skip
    boundary: float = setting(
        0.9, help="noise level at which experts change", low=0.01, high=0.99, step=0.005, advanced=True,
        tooltip="For high and low: the noise level at which experts take turns. More: the low one learns more of it.",
    )  # fmt: skip
    steps: int = again(
        LoraSettings, "steps", 600,
        tooltip="Updates. More: looks are held better, until clips are learned by heart. 600 as published; a higher "
        "number goes on with a finished run.",
    )  # fmt: skip
    rank: int = again(
        LoraSettings, "rank", 128,
        tooltip="Size of the LoRA; its alpha is the same. More: learns more, takes more memory and disk. 128 as "
        "published, 16 for the miniature.",
    )  # fmt: skip
    lr: float = again(
        LoraSettings, "lr", 1e-4,
        tooltip="Learning rate. More: faster, until it breaks. 0.0001 as published, 0.001 for the miniature.",
    )  # fmt: skip
    batch: int = again(
        LoraSettings, "batch", 4, high=64, tooltip="Clips in an update. More: steadier and slower. 4 as published."
    )
    micro_batch: int = again(
        LoraSettings, "micro_batch", 1, high=64, widget="clips_at_once",
        tooltip="Clips in a pass. More: faster, takes more memory; learns the same.",
    )  # fmt: skip
    max_grad_norm: float = again(
        LoraSettings, "max_grad_norm", 0.05,
        tooltip="Largest norm of a gradient. Less: bad clips harm less, learning is slower. 0.05 as published, 1 for "
        "the miniature.",
    )  # fmt: skip
    weight_decay: float = again(LoraSettings, "weight_decay", 0.03, tooltip="More keeps the LoRA smaller.")
    ema_decay: float = again(LoraSettings, "ema_decay", 0.99)
    dropout: float = again(
        LoraSettings, "dropout", 0.0,
        tooltip="Share of each LoRA layer's inputs left out. More: less is learned by heart, slower.",
    )  # fmt: skip
    layers: str = again(
        LoraSettings, "layers", WAN_LAYERS,
        tooltip="Regular expression on names of layers: what is adapted. Fewer: less memory and less learned. As "
        "published: every linear layer of the blocks and the time projection.",
    )  # fmt: skip
    subject_weight: float = setting(
        0.0, aliases=("subject",), help="how much more than scenery the cast weighs, where the dataset says where it is"
    )
    few_step_rate: float = setting(
        0.0, aliases=("few",), help="share of examples at the noise levels of four-step sampling"
    )
    self_rollout_rate: float = setting(
        0.0, aliases=("own_steps",), help="share of updates that go on from own steps of four-step sampling"
    )
    prior_weight: float = setting(
        0.0, aliases=("keep",), help="miniature only: share of updates that hold ordinary prompts where the base has "
        "them",
    )  # fmt: skip
    seed: int = again(
        LoraSettings, "seed", 0, node={"control_after_generate": "fixed"},
        tooltip="Another number is another run, under another name.",
    )  # fmt: skip

    @property
    def band(self) -> SigmaRange:
        """The noise levels of the expert."""
        return SigmaRange.of(self.expert, self.boundary, self.shift)


PAPER = FirstFrameSettings()
MINIATURE = FirstFrameSettings(
    rank=16, lr=1e-3, muon_lr=2e-3, final_lr_ratio=0.05, max_grad_norm=1.0, micro_batch=4, checkpointing=False,
    subject_weight=9.0, few_step_rate=0.5, self_rollout_rate=0.25, prior_weight=0.25,
)  # fmt: skip


def train_lora(
    dit: nn.Module,
    examples: Sequence[Example],
    settings: FirstFrameSettings,
    folder: Path,
    metadata: Mapping[str, str],
    *,
    auxiliary: AuxiliaryLoss | None = None,
    prior_texts: torch.Tensor | None = None,
    start_from: Path | None = None,
    sample: Callable[[int, FirstFrameMatcher], None] | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a LoRA for `dit` (as ComfyUI has it, on the device to train on; it stays as it is); returns the file.

    `sample(step, matcher)` is called every `settings.sample_every` steps with what has been learned so far and may stop
    the run. Of many processes (see training/core/loop.py) the first calls it and writes; each learns from a batch of
    its own. auxiliary: a further loss. prior_texts: encoded prompts [N, L, D] for `settings.prior_weight`.
    start_from: a finished LoRA of the same layers and rank.

    Raises LoraError: no examples, a model that cannot be given a first frame, a folder with another recipe's run, or
    prior prompts that are missing or of a model that always wants a first frame; KeyboardInterrupt: passed on,
    after everything is saved.
    """
    if not examples:
        raise LoraError("There is nothing to learn from: build a dataset with at least one clip.")
    first_frame = first_frame_of(dit, examples[0].latents.shape[0])
    device = next(dit.parameters()).device
    bf16 = uses_bf16(settings.precision, device)
    prior = None
    if settings.prior_weight:
        if prior_texts is None or first_frame == "concat":
            raise LoraError("Only a model that films without a first frame, too, can keep how it does so, "
                            "and it needs prompts: leave out what is to be kept.")  # fmt: skip
        channels, _, height, width = examples[0].latents.shape
        prior = PriorPreservation(FirstFrameMatcher(dit, first_frame, bf16), prior_texts, (channels, height, width))
    tree, adapter = adapted(dit, settings, start_from)
    matcher = FirstFrameMatcher(tree, first_frame, bf16, auxiliary)
    remember_settings(settings, folder, examples=len(examples), **weights_of(auxiliary))
    say = said_once(say)
    say(planned(dit, adapter, examples, settings, bf16))
    shared = {**metadata, "expert": settings.expert, "shift": f"{settings.band.shift:g}",
              "sigma_low": f"{settings.band.low:g}", "sigma_high": f"{settings.band.high:g}"}  # fmt: skip

    def loss_at(draw: int) -> tuple[torch.Tensor, Metrics]:
        if prior and float(torch.rand(())) < settings.prior_weight:
            value = prior.loss(matcher)
            return value, {"kept": float(value.detach())}
        return _batch_loss(matcher, draw_examples(examples, settings, draw), settings)

    look = None if sample is None else lambda step: sample(step, matcher)
    return run_training(_NAME, tree, adapter, loss_at, settings, folder, shared, sample=look, say=say)


def draw_examples(examples: Sequence[Example], settings: FirstFrameSettings, draw: int) -> list[Example]:
    """The examples of a draw: every clip once, in a new order and the next of its ways, before any comes again."""
    clips: dict[int, list[Example]] = {}
    for index, example in enumerate(examples):
        clips.setdefault(-1 - index if example.clip is None else example.clip, []).append(example)
    ways, drawn = list(clips.values()), []
    for place in range(draw * settings.batch, (draw + 1) * settings.batch):
        turn, index = divmod(place, len(ways))
        chosen = random.Random(f"{settings.seed}/{turn}").sample(range(len(ways)), len(ways))[index]
        drawn.append(ways[chosen][(turn + chosen) % len(ways[chosen])])
    return drawn


def _batch_loss(
    matcher: FirstFrameMatcher, batch: list[Example], settings: FirstFrameSettings
) -> tuple[torch.Tensor, Metrics]:
    """The mean loss of a batch; the gradients of all passes but the last are already there when this returns."""
    sigma = settings.band.quantile(stratified(len(batch)))
    if settings.few_step_rate:
        sigma = mix_few_step_sigmas(sigma, settings.few_step_rate)
    noise = [torch.randn(example.latents.shape) for example in batch]
    done = int(torch.randint(1, len(FEW_STEPS), ())) if float(torch.rand(())) < settings.self_rollout_rate else 0

    def loss_of(part: list[int]) -> torch.Tensor:
        examples = [batch[index] for index in part]
        if done:
            loss = matcher.self_rollout_loss(examples, done, settings.subject_weight)
        else:
            chosen = torch.stack([noise[index] for index in part]).to(matcher.device)
            loss = matcher.loss(examples, sigma[part], chosen, settings.subject_weight)
        return loss * (len(part) / len(batch))

    *earlier, last = _passes(batch, settings.micro_batch)
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
