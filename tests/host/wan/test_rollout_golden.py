"""The rollout against the original Self-Forcing, LongLive and MemFlow pipelines (tests/golden/rollout_tiny.*)."""

from __future__ import annotations

import json

import pytest
import torch
from longreel.film.kv_memory import LONGLIVE, SELF_FORCING, UNBOUNDED, MemorySettings
from longreel.host.wan.rollout import Prompt, roll_out

MEMFLOW_SINGLE = MemorySettings(record="single")


def film(tiny_wan, golden, frames, settings, switches=(), **kwargs):
    """Film `frames` latent frames with the golden noise; returns them as [1, T, C, h, w] in the model's space."""
    tensors = golden.tensors
    starts = [0, *switches]
    prompts = [Prompt(at, [[tensors[f"prompt.p{i}"], {}]]) for i, at in enumerate(starts)]
    noise = tensors["noise"].transpose(1, 2)
    again = tensors["renoise"].transpose(2, 3)

    def injected(block, step, shape):
        if step == 0:
            return noise[:, :, block * shape[2] : (block + 1) * shape[2]].clone()
        return again[block, step - 1].unsqueeze(0)

    sigmas = torch.tensor([*(t / 1000 for t in golden.info["loop"]["warped"]), 0.0])
    rollout = roll_out(tiny_wan, prompts, (1, 16, frames, 4, 6), sigmas, settings=settings, noise=injected, **kwargs)
    return tiny_wan.model.process_latent_in(rollout.latents).transpose(1, 2), rollout


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("sf_global", UNBOUNDED),
        ("sf_global", SELF_FORCING),
        ("ll_single", LONGLIVE),
        ("ll_switch", LONGLIVE),
        ("mf_single", MEMFLOW_SINGLE),
        ("mf_single_sma", MemorySettings(record="single", active=3)),
    ],
)
def test_matches_the_original(tiny_wan, golden, scenario, settings):
    info = golden.info["scenarios"][scenario]
    latents, _ = film(tiny_wan, golden, info["frames"], settings, info["switch"])
    assert (latents - golden.tensors[f"out.{scenario}"]).abs().max() < 1e-4


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 11, 15])
def test_bank_holds_the_original_keys(tiny_wan, golden, blocks):
    _, rollout = film(tiny_wan, golden, 3 * blocks, MEMFLOW_SINGLE)
    tensors, filled = rollout.memory.tensors, rollout.memory.meta["bank"]["filled"]
    for layer in (0, 2):
        expected = golden.tensors[f"bank_k.mf_single.chunk{blocks - 1:02d}.layer{layer}"]
        frames = expected.unflatten(0, (3, 6))[:filled]
        slots = 1 + tensors["bank.order"][layer][:filled]
        found = tensors["k"][layer].unflatten(1, (-1, 6))[:, slots].permute(1, 2, 0, 3)
        assert (found - frames).abs().max() < 1e-4 if filled else not expected.any()


def test_golden_file_is_the_one_described(golden):
    assert golden.info["dtype"] == "float32"
    assert json.loads(golden.info["comfyui_metadata"])["transformer"]["causal_ar"] is True
