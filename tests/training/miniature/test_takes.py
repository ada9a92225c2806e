"""Sequences of long takes show what a rollout sees; their films stay with the takes; Muon in batches is Muon."""

from __future__ import annotations

import random

import pytest
import torch
from longreel.training.core.muon import BatchedMuon
from longreel.training.miniature import take_films, takes, vae
from longreel.training.miniature.dit import DitRecipe, Miniature
from longreel.training.miniature.latent_classifier import LatentClassifier
from longreel.training.miniature.take_sequences import KINDS, TakeSequences, frames_seen, pattern
from torch import nn

SMALL = DitRecipe(dim=48, ffn_dim=48, layers=1, heads=2, freq_dim=32)
FRAMES = 30


@pytest.fixture
def footage() -> takes.Footage:
    torch.manual_seed(1)
    rng = random.Random(2)
    scenes: list = []
    for index in range(4):
        scenes.append(takes.take_scene(rng, FRAMES, scenes[-1] if index % 2 else None))

    def of(chosen: list, frames: int) -> takes.Takes:
        return takes.Takes(
            torch.randn(len(chosen), 16, frames, 8, 8).bfloat16(),
            torch.rand(len(chosen), frames, 8, 8).bfloat16(),
            torch.stack([takes.take_words(rng, scene) for scene in chosen]),
            torch.stack([takes.captions(scene, frames) for scene in chosen]),
        )

    return takes.Footage(of(scenes, FRAMES), of(scenes, 3), of(scenes, 21), tuple(scenes))


def test_prompts_change_at_starts_of_blocks_and_partners_share_their_lead(footage: takes.Footage):
    for scene, row in zip(footage.scenes, footage.takes.caption.tolist(), strict=True):
        assert row[0] == 0
        assert sorted(set(row)) == list(range(len(set(row)))), "one after the other"
        assert all(at % 3 == 0 for at in range(1, FRAMES) if row[at] != row[at - 1])
        assert len(scene.beats) <= takes.PROMPTS
    for first, second in zip(footage.scenes[::2], footage.scenes[1::2], strict=True):
        if first.actors and second.actors:
            assert first.actors[0].character == second.actors[0].character


@pytest.mark.parametrize("bank", [0, 3])
@pytest.mark.parametrize("kind", ["start", "far", "switch", "story"])
def test_a_noisy_block_sees_sink_bank_window_and_itself(kind: str, bank: int):
    blocks = pattern(kind, bank)
    attention_mask, noisy_index = frames_seen(blocks)
    roles = [block.role for block in blocks]
    for index, block in enumerate(blocks):
        if block.role != "noisy":
            continue
        row = attention_mask[3 * index]
        seen = {k: int(row[3 * k : 3 * k + 3].sum()) for k in range(len(blocks)) if row[3 * k : 3 * k + 3].any()}
        assert seen.pop(index) == 3
        others = [blocks[k] for k in seen]
        assert all(other.role != "noisy" for other in others)
        window = [other.time for other in others if other.role in ("past", "again")]
        assert all(0 < block.time - time <= 2 for time in window), "six frames before it"
        assert [count for k, count in seen.items() if roles[k] == "bank"] == [1] * roles.count("bank")
        first_block = kind in ("start", "story") and block.time == 0
        assert ("sink" in [other.role for other in others]) != (kind == "start" and first_block)
    if kind == "switch":
        again = torch.tensor([role == "again" for role in roles]).repeat_interleave(3)
        assert attention_mask[again][:, again].all(), "a recache is one pass"
    assert (noisy_index >= 0).any()


def test_batches_of_all_layouts_can_be_learned_from(footage: takes.Footage):
    sequences = TakeSequences(footage)
    torch.manual_seed(0)
    model, reader = Miniature(SMALL), LatentClassifier(16)
    take_films.refilm(model, sequences, [0, 1], 3)
    assert sequences.refilmed == {0, 1}
    assert not torch.equal(sequences.own[:2], footage.takes.latents[:2])
    assert torch.equal(sequences.own[2:], footage.takes.latents[2:])
    for kind in KINDS:
        drawn, batch = sequences.draw(random.Random(kind), 2, kind)
        assert drawn == kind
        learned = batch.weight.amax(dim=(1, 3, 4)) > 0
        assert (batch.sigma[learned] > 0).all()
        assert int(batch.caption.max()) < batch.tokens.shape[1]
        positions = batch.position[:, :: takes.BLOCK] if kind not in ("clip", "cut") else batch.position
        assert (positions >= 0).all()
        value, _ = take_films.step_loss(take_films.TakeTraining(), model, reader, kind, batch)
        assert torch.isfinite(value), kind


def test_muon_in_batches_is_torchs():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape)) for shape in ((8, 12), (8, 12), (20, 6))]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    batched = BatchedMuon(ours, 1e-2, 0.01)
    single = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        single.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("taps", "stride", "kernel"), [(3, 1, 3), (3, 2, 1), (1, 1, 1)])
def test_convolutions_by_planes_are_those_in_three_dimensions(taps: int, stride: int, kernel: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 4, 7, 6, 5), torch.randn(3, 4, taps, kernel, kernel), torch.randn(3)
    padding = kernel // 2
    whole = torch.nn.functional.conv3d(x, weight, bias, (stride, 1, 1), (0, padding, padding))
    torch.testing.assert_close(vae.by_planes(x, weight, bias, stride, padding), whole, atol=1e-4, rtol=1e-4)
