"""The recipes' own forward passes equal ComfyUI's; layouts follow the rollout's rules; runs resume to the bit."""

from __future__ import annotations

import random

import pytest
import torch
from longreel.training import dit as recipe
from longreel.training import loop, vae
from longreel.training.export import export_vae


@pytest.fixture(scope="module")
def small_vae():
    torch.manual_seed(0)
    model = vae.build_vae(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 21])
def test_whole_clip_passes_equal_the_cached_ones(small_vae, frames):
    clip = torch.rand(1, 3, frames, 32, 32) * 2 - 1
    latents = vae.encode(small_vae, clip)
    assert torch.allclose(latents, small_vae.encode(clip), atol=1e-5)
    assert torch.allclose(vae.decode(small_vae, latents), small_vae.decode(latents), atol=1e-4)


def test_the_exported_vae_speaks_wans_latent_scale(small_vae, tmp_path):
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils

    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    raw = vae.encode(small_vae, clip)
    shift, scale = torch.randn(16, 1, 1, 1), torch.rand(16, 1, 1, 1) + 0.5
    path = export_vae(small_vae, shift, scale, tmp_path)
    exported = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)), dtype=torch.float32).first_stage_model
    normalised = comfy.latent_formats.Wan21().process_in(exported.encode(clip))
    assert torch.allclose(normalised, (raw - shift) / scale, atol=0.02)
    decoded = exported.decode(comfy.latent_formats.Wan21().process_out((raw - shift) / scale))
    assert torch.allclose(decoded, small_vae.decode(raw), atol=0.02)


def test_the_dit_pass_equals_comfyuis():
    torch.manual_seed(1)
    sizes = recipe.DitRecipe(dim=64, ffn_dim=96, layers=2, heads=2, freq_dim=32, text_dim=24)
    model = recipe.build_dit(sizes)
    with torch.no_grad():
        model.head.head.weight.normal_(std=0.1)
        x, time, text = torch.randn(2, 16, 4, 8, 6), torch.tensor([500.0, 900.0]), torch.randn(2, 7, 24)
        ours = recipe.predict(
            model, x, time[:, None].expand(2, 4), text, position=torch.arange(4)[None].expand(2, 4),
            sees=torch.ones(4, 4, dtype=torch.bool), reads=torch.ones(2, 4, 7, dtype=torch.bool),
        )  # fmt: skip
        assert torch.allclose(ours, model(x, time, text), atol=1e-5)


def test_layouts_show_a_noisy_block_what_a_rollout_would():
    for seed in range(60):
        kind, layout = recipe.draw_layout(random.Random(seed))
        noisy = layout.noisy.nonzero().flatten()
        if kind == "clip":
            assert layout.sees.all()
            continue
        for q in noisy[:: recipe.BLOCK].tolist():
            seen = layout.sees[q]
            own = torch.arange(q, q + recipe.BLOCK)
            assert seen[own].all()
            others = seen.clone()
            others[own] = False
            assert not layout.noisy[others].any(), "noisy frames never see other noisy blocks"
            assert (layout.position[others] < layout.position[q]).all(), "nor the future"
            assert others.sum() <= recipe.SINK + 2 + recipe.WINDOW - recipe.SINK - recipe.BLOCK
            if layout.position[q] > 0:
                assert layout.position[others].min() == 0, "the sink is always seen"


def _toy(folder, steps):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))

    def loss_at(step):
        value = (model(torch.randn(16, 4)) - 1).square().mean()
        return value, {}

    schedule = loop.Schedule(20, 1e-2, warmup=2, muon_rate=1e-2)
    if steps < 20:
        inner = loss_at

        def loss_at(step):  # a run that is killed after `steps`
            if step == steps:
                raise KeyboardInterrupt
            return inner(step)

    return loop.train("toy", model, loss_at, schedule, folder, say=lambda _: None)


def test_a_killed_run_continues_to_the_bit(tmp_path):
    straight = _toy(tmp_path / "a", 20)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "b", 11)
    continued = _toy(tmp_path / "b", 20)
    assert all(torch.equal(straight[key], continued[key]) for key in straight)
