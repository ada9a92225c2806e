"""KVMemory against a naive model of the published rules: plain lists of frames, no slots, attention in float64."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from math import inf

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from longreel.film.kv_memory import (
    CallKind,
    KVLayout,
    KVMemory,
    MemoryEditError,
    MemorySettings,
    MemorySnapshot,
    edit,
    restore,
    snapshot,
)

LAYOUT = KVLayout(layers=2, heads=2, head_dim=6, tokens=2, temporal_channels=4, theta=100.0)
LAYERS, HEADS, DIM, TOKENS = 2, 2, 6, 2


def rotate(x, position):
    """RoPE in float64 with complex numbers: x [heads, tokens, dim] at one latent frame."""
    pairs = torch.view_as_complex(x[..., :4].double().unflatten(-1, (2, 2)).contiguous())
    angle = position * 100.0 ** (-torch.arange(2).double() / 2)
    turned = pairs * torch.polar(torch.ones(2).double(), angle)
    return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., 4:].double()], dim=-1)


@dataclass
class Frame:
    """A latent frame: raw (unrotated) keys and values per layer [heads, tokens, dim]."""

    position: int
    k: list
    v: list

    def key(self, layer, seat=None):
        return rotate(self.k[layer], self.position if seat is None else seat)

    def mean(self, layer):
        return self.key(layer).mean(dim=1)


class Naive:
    """The rules of docs/methods/memflow.md (eviction, bank, sparse activation, prompt changes), as lists."""

    def __init__(self, rules, frames_per_block):
        self.rules, self.f = rules, frames_per_block
        self.sink, self.window = [], []
        self.bank = [[] for _ in range(LAYERS)]
        self.pending, self.pending_new, self.count, self.position, self.take = None, False, 0, 0, 0
        self.text, self.text_known = None, False
        self.margin = float("inf")
        self.pinned = set()

    def fold(self):
        if not self.count or self.pending is None or (self.rules.fold_once and not self.pending_new):
            return
        self.pending_new = False
        for layer, bank in enumerate(self.bank):
            if self.count <= self.rules.bank:
                del bank[self.count - 1 :]
            else:
                known = self.text_known or self.rules.fresh_text
                scores = [self.score(layer, frame) if known else 0.0 for frame in bank]
                rank = [-inf if bank[i].position in self.pinned else -scores[i] for i in range(len(bank))]
                ranked = sorted(range(len(bank)), key=lambda i: (rank[i], i))
                if known and len(bank) > 1:
                    ordered = sorted(scores, reverse=True)
                    gaps = [a - b for a, b in itertools.pairwise(ordered) if a - b > 1e-12]
                    self.margin = min([self.margin, *gaps])
                bank[:] = [bank[i] for i in ranked[: self.rules.bank - 1]]
            bank.append(self.pending)

    def edit(self, pins, bans):
        self.pinned = (self.pinned | pins) - bans
        if not pins and not bans:
            return
        if not self.pending_new or self.pending.position in bans:
            self.pending, self.pending_new = None, False
        leave = max(sum(frame.position in bans for frame in bank) for bank in self.bank)
        for bank in self.bank:
            for _ in range(leave):
                worst = max(bank, key=lambda f: (f.position in bans, f.position not in self.pinned, f.position))
                del bank[next(i for i, frame in enumerate(bank) if frame is worst)]
        self.count = len(self.bank[0]) + self.pending_new

    def score(self, layer, frame):
        """Mean over rows, heads and tokens of the scaled dot product with every text row."""
        key = frame.key(layer)
        rows = self.text[layer].double()
        return float(torch.einsum("rhd,htd->rht", rows, key).mean() / DIM**0.5)

    def open(self, new):
        """Lists a block of `new` frames sees: (sink, window), the block last."""
        to_sink = min(self.rules.sink - len(self.sink), len(new))
        sink = self.sink + new[:to_sink]
        window = self.window + new[to_sink:]
        if self.rules.window is not None:
            window = window[max(0, len(window) - (self.rules.window - self.rules.sink)) :]
        return sink, window

    def commit(self, new):
        block = new[0].position // self.f
        self.sink, self.window = self.open(new)
        self.position += len(new)
        due = block % self.rules.record_interval == 0
        if self.rules.bank and (due or self.rules.record == "single"):
            self.pending, self.pending_new = new[0], True
            self.count += due

    def attend(self, layer, queries, sink, window, sparse, new):
        """Attention of queries, a list of (position, raw [heads, tokens, dim]), over sink, bank and window.

        new: the frames of the call itself; they keep their places even where they are the sink.
        """
        bank = self.bank[layer]
        held = [*sink, *bank, *window]
        places = [frame.position for frame in held]
        if self.rules.positions == "relative":
            old = [frame for frame in sink if not any(frame is other for other in new)]
            start = min([self.position, *(frame.position for frame in window[:1])])
            by_age = sorted(range(len(bank)), key=lambda i: bank[i].position)
            places = [start - len(bank) - len(old) + i for i in range(len(old))]
            places += [frame.position for frame in sink[len(old) :]]
            places += [start - len(bank) + by_age.index(i) for i in range(len(bank))]
            places += [frame.position for frame in window]
        keys = [frame.key(layer, place) for frame, place in zip(held, places)]
        values = [frame.v[layer].double() for frame in held]
        q = torch.cat([rotate(raw, position) for position, raw in queries], dim=1)
        memory = len(sink) + len(bank)
        out = []
        for head in range(HEADS):
            chosen = list(range(len(held)))
            if sparse and window and memory > self.rules.active:
                scores = [float(q[head].mean(dim=0) @ keys[i][head].mean(dim=0)) for i in range(memory)]
                ranked = sorted(range(memory), key=lambda i: -scores[i])
                ordered = sorted(scores, reverse=True)
                if self.rules.active:
                    # equal scores are the same frame held twice: either may be picked
                    gap = ordered[self.rules.active - 1] - ordered[self.rules.active]
                    same = gap < 1e-9
                    self.margin = self.margin if same else min(self.margin, gap)
                chosen = sorted(ranked[: self.rules.active]) + chosen[memory:]
            k = torch.cat([keys[i][head] for i in chosen])
            v = torch.cat([values[i][head] for i in chosen])
            out.append(torch.softmax(q[head] @ k.T / DIM**0.5, dim=-1) @ v)
        return torch.stack(out)


@st.composite
def rule_sets(draw):
    frames = draw(st.integers(1, 3))
    sink = draw(st.integers(0, 3))
    window = draw(st.one_of(st.none(), st.integers(sink + frames, sink + 3 * frames + 2)))
    bank = draw(st.integers(0, 3))
    return frames, MemorySettings(
        window=window,
        sink=sink,
        bank=bank,
        record_interval=draw(st.integers(1, 3)),
        record=draw(st.sampled_from(["interactive", "single"])),
        active=draw(st.integers(1, 3)) if bank else 0,
        positions=draw(st.sampled_from(["absolute", "relative"])),
        keep_sink=draw(st.booleans()),
        fresh_text=draw(st.booleans()),
        fold_once=draw(st.booleans()),
    )


class MemoryMachine(RuleBasedStateMachine):
    """Drives both with the same random keys and compares what every call attends to."""

    @initialize(rules=rule_sets(), seed=st.integers(0, 2**31))
    def begin(self, rules, seed):
        self.frames, self.rules = rules
        self.random = torch.Generator().manual_seed(seed)
        self.memory = KVMemory(LAYOUT, self.rules, frames_per_block=self.frames, dtype=torch.float64)
        self.naive = Naive(self.rules, self.frames)
        self.finished = []
        self.new_text()

    def draw(self, *shape):
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def new_text(self):
        self.naive.text = [self.draw(5, HEADS, DIM) for _ in range(LAYERS)]
        self.naive.text_known = False
        self.memory.forget_text()
        for layer in range(LAYERS):
            self.memory.set_text(layer, self.naive.text[layer].mean(dim=0))

    def make_frames(self, positions):
        return [
            Frame(p, *([self.draw(HEADS, TOKENS, DIM) for _ in range(LAYERS)] for _ in ("k", "v"))) for p in positions
        ]

    def compare(self, new, sink, window, sparse):
        for layer in range(LAYERS):
            k = torch.cat([frame.key(layer) for frame in new], dim=1).unsqueeze(0)
            v = torch.cat([frame.v[layer] for frame in new], dim=1).unsqueeze(0)
            raw = [(frame.position, self.draw(HEADS, TOKENS, DIM)) for frame in new]
            q = torch.cat([rotate(x, position) for position, x in raw], dim=1).unsqueeze(0)
            self.memory.write(layer, k, v)
            keys, values = self.memory.read(layer, q)
            found = torch.nn.functional.scaled_dot_product_attention(q, keys, values)[0]
            expected = self.naive.attend(layer, raw, sink, window, sparse, new)
            if self.naive.margin > 1e-5:
                assert (found - expected).abs().max() < 1e-4

    @rule(denoising=st.integers(0, 2))
    def block(self, denoising):
        renews = len(self.naive.sink) < self.rules.sink
        self.naive.fold()
        positions = range(self.naive.position, self.naive.position + self.frames)
        for step in range(denoising + 1):
            new = self.make_frames(positions)
            kind = CallKind.COMMIT if step == denoising else CallKind.DENOISE
            assert self.memory.begin_call(kind, self.frames).position == positions[0]
            sink, window = self.naive.open(new)
            self.compare(new, sink, window, sparse=bool(self.rules.active) and not renews)
            self.memory.end_call()
            self.naive.text_known = True
        self.naive.commit(new)
        self.memory.remember_clean(torch.tensor([float(p) for p in positions]).view(1, 1, -1, 1, 1))

    @rule()
    def switch(self):
        self.new_text()
        clean = self.memory.clean_latents()
        count = self.naive.position - self.naive.take
        if self.rules.window is not None:
            count = min(count, self.rules.window)
        assert (0 if clean is None else clean.shape[2]) == count
        if not count:
            return
        first = self.naive.position - count
        assert clean.flatten().tolist() == [float(p) for p in range(first, first + count)]
        self.naive.fold()
        new = self.make_frames(range(first, first + count))
        assert self.memory.begin_call(CallKind.RECACHE, count).position == first
        sink, old = self.naive.sink, self.naive.window
        renewed = 0 < len(sink) <= count and (first <= sink[0].position or not self.rules.keep_sink)
        sink = new[: len(sink)] if renewed else sink
        window = new[count - len(old) :] if old else []
        self.compare(new, sink, window, sparse=bool(self.rules.active))
        self.memory.end_call()
        self.naive.sink, self.naive.window = sink, window
        self.memory.forget_text()
        self.naive.text_known = False

    @rule()
    def cut(self):
        self.memory.drop_window()
        self.naive.window, self.naive.take = [], self.naive.position
        self.new_text()

    @rule()
    def save_and_load(self):
        saved = snapshot(self.memory)
        copy = MemorySnapshot({k: t.clone() for k, t in saved.tensors.items()}, json.loads(json.dumps(saved.meta)))
        self.memory = restore(copy, LAYOUT, self.rules, frames_per_block=self.frames, dtype=torch.float64)
        again = snapshot(self.memory)
        assert again.meta == json.loads(json.dumps(saved.meta))
        assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in saved.tensors.items())

    @rule(data=st.data())
    def steer(self, data):
        self.steer_with(lambda known: data.draw(st.sets(st.sampled_from(known), max_size=2)))

    def steer_with(self, choose):
        """Pin and ban frames that are remembered; what cannot be obeyed changes nothing."""
        saved = snapshot(self.memory)
        known = sorted({frame.position for bank in self.naive.bank for frame in bank})
        if self.memory.bank is None or not known or self.naive.margin <= 1e-5:
            return
        pins, bans = choose(known), choose(known)
        if self.rules.record == "single":
            pins = set()
        pinned = (self.naive.pinned | pins) - bans
        room = all(sum(frame.position in pinned for frame in bank) < self.rules.bank for bank in self.naive.bank)
        if pins & bans or not room:
            with pytest.raises(MemoryEditError):
                edit(saved, pins, bans)
            return
        before = {name: tensor.clone() for name, tensor in saved.tensors.items()}
        edited = edit(saved, pins, bans)
        assert all(torch.equal(tensor, saved.tensors[name]) for name, tensor in before.items())
        self.memory = restore(edited, LAYOUT, self.rules, frames_per_block=self.frames, dtype=torch.float64)
        self.naive.edit(pins, bans)

    @invariant()
    def same_frames(self):
        if not hasattr(self, "memory"):
            return
        assert self.memory.position == self.naive.position
        assert self.memory.sink == [frame.position for frame in self.naive.sink]
        assert self.memory.ring_count == len(self.naive.window)
        if self.memory.bank is not None and self.naive.margin > 1e-5:
            assert self.memory.bank.frames() == [[frame.position for frame in bank] for bank in self.naive.bank]


MemoryMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestKVMemory = MemoryMachine.TestCase


def random_rules(pick):
    frames, sink, bank = pick.randint(1, 3), pick.randint(0, 3), pick.randint(0, 3)
    window = pick.choice([None, *range(sink + frames, sink + 3 * frames + 3)])
    return frames, MemorySettings(
        window=window,
        sink=sink,
        bank=bank,
        record_interval=pick.randint(1, 3),
        record=pick.choice(["interactive", "single"]),
        active=pick.choice([0, 1, 2]) if bank else 0,
        positions=pick.choice(["absolute", "relative"]),
        keep_sink=pick.random() < 0.7,
        fresh_text=pick.random() < 0.3,
        fold_once=pick.random() < 0.3,
    )


@pytest.mark.parametrize("seed", range(40))
def test_long_random_films(seed):
    """Hypothesis prefers short runs; banks and rings only show their faults in long ones."""
    pick = random.Random(seed)
    machine = MemoryMachine()
    machine.begin(rules=random_rules(pick), seed=seed)
    for _ in range(25):
        action = pick.choices(["block", "switch", "cut", "save_and_load", "steer"], weights=[8, 3, 1, 1, 1])[0]
        if action == "steer":
            machine.steer_with(lambda known: set(pick.sample(known, min(len(known), pick.randint(0, 2)))))
        else:
            getattr(machine, action)(**({"denoising": pick.randint(0, 1)} if action == "block" else {}))
        machine.same_frames()


def test_a_bank_emptied_by_bans_fills_with_the_next_frame_recorded():
    """With record "single" every block renews what is pending, but only a block that is due takes a place."""
    machine = MemoryMachine()
    rules = MemorySettings(window=None, sink=0, bank=1, record_interval=2, record="single", active=1)
    machine.begin(rules=(1, rules), seed=0)
    machine.block(denoising=0)
    machine.switch()
    choices = iter([set(), {0}])
    machine.steer_with(lambda known: next(choices))
    machine.block(denoising=0)
    machine.switch()
    assert machine.memory.bank.frames() == [[]] * LAYERS
    machine.block(denoising=0)
    machine.switch()
    machine.same_frames()
    assert machine.memory.bank.frames() == [[2]] * LAYERS
