"""The layers that a joint model has more than its base."""

from __future__ import annotations

import math

import pytest
import torch
from longreel.film.motion import MotionLayers
from torch import nn

DIM, C, PATCH, GRID = 12, 4, (1, 2, 2), (3, 2, 5)
P = math.prod(PATCH)


def layers(separate: bool = False) -> MotionLayers:
    torch.manual_seed(3)
    made = MotionLayers(DIM, C, PATCH, separate=separate)
    if made.modulation is not None:
        made.modulation.data.normal_()
    return made


def unpatchify(features: torch.Tensor, channels: int) -> torch.Tensor:
    """As ComfyUI's WanModel does it."""
    blocks = features.view(len(features), *GRID, *PATCH, channels)
    blocks = torch.einsum("bfhwpqrc->bcfphqwr", blocks)
    return blocks.reshape(len(features), channels, *(a * b for a, b in zip(GRID, PATCH)))


@pytest.fixture
def inputs():
    torch.manual_seed(4)
    tokens = torch.randn(2, math.prod(GRID), DIM)
    return tokens, torch.randn(2, 1, DIM), torch.randn(1, 2, DIM)


def test_one_widened_projection_is_the_single_head_with_interleaved_rows(inputs):
    tokens, time, modulation = inputs
    motion, base = layers(), nn.Linear(DIM, P * C)
    shift, scale = (modulation[:, None] + time[:, :, None]).unbind(2)
    modulated = shift + nn.functional.layer_norm(tokens, (DIM,), eps=1e-6) * (1 + scale)
    expected = torch.cat([unpatchify(base(modulated), C), motion.predict(tokens, time, modulation, GRID, 1e-6)], dim=1)

    def widened(order) -> torch.Tensor:
        rows = order(base.weight, motion.head.weight)
        bias = order(base.bias[:, None], motion.head.bias[:, None])[:, 0]
        return unpatchify(nn.functional.linear(modulated, rows, bias), 2 * C)

    def interleaved(own, added):
        return torch.cat([own.view(P, C, -1), added.view(P, C, -1)], dim=1).flatten(0, 1)

    def stacked(own, added):
        return torch.cat([own, added])

    assert torch.allclose(widened(interleaved), expected, atol=1e-6)
    assert not torch.allclose(widened(stacked), expected, atol=1e-2)


def test_widened_input_is_the_sum_of_both_embeddings():
    motion, base = layers(), nn.Conv3d(C, DIM, PATCH, PATCH)
    widened = nn.Conv3d(2 * C, DIM, PATCH, PATCH)
    widened.weight.data = torch.cat([base.weight, motion.embedding.weight], dim=1)
    widened.bias.data = base.bias
    x, d = torch.randn(2, C, 3, 4, 6), torch.randn(2, C, 3, 4, 6)
    tokens = base(x).flatten(2).transpose(1, 2) + motion.embed(d)
    assert torch.allclose(widened(torch.cat([x, d], dim=1)).flatten(2).transpose(1, 2), tokens, atol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_reset_layers_add_nothing_and_predict_nothing(inputs, separate):
    tokens, time, modulation = inputs
    motion = layers(separate)
    motion.reset(modulation)
    assert (motion.embed(torch.randn(2, C, 3, 4, 10)) == 0).all()
    assert (motion.predict(tokens, time, modulation, GRID, 1e-6) == 0).all()


def test_a_separate_head_at_the_bases_modulation_is_the_single_one(inputs):
    tokens, time, modulation = inputs
    single, separate = layers(), layers(True)
    separate.load_state_dict(single.state_dict() | {"modulation": modulation})
    other = torch.zeros_like(modulation)
    expected = single.predict(tokens, time, modulation, GRID, 1e-6)
    assert torch.equal(separate.predict(tokens, time, other, GRID, 1e-6), expected)
    assert not torch.equal(single.predict(tokens, time, other, GRID, 1e-6), expected)
    assert separate.separate
    assert not single.separate


def test_a_noise_level_for_each_frame(inputs):
    tokens, _, modulation = inputs
    motion, times = layers(), torch.randn(2, GRID[0], DIM)
    whole = motion.predict(tokens, times, modulation, GRID, 1e-6)
    for frame in range(GRID[0]):
        alone = motion.predict(tokens, times[:, frame : frame + 1], modulation, GRID, 1e-6)
        assert torch.allclose(whole[:, :, frame], alone[:, :, frame], atol=1e-6)


def test_odd_sizes_are_padded_like_the_bases():
    motion = layers()
    d = torch.randn(1, C, 3, 5, 7)
    padded = nn.functional.pad(d, (0, 1, 0, 1, 0, 0), mode="circular")
    assert torch.equal(motion.embed(d), motion.embed(padded))
    assert motion.embed(d).shape == (1, 3 * 3 * 4, DIM)


def test_gradients_at_zero():
    """The motion loss alone moves only the head; the appearance loss moves the embedding at once."""
    motion = layers()
    motion.reset()
    d, tokens = torch.randn(1, C, 3, 4, 10), torch.randn(1, math.prod(GRID), DIM)
    time, modulation = torch.randn(1, 1, DIM), torch.randn(1, 2, DIM)
    joined = tokens + motion.embed(d)
    motion.predict(joined, time, modulation, GRID, 1e-6).sub(1.0).square().mean().backward()
    assert motion.head.weight.grad.abs().max() > 0
    assert motion.embedding.weight.grad.abs().max() == 0
    motion.zero_grad()
    (tokens + motion.embed(d)).square().mean().backward()
    assert motion.embedding.weight.grad.abs().max() > 0
