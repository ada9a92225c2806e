"""The KV memory of many films at once, for training: what film.kv_memory.KVMemory keeps, as plain tensors of fixed
places, so that a block costs few launches.

All films are at the same block. Each has prompts of its own, which may change at any block, and an offset of its own
that shifts its time after the first block. A film made with it equals the one that host.wan.rollout.roll_out makes (a
test holds them together). Source: MemFlow, arXiv 2512.14699, section 3; LongLive, arXiv 2509.22622, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ...film.kv_memory import MemorySettings
from ..miniature.dit import _angles, _attend, _patches, _rotate, time_wave

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Of every layer: keys and values [B, heads, tokens, head_dim]."""
Context = Callable[[int], KeyValues]
"""What a layer sees beside the frames of a pass, in parts."""


class StreamMemory:
    """B films' memory at the same block.

    block: number of the block being filmed; past: committed window frames in view of the next block; begun: the block
    that the last cut came before. Bank entries, their order and what competes with what are as in
    film.kv_memory.bank.MemoryBank; absolute positions, dense activation.
    """

    def __init__(
        self, dit: Any, films: int, tokens: int, settings: MemorySettings, frames_per_block: int, dtype: torch.dtype
    ) -> None:
        """tokens: of a frame. Raises ValueError for settings that training does not have."""
        plain = settings.positions == "absolute" and settings.sink_from == "film" and not settings.active
        if not plain or settings.window is None or settings.sink != frames_per_block or not settings.bank:
            raise ValueError(
                "Long tuning films with absolute positions, a bounded window, a sink of one block, a bank and without "
                "sparse activation; change the memory's settings."
            )
        self.settings, self.frames, self.tokens = settings, frames_per_block, tokens
        device = next(dit.parameters()).device
        layers, heads = len(dit.blocks), dit.num_heads
        room = settings.window - settings.sink - frames_per_block

        def empty(frames: int) -> torch.Tensor:
            shape = (2, layers, films, heads, frames * tokens, dit.dim // heads)
            return torch.zeros(shape, dtype=dtype, device=device)

        self.sink, self.ring, self.bank, self.candidate = (
            empty(count) for count in (settings.sink, room, settings.bank, 1)
        )
        size = settings.bank
        self.order = torch.zeros((layers, films, size), dtype=torch.long, device=device)
        self.means = torch.zeros((layers, films, size, heads, dit.dim // heads), device=device)
        self.clear()

    def clear(self) -> None:
        """All films begin anew."""
        self.block = self.past = self.recorded = self.begun = 0
        self.order.copy_(torch.arange(self.settings.bank - 1, -1, -1, device=self.order.device))

    def cut(self) -> None:
        """All films begin a new take: sink, bank and positions stay."""
        self.past, self.begun = 0, self.block

    @property
    def filled(self) -> int:
        """Bank entries in view."""
        return min(self.recorded if self.folded else 0, self.settings.bank)

    @property
    def folded(self) -> bool:
        """Whether a recorded frame has entered the bank yet: it does when the next block begins."""
        return self.recorded > 0 and self.block > 0

    @property
    def phase(self) -> tuple[int, ...]:
        """All that decides which operations a block's passes are made of."""
        return (
            min(self.block, 1),
            min(self.begun, 1),
            self.past,
            min(self.recorded, self.settings.bank + 1),
            int(self._records()),
        )

    def fold(self, text: torch.Tensor, known: torch.Tensor) -> None:
        """Before a block: the recorded frame enters; when the bank is full, the one that fits the prompt least leaves.

        text: mean text keys [layers, B, heads, head_dim] fp32; known: [B], 0 where the prompt has just changed, so that
        all frames fit alike and the order stays.
        """
        if not self.folded:
            return
        size = self.settings.bank
        if self.recorded <= size:
            entered = self.order[:, :, self.recorded - 1]
        else:
            index = self.order[..., None, None].expand(-1, -1, -1, *self.means.shape[3:])
            scores = torch.einsum("lbhd,lbshd->lbs", text * known[None, :, None, None], self.means.gather(2, index))
            scores = scores / (self.means.shape[3] * self.means.shape[4] ** 0.5)
            ranking = scores.argsort(dim=2, descending=True, stable=True)
            self.order.copy_(self.order.gather(2, ranking))
            entered = self.order[:, :, -1]
        chosen = F.one_hot(entered, size).bool()
        tokens = chosen.repeat_interleave(self.tokens, dim=2)[None, :, :, None, :, None]
        self.bank.copy_(torch.where(tokens, self.candidate.repeat(1, 1, 1, 1, size, 1), self.bank))
        mean = self.candidate[0].float().mean(dim=3)
        self.means.copy_(torch.where(chosen[..., None, None], mean[:, :, None], self.means))

    def context(self, layer: int, *, ring: bool = True, sink: bool = True) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What a pass of a block attends to beside itself: parts (keys, values) [B, heads, tokens, head_dim]."""
        size, count = self.settings.bank, self.filled
        parts = [self.bank[:, layer, :, :, (size - count) * self.tokens :]] if count else []
        if sink and self.block:
            parts.append(self.sink[:, layer])
        if ring and self.past:
            parts.append(self.ring[:, layer, :, :, self.ring.shape[4] - self.past * self.tokens :])
        return [(part[0], part[1]) for part in parts]

    def commit(self, keys: KeyValues) -> None:
        """The clean pass's keys and values: the block is part of the films now."""
        for layer, pair in enumerate(keys):
            for side, new in enumerate(pair):
                if self.block == 0:
                    self.sink[side, layer].copy_(new)
                elif self.ring.shape[4]:
                    old = self.ring[side, layer]
                    old.copy_(torch.cat([old, new], dim=2)[:, :, -old.shape[2] :])
                if self._records():
                    self.candidate[side, layer].copy_(new[:, :, : self.tokens])

    def committed(self) -> None:
        """Count the block that `commit` has put in place."""
        if self._records():
            self.recorded += self.block % self.settings.record_interval == 0
        if self.block:
            self.past = min(self.past + self.frames, self.ring.shape[4] // self.tokens)
        self.block += 1

    def _records(self) -> bool:
        return self.settings.record == "single" or self.block % self.settings.record_interval == 0

    def recached(self, keys: KeyValues, frames: int, chosen: torch.Tensor) -> None:
        """A recache's keys and values of the newest `frames` frames, for the films that are `chosen` [B].

        Where these reach back to the sink they renew it.
        """
        mine = chosen[:, None, None, None]
        whole = frames == self.block * self.frames and not self.begun
        for layer, pair in enumerate(keys):
            for side, new in enumerate(pair):
                if whole:
                    old = self.sink[side, layer]
                    old.copy_(torch.where(mine, new[:, :, : old.shape[2]], old))
                if self.past:
                    old = self.ring[side, layer, :, :, self.ring.shape[4] - self.past * self.tokens :]
                    old.copy_(torch.where(mine, new[:, :, -self.past * self.tokens :], old))

    def recache_frames(self) -> tuple[int, bool]:
        """How many of the newest frames a recache now passes, and whether the sink is among them.

        Frames beyond window and sink would be computed and thrown away: they are left out.
        """
        done = (self.block - self.begun) * self.frames
        assert self.settings.window is not None
        whole = done <= self.settings.window and not self.begun
        return (done, True) if whole else (min(done, self.settings.window - self.settings.sink), False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        tensors = ("sink", "ring", "bank", "candidate", "order", "means")
        counts = ("block", "past", "recorded", "begun")
        return {name: getattr(self, name) for name in (*tensors, *counts)}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                getattr(self, name).copy_(value)
            else:
                setattr(self, name, value)


def text_keys(dit: Any, rows: torch.Tensor) -> tuple[KeyValues, torch.Tensor]:
    """Cross-attention keys and values of encoded prompts [B, L, text_dim], and the mean keys that score the bank,
    [layers, B, heads, head_dim] fp32 over all rows (as published: empty ones too).
    """
    text = dit.text_embedding(rows)
    found, means = [], []
    for block in dit.blocks:
        cross = block.cross_attn
        k, v = (_split(part, cross.num_heads) for part in (cross.norm_k(cross.k(text)), cross.v(text)))
        found.append((k, v))
        means.append(k.float().mean(dim=2))
    return found, torch.stack(means)


def block_flow(
    dit: Any,
    x: torch.Tensor,
    time: torch.Tensor,
    text: KeyValues,
    position: torch.Tensor,
    context: Context = lambda layer: [],
    keys: KeyValues | None = None,
    *,
    text_bias: torch.Tensor | None = None,
    recompute: bool = False,
) -> torch.Tensor | None:
    """One pass over frames x [B, C, F, h, w] that see one another and a memory's context: the velocity, with gradients
    where they are read.

    time: noise levels [B, F] in 0..1000; position: [B, F]; keys: takes each layer's keys and values, and then nothing
    but these is computed (None is returned); text_bias: added to the scores of text, [B, 1, F * n, L]; recompute: keep
    of each block its input alone, and compute it again in the backward pass.
    """
    b, f = x.shape[0], x.shape[2]
    rows, columns = (-(-side // patch) for side, patch in zip(x.shape[3:], dit.patch_size[1:], strict=True))
    n = rows * columns
    x = _patches(dit, x.to(dit.patch_embedding.weight.dtype)).to(dit.head.modulation.dtype)
    e = dit.time_embedding(time_wave(dit.freq_dim, time.flatten()).to(x.dtype)).reshape(b, f, -1)
    e0 = dit.time_projection(e).unflatten(2, (6, dit.dim))
    turns = _angles(dit, position, rows, columns)

    def modulated(norm: Any, y: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (norm(y).unflatten(1, (f, n)) * (1 + scale) + shift).flatten(1, 2)

    def gated(y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return (y.unflatten(1, (f, n)) * gate).flatten(1, 2)

    def rotated(attention: Any, y: torch.Tensor) -> torch.Tensor:
        return _rotate(y.float().unflatten(2, (attention.num_heads, -1)), turns).transpose(1, 2)

    def through(layer: int, x: torch.Tensor, e0: torch.Tensor) -> torch.Tensor:
        block = dit.blocks[layer]
        m = [part[:, :, None] for part in (block.modulation[None] + e0).unbind(2)]
        own = block.self_attn
        y = modulated(block.norm1, x, m[0], m[1])
        v = _split(own.v(y), own.num_heads)
        k = rotated(own, own.norm_k(own.k(y))).to(v.dtype)
        if keys is not None:
            keys.append((k, v))
            if layer == len(dit.blocks) - 1:
                return x
        q = rotated(own, own.norm_q(own.q(y)))
        parts = [*context(layer), (k, v)]
        k, v = (torch.cat([part[side].to(v.dtype) for part in parts], dim=2) for side in (0, 1))
        x = x + gated(own.o(_joined(_attend(q, k, v, None))), m[2])
        cross = block.cross_attn
        q = _split(cross.norm_q(cross.q(block.norm3(x))), cross.num_heads)
        x = x + cross.o(_joined(_attend(q, *text[layer], text_bias)))
        return x + gated(block.ffn(modulated(block.norm2, x, m[3], m[4])), m[5])

    for layer in range(len(dit.blocks)):
        x = checkpoint(through, layer, x, e0, use_reentrant=False) if recompute else through(layer, x, e0)
    if keys is not None:
        return None
    velocity: torch.Tensor = dit.unpatchify(dit.head(x, e), (f, rows, columns))
    return velocity


def _split(y: torch.Tensor, heads: int) -> torch.Tensor:
    return y.unflatten(2, (heads, -1)).transpose(1, 2)


def _joined(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(1, 2).flatten(2)
