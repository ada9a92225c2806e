"""Training sequences out of long takes, drawn on the device that trains: the layouts of a rollout, far from its start,
too.

Seven layouts are mixed. `opening`, `clip`, `cut`, `start` and `story` are those of `training.miniature.sequences`
(clips also begin in the middle of takes, cuts also lie inside a VAE's chunk). Two are of long takes:

* far: any place of a take, with sink, bank and window before it; positions as far on as films go;
* switch: the first blocks after a change of prompt, as a rollout makes them: the window's nine frames once more
  under the new prompt, attending to one another, then blocks that attend to what the window keeps of them.

Clean frames are the takes' own, with a little noise, or what the model itself has made of them (`take_films`).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import torch

from ...miniature.world import FPS
from .sequences import CONTEXT_NOISE, Batch, mix_few_step_sigmas
from .takes import BLOCK, PROMPTS, Footage, Takes

KINDS = {"opening": 0.14, "clip": 0.05, "cut": 0.08, "start": 0.2, "far": 0.28, "switch": 0.13, "story": 0.12}
"""The share of steps that each layout gets."""
_OPENINGS = 7
_CHARACTER_WEIGHT = 4.0
_REACH = 2
"""Blocks of the window before the one that is filmed: with sink and block they are MemFlow's twelve frames."""
_RECACHED = 3
_FARTHEST = 900
"""Blocks, some eleven minutes."""


@dataclass(frozen=True)
class Pattern:
    """The blocks of a layout: `role` "sink", "bank", "again" (recached), "past" or "noisy", and `time`, which block
    of its take it is, counted from the layout's first; of sink and bank it says nothing but that they are earlier.
    """

    role: str
    time: int


def frames_seen(blocks: tuple[Pattern, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention mask [C, C], and where a clean frame stands a second time as a noisy one ([C], -1: nowhere)."""
    count = len(blocks) * BLOCK
    attention_mask = torch.zeros(count, count, dtype=torch.bool)
    noisy_index = torch.full((count,), -1)
    for q, me in enumerate(blocks):
        rows = slice(q * BLOCK, (q + 1) * BLOCK)
        for k, other in enumerate(blocks):
            first = k * BLOCK
            if q == k or _sees(me, other):
                attention_mask[rows, first : first + (1 if other.role == "bank" and q != k else BLOCK)] = True
            if other.role == "noisy" and me.role != "noisy" and me.time == other.time:
                noisy_index[rows] = torch.arange(first, first + BLOCK)
    return attention_mask, noisy_index


def _sees(me: Pattern, other: Pattern) -> bool:
    if other.role == "noisy" or me.role == "sink":
        return False
    if other.role == "sink":
        return me.time > other.time
    if me.role == "bank" or other.role == "bank":
        return me.role != "bank"
    if me.role == other.role == "again":
        return True
    return 0 < me.time - other.time <= _REACH


@cache
def pattern(kind: str, bank: int) -> tuple[Pattern, ...]:
    """The blocks of a `kind` of layout with `bank` remembered frames."""
    lead = [Pattern("sink", -100), *[Pattern("bank", -50 + i) for i in range(bank)]]
    if kind == "start":
        blocks = [Pattern("sink", 0), *_row("past", 1, 4), *_row("noisy", 0, 5)]
    elif kind == "far":
        blocks = [*lead, *_row("past", 0, 4), *_row("noisy", 2, 5)]
    elif kind == "switch":
        blocks = [*lead, *_row("again", 0, _RECACHED), *_row("past", 3, 5), *_row("noisy", 3, 6)]
    else:
        blocks = [*lead, *_row("past", 0, 3), *_row("noisy", 0, 4)]
    return tuple(blocks)


def _row(role: str, first: int, end: int) -> list[Pattern]:
    return [Pattern(role, time) for time in range(first, end)]


def draw_levels(size: int, groups: int, device: torch.device, few: float = 0.4) -> torch.Tensor:
    """Noise levels [size, groups], as `sequences.noise_levels` has them, drawn on the device."""
    u = torch.rand(size, groups, device=device)
    spread = torch.where(torch.rand(size, groups, device=device) < 0.75, 5 * u / (1 + 4 * u), u)
    return mix_few_step_sigmas(spread, few)


class TakeSequences:
    """Batches out of `footage`. own: what the model has made of the takes, [N, 16, F, h, w] bfloat16, with `refilmed`,
    the takes of which it has already (both are written to by `take_films.refilm`); own_share: of the sequences that
    have it in place of the takes.
    """

    def __init__(self, footage: Footage, own_share: float = 0.6):
        self.footage, self.own_share = footage, own_share
        self.device = footage.takes.latents.device
        self.own = footage.takes.latents.clone()
        self.refilmed: set[int] = set()
        self._patterns: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.switches = [
            [round((beat.at * FPS + 3) / (4 * BLOCK)) for beat in scene.beats[1:]] for scene in footage.scenes
        ]

    def draw(self, rng: random.Random, size: int, kind: str | None = None) -> tuple[str, Batch]:
        """A batch of one layout: `size` sequences, of openings seven times as many. Noise is of torch's global
        generators.
        """
        kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "opening":
            return kind, self._whole(self.footage.openings, rng, size * _OPENINGS, BLOCK, kind)
        if kind == "clip":
            return kind, self._whole(self.footage.takes, rng, size, self.footage.spliced.frames, kind)
        if kind == "cut":
            return kind, self._cut(rng, size)
        return kind, self._rollout(rng, size, kind)

    # Whole clips: all frames at one noise level

    def _whole(self, takes: Takes, rng: random.Random, size: int, frames: int, kind: str) -> Batch:
        chosen = [rng.randrange(len(takes)) for _ in range(size)]
        latest = (takes.frames - frames) // BLOCK
        start = [0 if rng.random() < 0.6 else BLOCK * rng.randint(0, latest) for _ in chosen]
        rows, at = self._to(chosen), self._to(start)[:, None] + torch.arange(frames, device=self.device)
        clean, weight = _gather(takes.latents, rows, at).float(), _gather_frames(takes.coverage, rows, at).float()
        words = takes.words[rows, :, self._to([int(rng.random() < 0.4) for _ in chosen])]
        sigma = draw_levels(size, 1, self.device).expand(-1, frames).clone()
        weight = 1 + _CHARACTER_WEIGHT * weight[:, None]
        if kind == "clip":
            given = torch.rand(size, device=self.device) < 0.15
            sigma[:, 0] *= ~given
            weight[:, :, 0] *= ~given[:, None, None, None]
        if kind == "opening":
            words = words[:, :1]
        every = torch.ones(frames, frames, dtype=torch.bool, device=self.device)
        position = torch.arange(frames, device=self.device).expand(size, -1)
        caption = takes.caption[rows[:, None], at]
        nowhere = torch.full((frames,), -1, device=self.device)
        noise = torch.randn_like(clean)
        return Batch(clean, noise, sigma, weight, words, words, caption, position, every, nowhere)

    def _cut(self, rng: random.Random, size: int) -> Batch:
        """A take behind one clean frame of another with the same lead, encoded as one clip or apart."""
        spliced = self.footage.spliced
        frames, takes = spliced.frames, self.footage.takes
        if rng.random() < 0.5:
            rows = self._to([rng.randrange(len(spliced)) for _ in range(size)])
            clean, covered, words = spliced.latents[rows].float(), spliced.coverage[rows].float(), spliced.words[rows]
        else:
            chosen = [rng.randrange(len(takes)) for _ in range(size)]
            rows, partner = self._to(chosen), self._to([one ^ 1 for one in chosen])
            first = self._to([0 if rng.random() < 0.6 else rng.randrange(takes.frames) for _ in chosen])[:, None]
            at = torch.arange(frames - 1, device=self.device).expand(size, -1)
            clean = torch.cat(
                [_gather(takes.latents, partner, first).float(), _gather(takes.latents, rows, at).float()], 2
            )
            covered = torch.cat(
                [
                    _gather_frames(takes.coverage, partner, first).float(),
                    _gather_frames(takes.coverage, rows, at).float(),
                ],
                dim=1,
            )
            words = takes.words[rows]
        same = self._to([2 if rng.random() < 0.6 else 0 for _ in range(size)])
        resolved_tokens, tokens = words[:, :1, 0], words[torch.arange(size, device=self.device), :1, same]
        yes = torch.ones(frames, frames, dtype=torch.bool, device=self.device)
        learned = torch.arange(frames, device=self.device) > 0
        sigma = draw_levels(size, 1, self.device) * learned
        weight = (1 + _CHARACTER_WEIGHT * covered[:, None]) * learned[:, None, None]
        clean = self._noised_context(clean, ~learned)
        caption = torch.zeros(size, frames, dtype=torch.long, device=self.device)
        position = torch.arange(frames, device=self.device).expand(size, -1)
        nowhere = torch.full((frames,), -1, device=self.device)
        noise = torch.randn_like(clean)
        return Batch(clean, noise, sigma, weight, tokens, resolved_tokens, caption, position, yes, nowhere)

    # Blocks of a rollout

    def _rollout(self, rng: random.Random, size: int, kind: str) -> Batch:
        takes = self.footage.takes
        bank = 0 if kind == "start" else rng.choice((0, 1, 2, 3, 3))
        blocks = pattern(kind, bank)
        last = max(block.time for block in blocks)
        chosen = [rng.randrange(len(takes)) for _ in range(size)]
        frame, position, source = [], [], []
        for take in chosen:
            f, p = self._placed(rng, blocks, kind, take, takes.frames // BLOCK - 1 - last)
            frame.append(f)
            position.append(p)
            from_partner = kind == "story"
            source.append([take ^ 1 if from_partner and b.role in ("sink", "bank") else take for b in blocks])
        rows = self._to(source).repeat_interleave(BLOCK, dim=1)
        offset = torch.arange(BLOCK, device=self.device).repeat(len(blocks))
        at = self._to(frame).repeat_interleave(BLOCK, dim=1) * BLOCK + offset
        place = self._to(position).repeat_interleave(BLOCK, dim=1) * BLOCK + offset
        noisy = self._roles(blocks, "noisy")

        clean = takes.latents[rows, :, at].float().transpose(1, 2)
        seen = self._to([rng.random() < self.own_share and take in self.refilmed for take in chosen])
        own = self.own[rows, :, at].float().transpose(1, 2)
        clean = torch.where(seen[:, None, None, None, None] & ~noisy[:, None, None], own, clean)
        clean = self._noised_context(clean, ~noisy)
        groups = torch.arange(len(blocks), device=self.device).repeat_interleave(BLOCK)
        sigma = draw_levels(size, len(blocks), self.device)[:, groups] * noisy
        weight = (1 + _CHARACTER_WEIGHT * takes.coverage[rows, at].float()[:, None]) * noisy[:, None, None]
        if kind == "start":
            given = torch.rand(size, device=self.device) < 0.15
            first = BLOCK * next(i for i, block in enumerate(blocks) if block.role == "noisy")
            sigma[:, first] *= ~given
            weight[:, :, first] *= ~given[:, None, None, None]

        caption = takes.caption[rows, at]
        one = self._to(chosen)
        way = self._to([int(rng.random() < 0.4) for _ in chosen])
        tokens = resolved_tokens = takes.words[one, :, way]
        if kind == "switch":
            # the window is made again under the prompt of the block that follows
            start = BLOCK * next(i for i, block in enumerate(blocks) if block.role == "noisy")
            again = self._roles(blocks, "again")
            caption = torch.where(again, caption[:, start : start + 1], caption)
        if kind == "story":
            same = self._to([rng.random() < 0.6 for _ in chosen])
            words = takes.words[one]
            tokens = torch.where(same[:, None, None], words[:, :, 2], tokens)
            partner = takes.words[one ^ 1, :, 0]
            tokens, resolved_tokens = torch.cat([partner, tokens], dim=1), torch.cat([partner, resolved_tokens], dim=1)
            caption = caption + PROMPTS * ~(self._roles(blocks, "sink") | self._roles(blocks, "bank"))
        attention_mask, noisy_index = self._seen(kind, bank)
        noise = torch.randn_like(clean)
        return Batch(clean, noise, sigma, weight, tokens, resolved_tokens, caption, place, attention_mask, noisy_index)

    def _placed(
        self, rng: random.Random, blocks: tuple[Pattern, ...], kind: str, take: int, latest: int
    ) -> tuple[list[int], list[int]]:
        """Which block of its take each block is, and at which block of the film it stands."""
        far = 0 if rng.random() < 0.4 else int(math.exp(rng.uniform(0, math.log(_FARTHEST))))
        if kind == "start":
            start = gap = 0
        elif kind == "story":
            start, gap = 0, self.footage.takes.frames // BLOCK + far
        elif kind == "far":
            start, gap = rng.randint(1, latest), far
        else:
            known = [at - _RECACHED for at in self.switches[take] if 1 <= at - _RECACHED <= latest]
            start, gap = rng.choice(known) if known else rng.randint(1, latest), far
        frames, places = [], []
        past = self.footage.takes.frames // BLOCK if kind == "story" else start
        for block in blocks:
            if block.role == "sink":
                frame = place = 0
            elif block.role == "bank":
                frame = rng.randrange(past)
                # somewhere between the sink and what is filmed
                place = frame + rng.randint(0, gap if kind != "story" else far)
            else:
                frame = start + block.time
                place = frame + gap
            frames.append(frame)
            places.append(place)
        return frames, places

    def _roles(self, blocks: tuple[Pattern, ...], role: str) -> torch.Tensor:
        return self._to([block.role == role for block in blocks for _ in range(BLOCK)])

    def _seen(self, kind: str, bank: int) -> tuple[torch.Tensor, torch.Tensor]:
        if (kind, bank) not in self._patterns:
            attention_mask, noisy_index = frames_seen(pattern(kind, bank))
            self._patterns[kind, bank] = attention_mask.to(self.device), noisy_index.to(self.device)
        return self._patterns[kind, bank]

    def _noised_context(self, clean: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Frames that are `context` [C] with a little noise in four sequences of five."""
        size = len(clean)
        share = CONTEXT_NOISE * torch.rand(size, 1, 1, 1, 1, device=self.device)
        share = share * (torch.rand(size, 1, 1, 1, 1, device=self.device) < 0.8)
        return clean + share * context[:, None, None] * torch.randn_like(clean)

    def _to(self, values: list) -> torch.Tensor:
        return torch.tensor(values).to(self.device, non_blocking=True)


def _gather(latents: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """[B, 16, C, h, w] of latents [N, 16, F, h, w] at frames `at` [B, C] of takes `rows` [B]."""
    return latents[rows[:, None], :, at].transpose(1, 2)


def _gather_frames(values: torch.Tensor, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] of values [N, F, h, w], in the same way."""
    return values[rows[:, None], at]
