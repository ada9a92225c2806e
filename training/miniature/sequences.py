"""Training sequences of the miniature's DiT: clean and noisy latent frames, laid out as in a rollout.

A training sequence is a list of latent frames, each clean (noise level 0, as the rollout's memory holds them) or noisy
(what is learned), with an attention mask between frames. Six layouts are mixed:

* opening: the first block of a take alone, many takes in a batch: what the words mean is learned here;
* clip: a whole take, every frame at the same noise level, without a mask (text to video, image to video);
* cut: a whole take after one clean frame of an earlier one, as a film's clip that begins just before a cut;
* start: a take from its first block on; noisy blocks attend to the clean sink, the clean window and themselves;
* middle: the same from the middle of a take whose sink lies any distance back;
* story: a new take after a cut; it attends to the film's first block and remembered ones of an earlier take only.

Clean frames attend to what a rollout's clean pass attends to. Their latents carry a little noise, so that a long
rollout forgives its own errors (the cure of drift that needs no rollout in training).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from functools import cache

import torch

from .latents import LATENTS, Stories

BLOCK = 3
SINK = 3
WINDOW = 12
"""Frames of a rollout's memory: a block, the sink, and the newest frames with sink and current block counted
(MemFlow's values).
"""
CONTEXT_NOISE = 0.15
_OPENINGS = 7
_CHARACTER_WEIGHT = 4.0


@dataclass(frozen=True)
class Layout:
    """F frames of one training sequence.

    `take` and `frame` say which latent frame of a story it is, `position` its place on the film's time axis, `noisy`
    whether it is learned, `fixed` whether its caption stays as it was, `attention_mask` [F, F] the attention mask,
    `noisy_index` where a clean frame stands a second time, as a noisy one (-1: nowhere).
    """

    take: torch.Tensor
    frame: torch.Tensor
    position: torch.Tensor
    noisy: torch.Tensor
    fixed: torch.Tensor
    attention_mask: torch.Tensor
    noisy_index: torch.Tensor


@dataclass(frozen=True)
class _Block:
    take: int
    first: int
    position: int
    role: str  # "sink", "bank", "past" or "noisy"


def _blocks_layout(blocks: list[_Block]) -> Layout:
    """The attention mask of a rollout: sink, first frames of bank blocks, the window's newest frames, and the own
    block.
    """
    take, frame, position, role, owner = [], [], [], [], []
    for index, block in enumerate(blocks):
        for offset in range(BLOCK):
            take.append(block.take)
            frame.append(block.first + offset)
            position.append(block.position + offset)
            role.append(block.role)
            owner.append(index)
    count = len(frame)
    attention_mask = torch.zeros(count, count, dtype=torch.bool)
    reach = WINDOW - SINK - BLOCK
    for q in range(count):
        me = blocks[owner[q]]
        for k in range(count):
            other = blocks[owner[k]]
            if owner[q] == owner[k]:
                attention_mask[q, k] = True
            elif other.role == "noisy" or other.position >= me.position:
                continue
            elif other.role == "sink":
                attention_mask[q, k] = True
            elif other.role == "bank":
                attention_mask[q, k] = frame[k] == other.first and me.role != "bank"
            else:
                attention_mask[q, k] = me.take == other.take and me.position - position[k] <= reach
    noisy = {(take[k], frame[k]): k for k in range(count) if role[k] == "noisy"}
    return Layout(
        torch.tensor(take),
        torch.tensor(frame),
        torch.tensor(position),
        torch.tensor([r == "noisy" for r in role]),
        torch.tensor([r in ("sink", "bank") for r in role]),
        attention_mask,
        torch.tensor([-1 if role[k] == "noisy" else noisy.get((take[k], frame[k]), -1) for k in range(count)]),
    )


def _distance(rng: random.Random) -> int:
    """How far back the sink lies beyond what the sequence shows: often 0, up to about 3,000 latent frames."""
    return 0 if rng.random() < 0.4 else BLOCK * int(math.exp(rng.uniform(0, math.log(1000))))


def draw_layout(rng: random.Random) -> tuple[str, Layout]:
    """One of the six layouts, with the share of steps that each gets."""
    kinds = ("opening", "clip", "cut", "start", "middle", "story")
    kind = rng.choices(kinds, (0.25, 0.05, 0.1, 0.25, 0.15, 0.2))[0]
    if kind in ("opening", "clip"):
        count = BLOCK if kind == "opening" else LATENTS
        every = torch.arange(count)
        alike = torch.zeros_like(every)
        yes = torch.ones(count, dtype=torch.bool)
        return kind, Layout(alike, every, every, yes, ~yes, torch.ones(count, count, dtype=torch.bool), alike - 1)
    if kind == "cut":
        every = torch.arange(LATENTS)
        frame = (every - 1).clamp(min=0)
        frame[0] = 0 if rng.random() < 0.6 else rng.randrange(LATENTS)
        yes = torch.ones(LATENTS, LATENTS, dtype=torch.bool)
        nowhere = torch.full_like(every, -1)
        return kind, Layout((every > 0).long(), frame, every, every > 0, every < 0, yes, nowhere)
    if kind == "start":
        clean = [_Block(0, f, f, "sink" if f == 0 else "past") for f in range(0, 12, BLOCK)]
        noisy = [_Block(0, f, f, "noisy") for f in range(0, 15, BLOCK)]
        return kind, _blocks_layout(clean + noisy)
    if kind == "middle":
        first = BLOCK * rng.randint(1, 2)
        gap = _distance(rng)
        clean = [_Block(0, f, f + gap, "past") for f in range(first, first + 12, BLOCK)]
        noisy = [_Block(0, f, f + gap, "noisy") for f in range(first + 6, first + 15, BLOCK)]
        return kind, _blocks_layout([_Block(0, 0, 0, "sink"), *clean, *noisy])
    gap = LATENTS + _distance(rng)
    bank = [_Block(0, f, f, "bank") for f in sorted(rng.sample(range(BLOCK, LATENTS, BLOCK), rng.randint(0, 2)))]
    clean = [_Block(1, f, f + gap, "past") for f in range(0, 9, BLOCK)]
    noisy = [_Block(1, f, f + gap, "noisy") for f in range(0, 12, BLOCK)]
    return kind, _blocks_layout([_Block(0, 0, 0, "sink"), *bank, *clean, *noisy])


FEW_STEPS = (1.0, 0.9375, 0.8333, 0.625)
"""The noise levels at which a film is made in four steps."""


def noise_levels(shape: tuple[int, ...], few: float = 0.4) -> torch.Tensor:
    """`few` of them are those of four-step sampling, the others are drawn with shift 5."""
    u = torch.rand(shape)
    spread = torch.where(torch.rand(shape) < 0.75, 5 * u / (1 + 4 * u), u)
    return mix_few_step_sigmas(spread, few)


def mix_few_step_sigmas(levels: torch.Tensor, share: float) -> torch.Tensor:
    """`levels` of which a `share` are those of four-step sampling."""
    device = levels.device
    among = torch.rand(levels.shape, device=device) < share
    return torch.where(among, _few_steps(device)[torch.randint(len(FEW_STEPS), levels.shape, device=device)], levels)


@cache
def _few_steps(device: torch.device) -> torch.Tensor:
    """`FEW_STEPS` on a device, sent there once: a GPU would be waited for."""
    return torch.tensor(FEW_STEPS, device=device)


@dataclass(frozen=True)
class Batch:
    """A training batch in the shape `predict` takes, with the clean latents, the noise and the loss weights.

    `resolved_tokens` is `tokens` with every character named where these have "the same character", `noisy_index` as in
    `Layout`.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor
    resolved_tokens: torch.Tensor
    caption: torch.Tensor
    position: torch.Tensor
    attention_mask: torch.Tensor
    noisy_index: torch.Tensor

    def noised(self) -> torch.Tensor:
        sigma = self.sigma[:, None, :, None, None]
        return (1 - sigma) * self.clean + sigma * self.noise

    def to(self, device: torch.device) -> Batch:
        return Batch(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


def draw_batch(stories: Stories, openings: Stories, rng: random.Random, size: int) -> tuple[str, Batch]:
    """A batch of one layout: `size` sequences of `stories`, or as many frames of `openings`. Uses torch's global
    generator for noise.
    """
    kind, layout = draw_layout(rng)
    if kind == "opening":
        stories, size = openings, size * _OPENINGS
    count = len(layout.frame)
    takes = stories.latents.shape[1]
    chosen = torch.tensor([rng.randrange(len(stories)) for _ in range(size)])
    order = torch.tensor([rng.randrange(takes) for _ in range(size)])[:, None] ^ layout.take[None]
    frame = layout.frame[None].expand(size, -1)
    clean = stories.latents[chosen[:, None], order, :, frame].float().transpose(1, 2)
    weight = (1 + _CHARACTER_WEIGHT * stories.weights[chosen[:, None], order, frame].float())[:, None]

    # Noisy blocks have a level each, whole clips one; clean frames are at 0.
    whole = kind in ("opening", "clip", "cut")
    groups = torch.zeros(count, dtype=torch.long) if whole else torch.arange(count) // BLOCK
    sigma = noise_levels((size, int(groups.max()) + 1))[:, groups] * layout.noisy
    if kind in ("clip", "start"):
        given = torch.rand(size) < 0.15
        index = 0 if kind == "clip" else int(layout.noisy.nonzero()[0])
        sigma[given, index] = 0
        weight[given, :, index] = 0
    weight = weight * layout.noisy[None, None, :, None, None]
    context_noise = CONTEXT_NOISE * torch.rand(size, 1, 1, 1, 1) * (torch.rand(size, 1, 1, 1, 1) < 0.8)
    clean = torch.where(layout.noisy[None, None, :, None, None], clean, clean + context_noise * torch.randn_like(clean))

    # Two captions a sequence: before and after the change of action; after a cut the earlier take's as well, and the
    # new take's may say "the same character".
    change = stories.change[chosen[:, None], order]
    caption = (frame >= change).long()
    if kind in ("story", "cut"):
        second = order[:, -1]
        says_same = (torch.rand(size) < 0.6).long() * 2
        tokens = torch.stack(
            [stories.tokens[chosen, 1 - second, 0], stories.tokens[chosen, second, says_same],
             stories.tokens[chosen, second, 1]], dim=1)  # fmt: skip
        resolved_tokens = tokens.clone()
        resolved_tokens[:, 1] = stories.tokens[chosen, second, 0]
        caption = torch.where(layout.take[None] == 0, torch.zeros_like(caption), 1 + caption)
        if kind == "cut":  # a clip has one caption for all of it
            caption[:, 0] = caption[:, 1]
    else:
        tokens = resolved_tokens = stories.tokens[chosen, order[:, 0]][:, : 1 if kind == "opening" else 2]
        recached = (torch.rand(size, 1) < 0.3) & ~layout.fixed[None] & ~layout.noisy[None]
        caption = torch.where(recached, caption[:, -1:], caption)
    position = layout.position[None].expand(size, -1)
    noise = torch.randn_like(clean)
    return kind, Batch(
        clean,
        noise,
        sigma,
        weight,
        tokens,
        resolved_tokens,
        caption,
        position,
        layout.attention_mask,
        layout.noisy_index,
    )
