"""The KV memory of a causal model: the keys and values that each layer attends to, filming block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from .arena import FrameArena, KVLayout, temporal_angles, turn
from .bank import MemoryBank
from .settings import MemorySettings

__all__ = ["Call", "CallKind", "KVMemory"]


class CallKind(Enum):
    """What a forward pass does with the keys it makes."""

    DENOISE = "denoise"
    """Temporary: the next call of the same block writes over them."""
    COMMIT = "commit"
    """The clean pass: they stay, and the film is `frames` longer afterwards."""
    RECACHE = "recache"
    """The newest frames once more under a new prompt: their keys replace those in the window."""
    PREFILL = "pictures"
    """A prefill of the sink with pictures of earlier shots, which attend to one another only."""


@dataclass(frozen=True)
class Call:
    """One forward pass, planned on the host.

    position: latent frame number of its first frame; place: where RoPE counts it, the same unless the sink is of
    earlier shots; runs: (first frame of the call, first slot, frames) to be written; first_slot to ring_end: the
    contiguous slots attention reads; renews_sink: whether some of `runs` are sink slots.
    """

    kind: CallKind
    position: int
    place: int
    frames: int
    runs: tuple[tuple[int, int, int], ...]
    first_slot: int
    ring_end: int
    renews_sink: bool


class KVMemory:
    """Sink, ring window, memory bank and sparse activation of every layer, in one arena.

    A forward pass is begin_call, then per layer write and read, then end_call. All bookkeeping is in host integers, in
    latent frames; `position` is the number of the next frame and only grows. With an unbounded window the arena grows
    on demand; `reserve` makes room ahead. Not thread-safe. Source: docs/methods/memflow.md.
    """

    def __init__(
        self,
        layout: KVLayout,
        settings: MemorySettings,
        *,
        frames_per_block: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int = 0,
    ) -> None:
        """capacity: frames an unbounded window makes room for. Raises MemorySettingsError when no block fits."""
        settings.check_block(frames_per_block)
        self.layout, self.settings, self.frames_per_block = layout, settings, frames_per_block
        device = torch.device(device)
        self.arena = FrameArena(layout, settings, self.ring_frames(settings, capacity), dtype, device)
        size = (layout.layers, settings.bank + settings.sink, layout.heads, layout.head_dim)
        self.means = torch.zeros(size, device=device)  # of bank and sink side by side: one piece to score
        self.sink_means = self.means[:, settings.bank :]
        self.bank = MemoryBank(self.arena, settings, self.means[:, : settings.bank]) if settings.bank else None
        self.position = 0
        self.sink: list[int] = []
        self.take = 0
        self.origin = 0
        self.ring_start = 0
        self.ring_count = 0
        self.text = torch.zeros((layout.layers, layout.heads, layout.head_dim), device=device)
        self.text_known = False
        self.sink_canonical: list[torch.Tensor] | None = None
        if settings.positions == "relative":
            shape = (layout.heads, settings.sink, layout.tokens, layout.head_dim)
            self.sink_canonical = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.layers)]
        self.position_shift: torch.Tensor | None = None
        self.clean: list[torch.Tensor] = []
        self.picked: dict[int, torch.Tensor] = {}
        self._call: Call | None = None
        self._open = False

    @staticmethod
    def ring_frames(settings: MemorySettings, capacity: int) -> int:
        """Slots of the ring: the window without the sink, or `capacity` frames when it is unbounded."""
        return capacity if settings.window is None else settings.window - settings.sink

    @property
    def in_block(self) -> bool:
        """Whether a block has been begun and not yet been committed."""
        return self._open or self._call is not None

    # Text and clean latents

    def set_text(self, layer: int, mean_key: torch.Tensor) -> None:
        """Give a layer's mean cross-attention key [heads, head_dim] of the prompt, to score the bank with."""
        self.text[layer] = mean_key.reshape(self.text.shape[1:])

    def forget_text(self) -> None:
        """The prompt changes: until a pass has run under the new one, the bank is scored with zero text keys."""
        self.text_known = False

    def remember_clean(self, latents: torch.Tensor) -> None:
        """Keep finished latents [1, C, frames, h, w] for a recache, as many as the window can use."""
        self.clean.append(latents.detach())
        if self.settings.window is None:
            return
        spare = sum(part.shape[2] for part in self.clean) - self._recached
        while spare >= self.clean[0].shape[2]:
            spare -= self.clean.pop(0).shape[2]

    def clean_latents(self) -> torch.Tensor | None:
        """The newest finished latents of this take [1, C, n, h, w], n at most the window; None at its start."""
        if not self.clean:
            return None
        latents = torch.cat(self.clean, dim=2)
        return latents if self.settings.window is None else latents[:, :, -self._recached :]

    @property
    def _recached(self) -> int:
        """How many frames of a bounded window a recache passes: the sink's too, unless it is of earlier shots."""
        settings = self.settings
        assert settings.window is not None
        return settings.window - (settings.sink if settings.sink_from == "shots" else 0)

    def drop_window(self) -> None:
        """A cut: evict the window, keep sink and bank; positions continue."""
        self.ring_start = self.ring_count = 0
        self.clean = []
        self._open = False

    def begin_take(self, take: int, position: int, context: Sequence[int]) -> None:
        """A cut where the sink is of earlier shots: evict everything; a PICTURES call must follow and fills the sink.

        take: number of the take that begins, from 0; position: latent frames filmed before it; context: for each
        picture the latent frame of the film that it is of, -1 for none.
        """
        self.drop_window()
        self.take, self.position, self.sink = take, position, list(context)
        self.origin = position - len(context)

    # A forward pass

    def begin_call(self, kind: CallKind, frames: int) -> Call:
        """Plan a pass over `frames` latent frames; the first pass of a block evicts and folds the bank."""
        if kind is CallKind.PREFILL:
            self._call = self._plan_pictures(frames)
            return self._call
        first = kind is CallKind.RECACHE or not self._open
        if first:
            self.picked = {}
            self._fold()
        if kind is CallKind.RECACHE:
            call = self._plan_recache(frames)
        else:
            if first:
                self._open_block(frames)
            call = self._plan_block(kind, frames)
        if first and self.settings.positions == "relative":
            self._shift_positions(call)
        self._call = call
        return call

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put keys (rotated at their place) and values [1, heads, frames * tokens, head_dim] in place."""
        call, tokens = self._current(), self.layout.tokens
        for source, slot, frames in call.runs:
            to_k, to_v = self.arena.span(layer, slot, frames)
            from_k = k.narrow(2, source * tokens, frames * tokens)
            to_k.copy_(from_k)
            to_v.copy_(v.narrow(2, source * tokens, frames * tokens))
            if slot < self.arena.ring_base:
                at = slot - self.arena.sink_base
                by_frame = from_k[0].unflatten(1, (frames, tokens))
                self.sink_means[layer, at : at + frames] = by_frame.float().mean(dim=2).transpose(0, 1)
                if self.sink_canonical is not None:
                    self.sink_canonical[layer][:, at : at + frames].copy_(by_frame)

    def write_slots(self) -> list[int] | None:
        """The slot of each frame of the current call, for a kernel that writes there itself and then calls `written`.

        None where a frame has no slot (a recache that keeps the sink).
        """
        call = self._current()
        slots = {source + i: slot + i for source, slot, frames in call.runs for i in range(frames)}
        return [slots[i] for i in range(call.frames)] if len(slots) == call.frames else None

    def written(self, layer: int, means: torch.Tensor) -> None:
        """A kernel has put this call's keys and values into write_slots(); means: mean keys of these frames
        [heads, frames, head_dim] fp32.
        """
        for source, slot, frames in self._current().runs:
            if slot < self.arena.ring_base:
                at = slot - self.arena.sink_base
                self.sink_means[layer, at : at + frames] = means[:, source : source + frames].transpose(0, 1)
                if self.sink_canonical is not None:
                    keys = self.arena.by_frame(layer)[0][:, slot : slot + frames]
                    self.sink_canonical[layer][:, at : at + frames].copy_(keys)

    def read(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that queries q [1, heads, n, head_dim] attend to, as views: [1, heads, m, head_dim] each."""
        call, active = self._current(), self.settings.active
        picks = self.pick(layer, q)
        if picks is None:
            return self.arena.span(layer, call.first_slot, call.ring_end - call.first_slot)
        heads = torch.arange(self.layout.heads, device=picks.device).unsqueeze(1)
        for frames in self.arena.by_frame(layer):
            frames[:, call.ring_end : call.ring_end + active].copy_(frames[heads, picks])
        return self.read_picked(layer)

    def read_picked(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As read, once the picked frames lie behind the window, in the slots from window_slots().stop on."""
        window = self.window_slots()
        return self.arena.span(layer, window.start, len(window) + self.settings.active)

    def pick(self, layer: int, q: torch.Tensor) -> torch.Tensor | None:
        """Sparse activation: the slots of sink and bank that each head reads beside the window, int64 [heads, active].

        None where every slot is read. q: the call's queries [1, heads, n, head_dim]. The window is window_slots().
        """
        if (found := self.candidates(layer)) is None:
            return None
        first, means = found
        scores = torch.einsum("hd,nhd->hn", q[0].mean(dim=1, dtype=torch.float32), means)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.settings.active].sort(dim=1).values
        self.note_picks(layer, best)
        return first + best

    def candidates(self, layer: int) -> tuple[int, torch.Tensor] | None:
        """What sparse activation chooses from: the first slot, and mean keys of it and those after it up to the window
        [n, heads, head_dim] fp32. None where every slot is read.
        """
        call, active = self._current(), self.settings.active
        count = self.arena.ring_base - call.first_slot
        sparse = active and count > active and (call.kind is CallKind.RECACHE or not call.renews_sink)
        if not sparse or call.ring_end <= self.arena.ring_base:
            return None
        means = self.means[layer, -count:]
        if self.position_shift is not None:
            means = turn(means, self.position_shift[layer, -count:].unsqueeze(1))
        return call.first_slot, means

    def note_picks(self, layer: int, best: torch.Tensor) -> None:
        """Keep for the log what was picked, int64 [heads, active] counted from the first candidate, ascending."""
        if self._current().kind is CallKind.DENOISE:
            self.picked[layer] = best

    def window_slots(self) -> range:
        """The slots of the window that the current call reads, itself included."""
        return range(self.arena.ring_base, self._current().ring_end)

    def end_call(self) -> None:
        """The pass is over: the prompt's keys are known now, and a clean pass makes its block part of the film."""
        call = self._current()
        self._call = None
        self.text_known = True
        if call.kind is CallKind.RECACHE and call.renews_sink:
            self.sink = list(range(call.position, call.position + len(self.sink)))
        if call.kind is not CallKind.COMMIT:
            return
        new_sink = min(self.settings.sink - len(self.sink), call.frames)
        self.sink.extend(range(call.position, call.position + new_sink))
        self.ring_count += call.frames - new_sink
        self.position += call.frames
        self._open = False
        if self.bank is not None:
            self._record(call)

    # Bookkeeping

    def _current(self) -> Call:
        if self._call is None:
            raise RuntimeError("KVMemory.write, read and end_call belong between begin_call and end_call.")
        return self._call

    def _fold(self) -> None:
        if self.bank is not None:
            self.bank.fold(self.arena, self.text if self.text_known or self.settings.fresh_text else None)

    def _open_block(self, frames: int) -> None:
        new_ring = frames - min(self.settings.sink - len(self.sink), frames)
        if self.settings.window is None:
            self.reserve(new_ring)
        evicted = max(0, self.ring_count + new_ring - self.arena.ring)
        if evicted:
            self.ring_start = (self.ring_start + evicted) % self.arena.ring
            self.ring_count -= evicted
        self._open = True

    def _first_slot(self) -> int:
        return self.arena.sink_base - (self.bank.filled if self.bank else 0)

    def _ring_runs(self, source: int, index: int, frames: int) -> list[tuple[int, int, int]]:
        """Runs for `frames` frames of a call from `source`, into the ring from its `index`-th frame on, wrapped."""
        runs = []
        while frames:
            slot = (self.ring_start + index) % self.arena.ring
            count = min(frames, self.arena.ring - slot)
            runs.append((source, self.arena.ring_base + slot, count))
            source, index, frames = source + count, index + count, frames - count
        return runs

    def _plan_block(self, kind: CallKind, frames: int) -> Call:
        sink = min(self.settings.sink - len(self.sink), frames)
        runs = [(0, self.arena.sink_base + len(self.sink), sink)] if sink else []
        runs += self._ring_runs(sink, self.ring_count, frames - sink)
        ring = self.ring_count + frames - sink
        end = self.arena.ring_base + ring if ring else self.arena.sink_base + len(self.sink) + sink
        place = self.position - self.origin
        return Call(kind, self.position, place, frames, tuple(runs), self._first_slot(), end, sink > 0)

    def _plan_pictures(self, frames: int) -> Call:
        if frames != self.settings.sink or len(self.sink) != frames:
            raise ValueError(f"A sink of {self.settings.sink} needs as many pictures after begin_take, not {frames}.")
        base = self.arena.sink_base
        return Call(CallKind.PREFILL, self.origin, 0, frames, ((0, base, frames),), base, base + frames, True)

    def _plan_recache(self, frames: int) -> Call:
        if not 0 < frames <= self.position:
            raise ValueError(f"A recache of {frames} frames needs as many finished ones; there are {self.position}.")
        first = self.position - frames
        renews = 0 < len(self.sink) <= frames and (first <= self.sink[0] or not self.settings.keep_sink)
        renews = renews and self.settings.sink_from == "film"
        runs = [(0, self.arena.sink_base, len(self.sink))] if renews else []
        runs += self._ring_runs(frames - self.ring_count, 0, self.ring_count)
        end = self.arena.ring_base + self.ring_count if self.ring_count else self.arena.sink_base + len(self.sink)
        place = first - self.origin
        return Call(CallKind.RECACHE, first, place, frames, tuple(runs), self._first_slot(), end, renews)

    def _record(self, call: Call) -> None:
        bank = self.bank
        assert bank is not None
        slot = call.runs[0][1]
        if slot < self.arena.ring_base and self.sink_canonical is not None:
            keys = [canonical[:, slot - self.arena.sink_base] for canonical in self.sink_canonical]
        else:
            keys = [self.arena.by_frame(layer)[0][:, slot] for layer in range(self.layout.layers)]
        bank.record(self.arena, call.position // self.frames_per_block, call.position, keys, slot)

    def _shift_positions(self, call: Call) -> None:
        """Relative positions: rotate the keys of bank and sink so that they are placed directly before the window.

        The order is sink, bank by age, window: every frame keeps a position of its own, time still runs one way, and no
        distance is ever larger than window + bank. Only distances matter to RoPE, so window and queries stay at their
        absolute positions. Keys are rotated from their canonical copy every time; rotated further and further in place
        they would drift (docs/kernels.md, rotating again).
        """
        assert self.sink_canonical is not None
        filled = self.bank.filled if self.bank else 0
        # a block that still fills the sink finds the ring empty: the window starts with the block itself
        start = self.position - self.ring_count
        device, layers, size = self.arena.device, self.layout.layers, self.settings.bank
        delta = torch.zeros((layers, size + self.settings.sink), device=device)
        if self.bank is not None and filled:
            held = self.bank.positions[:, -filled:]
            age = held.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
            delta[:, size - filled : size] = (start - filled + age - held).float()
        renewed = call.kind is CallKind.RECACHE and call.renews_sink
        if not renewed:
            first = start - filled - len(self.sink)
            held_at = range(self.origin, self.position) if self.settings.sink_from == "shots" else self.sink
            moves = [first + seat - held for seat, held in zip(range(len(self.sink)), held_at)]
            delta[:, size : size + len(self.sink)] = torch.tensor(moves, dtype=torch.float32, device=device)
        self.position_shift = temporal_angles(self.layout, delta)
        for layer in range(layers):
            k = self.arena.by_frame(layer)[0]
            angles = self.position_shift[layer].unsqueeze(1)
            if self.bank is not None and self.bank.canonical is not None and filled:
                old = self.bank.canonical[layer][:, size - filled :]
                k[:, self.arena.sink_base - filled : self.arena.sink_base] = turn(old, angles[size - filled : size])
            if self.sink and not renewed:
                old = self.sink_canonical[layer][:, : len(self.sink)]
                base = self.arena.sink_base
                k[:, base : base + len(self.sink)] = turn(old, angles[size : size + len(self.sink)])

    def reserve(self, frames: int) -> None:
        """Make room for `frames` more frames in an unbounded window; does nothing for a bounded one."""
        if self.settings.window is not None or self.ring_count + frames <= self.arena.ring:
            return
        old, layout = self.arena, self.layout
        ring = max(self.ring_count + frames, 2 * old.ring)
        self.arena = FrameArena(layout, self.settings, ring, old.dtype, old.device)
        kept = old.ring_base + self.ring_count
        for layer in range(layout.layers):
            for target, source in zip(self.arena.span(layer, 0, kept), old.span(layer, 0, kept), strict=True):
                target.copy_(source)
