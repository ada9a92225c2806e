"""The miniature's Wan DiT and its text encoder, trained together once in mixed modes.

One network serves text-to-video, causal rollout and a given first frame, because Wan takes a noise level per frame. A
training sequence is a list of latent frames, each clean (noise level 0, as the rollout's memory holds them) or noisy
(what is learned), with a mask that says which frame sees which. Five layouts are mixed:

* ``opening``: the first block of a take alone, many takes in a batch: what the words mean is learned here;
* ``clip``: a whole take, every frame at the same noise level, everybody sees everybody (text to video, image to video);
* ``start``: a take from its first block on; noisy blocks see the clean sink, the clean window and themselves;
* ``middle``: the same from the middle of a take whose sink lies any distance back;
* ``story``: a new take after a cut; it sees the film's first block and remembered frames of an earlier take, no window.

Clean frames see what they see in a rollout's clean pass. Their latents carry a little noise, so that a long rollout
forgives its own errors (the cure of drift that needs no rollout in training).

A tenth of the sequences reads no prompt, which gives core's sampler a negative to guide with.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..miniature.text import TextEncoder
from .latents import LATENTS, Stories
from .loop import Metrics, Schedule, train

BLOCK = 3
SINK = 3
WINDOW = 12
"""Frames of a rollout's memory: a block, the sink, and the newest frames with sink and current block counted
(MemFlow's values).
"""
CONTEXT_NOISE = 0.15
_OPENINGS = 7
_CHARACTER_WEIGHT = 4.0
_WORDLESS = 0.1


@dataclass(frozen=True)
class DitRecipe:
    """Sizes and schedule of the DiT and the text encoder."""

    dim: int = 192
    ffn_dim: int = 576
    layers: int = 8
    heads: int = 3
    freq_dim: int = 128
    text_dim: int = 128
    steps: int = 6000
    batch: int = 8
    rate: float = 1e-3
    muon_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """F frames of one training sequence.

    ``take`` and ``frame`` say which latent frame of a story it is, ``position`` its place on the film's time axis,
    ``noisy`` whether it is learned, ``fixed`` whether its caption stays as it was, ``sees`` [F, F] who reads whom.
    """

    take: torch.Tensor
    frame: torch.Tensor
    position: torch.Tensor
    noisy: torch.Tensor
    fixed: torch.Tensor
    sees: torch.Tensor


@dataclass(frozen=True)
class _Block:
    take: int
    first: int
    position: int
    role: str  # "sink", "bank", "past" or "noisy"


def _blocks_layout(blocks: list[_Block]) -> Layout:
    """Who sees whom in a rollout: sink, first frames of bank blocks, the window's newest frames, and the own block."""
    take, frame, position, role, owner = [], [], [], [], []
    for index, block in enumerate(blocks):
        for offset in range(BLOCK):
            take.append(block.take)
            frame.append(block.first + offset)
            position.append(block.position + offset)
            role.append(block.role)
            owner.append(index)
    count = len(frame)
    sees = torch.zeros(count, count, dtype=torch.bool)
    reach = WINDOW - SINK - BLOCK
    for q in range(count):
        me = blocks[owner[q]]
        for k in range(count):
            other = blocks[owner[k]]
            if owner[q] == owner[k]:
                sees[q, k] = True
            elif other.role == "noisy" or other.position >= me.position:
                continue
            elif other.role == "sink":
                sees[q, k] = True
            elif other.role == "bank":
                sees[q, k] = frame[k] == other.first and me.role != "bank"
            else:
                sees[q, k] = me.take == other.take and me.position - position[k] <= reach
    return Layout(
        torch.tensor(take),
        torch.tensor(frame),
        torch.tensor(position),
        torch.tensor([r == "noisy" for r in role]),
        torch.tensor([r in ("sink", "bank") for r in role]),
        sees,
    )


def _distance(rng: random.Random) -> int:
    """How far back the sink lies beyond what the sequence shows: often 0, up to about 3,000 latent frames."""
    return 0 if rng.random() < 0.4 else BLOCK * int(math.exp(rng.uniform(0, math.log(1000))))


def draw_layout(rng: random.Random) -> tuple[str, Layout]:
    """One of the five layouts, with the share of steps that each gets."""
    kind = rng.choices(("opening", "clip", "start", "middle", "story"), (0.25, 0.15, 0.25, 0.2, 0.15))[0]
    if kind in ("opening", "clip"):
        count = BLOCK if kind == "opening" else LATENTS
        every = torch.arange(count)
        alike = torch.zeros_like(every)
        yes = torch.ones(count, dtype=torch.bool)
        return kind, Layout(alike, every, every, yes, ~yes, torch.ones(count, count, dtype=torch.bool))
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


class Miniature(nn.Module):
    """The DiT and the text encoder as one trainable module."""

    def __init__(self, recipe: DitRecipe):
        super().__init__()
        self.dit = build_dit(recipe)
        self.text = TextEncoder(recipe.text_dim)
        for parameter in self.text.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05)


def build_dit(recipe: DitRecipe) -> Any:
    """ComfyUI's ``CausalWanModel`` in float32, initialised as in the Wan paper's code: Xavier matrices, zero head."""
    import comfy.ops
    from comfy.ldm.wan.ar_model import CausalWanModel

    dit = CausalWanModel(
        dim=recipe.dim,
        ffn_dim=recipe.ffn_dim,
        num_layers=recipe.layers,
        num_heads=recipe.heads,
        freq_dim=recipe.freq_dim,
        text_dim=recipe.text_dim,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    for name, parameter in dit.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=recipe.dim**-0.5)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name.startswith(("text_embedding", "time_embedding", "time_projection")):
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1))
    nn.init.zeros_(dit.head.head.weight)
    return dit


def _angles(dit: Any, position: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, 1, F * h * w, head_dim / 2] of the rotary embedding for frames at ``position`` [B, F]."""
    d = dit.dim // dit.num_heads
    axes = (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6))
    b, f = position.shape
    ids = [
        position[:, :, None, None].expand(b, f, height, width),
        torch.arange(height, device=position.device)[None, None, :, None].expand(b, f, height, width),
        torch.arange(width, device=position.device)[None, None, None].expand(b, f, height, width),
    ]
    parts = []
    for axis, index in zip(axes, ids, strict=True):
        omega = 10000.0 ** -(torch.arange(0, axis, 2, dtype=torch.float64, device=position.device) / axis)
        parts.append(index.flatten(1).double()[..., None] * omega)
    angle = torch.cat(parts, dim=-1)[:, None]
    return angle.cos().float(), angle.sin().float()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def predict(
    dit: Any,
    x: torch.Tensor,
    time: torch.Tensor,
    text: torch.Tensor,
    *,
    position: torch.Tensor,
    sees: torch.Tensor | None = None,
    reads: torch.Tensor | None = None,
) -> torch.Tensor:
    """The velocity [B, 16, F, h, w] that ``dit`` predicts, with masks that its own forward does not take.

    Args:
        x: latents [B, 16, F, h, w]. time: noise levels [B, F] in 0..1000. text: rows [B, L, text_dim].
        position: time position of every frame [B, F]. sees: [F, F] or None for all.
        reads: [B, F, L], the text rows that each frame reads, or None for all.
    """
    import comfy.ldm.wan.model as wan

    b, _, f = x.shape[:3]
    x = dit.patch_embedding(x)
    rows, columns = x.shape[-2:]
    n = rows * columns
    x = x.flatten(2).transpose(1, 2)
    heads, d = dit.num_heads, dit.dim // dit.num_heads
    e = dit.time_embedding(wan.sinusoidal_embedding_1d(dit.freq_dim, time.flatten())).reshape(b, f, -1)
    e0 = dit.time_projection(e).unflatten(2, (6, dit.dim))
    context = dit.text_embedding(text)
    cos, sin = _angles(dit, position, rows, columns)
    frames_bias = None if sees is None else _bias(sees.repeat_interleave(n, 1), n, context)
    text_bias = None if reads is None else _bias(reads[:, None], n, context)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(2, (heads, d)).transpose(1, 2)

    for block in dit.blocks:
        m = [part[:, :, None] for part in (block.modulation[None] + e0).unbind(2)]

        def modulated(norm: nn.Module, y: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (norm(y).unflatten(1, (f, n)) * (1 + scale) + shift).flatten(1, 2)

        def gated(y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return (y.unflatten(1, (f, n)) * gate).flatten(1, 2)

        a = block.self_attn
        y = modulated(block.norm1, x, m[0], m[1])
        q = _rotate(split(a.norm_q(a.q(y))), cos, sin)
        k = _rotate(split(a.norm_k(a.k(y))), cos, sin)
        v = split(a.v(y))
        y = _attend(q, k, v, frames_bias)
        x = x + gated(a.o(y.transpose(1, 2).flatten(2)), m[2])
        c = block.cross_attn
        q, k, v = split(c.norm_q(c.q(block.norm3(x)))), split(c.norm_k(c.k(context))), split(c.v(context))
        y = _attend(q, k, v, text_bias)
        x = x + c.o(y.transpose(1, 2).flatten(2))
        x = x + gated(block.ffn(modulated(block.norm2, x, m[3], m[4])), m[5])
    return dit.unpatchify(dit.head(x, e), (f, rows, columns))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention [B, H, Lq, d] spelled out: on a CPU, with masks and a few hundred tokens, three times as fast as
    SDPA's kernel.
    """
    scores = (q.to(v.dtype) * q.shape[-1] ** -0.5) @ k.to(v.dtype).transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _bias(mask: torch.Tensor | None, n: int, like: torch.Tensor) -> torch.Tensor | None:
    """Zero where a frame's tokens may look and minus infinity elsewhere; ``n`` tokens a frame."""
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf).repeat_interleave(n, -2)


def _noise_levels(shape: tuple[int, ...]) -> torch.Tensor:
    """Mostly where few-step sampling looks (shift 5), some of everything else."""
    u = torch.rand(shape)
    return torch.where(torch.rand(shape) < 0.75, 5 * u / (1 + 4 * u), u)


@dataclass(frozen=True)
class Batch:
    """A training batch in the shape ``predict`` takes, with the clean latents, the noise and the loss weights."""

    clean: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor
    caption: torch.Tensor
    position: torch.Tensor
    sees: torch.Tensor

    def noised(self) -> torch.Tensor:
        sigma = self.sigma[:, None, :, None, None]
        return (1 - sigma) * self.clean + sigma * self.noise

    def to(self, device: torch.device) -> Batch:
        return Batch(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


def draw_batch(stories: Stories, openings: Stories, rng: random.Random, size: int) -> tuple[str, Batch]:
    """A batch of one layout: ``size`` sequences of ``stories``, or as many frames of ``openings``. Uses torch's global
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
    whole = kind in ("opening", "clip")
    groups = torch.zeros(count, dtype=torch.long) if whole else torch.arange(count) // BLOCK
    sigma = _noise_levels((size, int(groups.max()) + 1))[:, groups] * layout.noisy
    if kind in ("clip", "start"):
        given = torch.rand(size) < 0.15
        index = 0 if kind == "clip" else int(layout.noisy.nonzero()[0])
        sigma[given, index] = 0
        weight[given, :, index] = 0
    weight = weight * layout.noisy[None, None, :, None, None]
    spoil = CONTEXT_NOISE * torch.rand(size, 1, 1, 1, 1) * (torch.rand(size, 1, 1, 1, 1) < 0.8)
    clean = torch.where(layout.noisy[None, None, :, None, None], clean, clean + spoil * torch.randn_like(clean))

    # Two captions a sequence: before and after the change of action; in a story the earlier take's as well, and the
    # new take's may say "the same character".
    change = stories.change[chosen[:, None], order]
    caption = (frame >= change).long()
    if kind == "story":
        second = order[:, -1]
        says_same = (torch.rand(size) < 0.6).long() * 2
        tokens = torch.stack(
            [stories.tokens[chosen, 1 - second, 0], stories.tokens[chosen, second, says_same],
             stories.tokens[chosen, second, 1]], dim=1)  # fmt: skip
        caption = torch.where(layout.take[None] == 0, torch.zeros_like(caption), 1 + caption)
    else:
        tokens = stories.tokens[chosen, order[:, 0]][:, : 1 if kind == "opening" else 2]
        recached = (torch.rand(size, 1) < 0.3) & ~layout.fixed[None] & ~layout.noisy[None]
        caption = torch.where(recached, caption[:, -1:], caption)
    position = layout.position[None].expand(size, -1)
    return kind, Batch(clean, torch.randn_like(clean), sigma, weight, tokens, caption, position, layout.sees)


def velocity(model: Miniature, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
    """What ``model`` predicts for ``batch`` under ``tokens`` [B, C, 48], of which each frame reads its caption."""
    b, captions, length = tokens.shape
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        rows = model.text(tokens.flatten(0, 1)).reshape(b, captions * length, -1)
        reads = F.one_hot(batch.caption, captions).bool().repeat_interleave(length, dim=2)
        return predict(
            model.dit, batch.noised(), batch.sigma * 1000, rows, position=batch.position, sees=batch.sees, reads=reads
        ).float()


def loss(v: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of the velocity over the noisy frames."""
    error = (v - target).square().mean(dim=1, keepdim=True)
    return (error * weight).sum() / weight.sum()


def train_dit(recipe: DitRecipe, model: Miniature, stories: Stories, openings: Stories, folder: Path) -> None:
    """Train ``model`` in place as ``recipe`` says, on the device it is on, resuming from ``folder``; it ends with
    averaged weights.
    """
    device = next(model.parameters()).device

    def draw(step: int) -> tuple[str, Batch]:
        kind, batch = draw_batch(stories, openings, random.Random(f"{recipe.seed}/{step}"), recipe.batch)
        return kind, batch.to(device)

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        kind, batch = draw(step)
        wordless = torch.rand(len(batch.tokens), device=device) < _WORDLESS
        v = velocity(model, batch, batch.tokens.masked_fill(wordless[:, None, None], 0))
        value = loss(v, batch.noise - batch.clean, batch.weight)
        return value, {kind: float(value.detach())}

    schedule = Schedule(recipe.steps, recipe.rate, muon_rate=recipe.muon_rate, weight_decay=0.01)
    model.load_state_dict(train("dit", model, learn, schedule, folder, seed=recipe.seed))
