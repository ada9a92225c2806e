"""The recipes' own forward passes equal ComfyUI's; layouts follow the rollout's rules; runs resume to the bit."""

from __future__ import annotations

import json
import random

import pytest
import torch
from longreel.miniature.text import WORDS
from longreel.training.core import loop
from longreel.training.miniature import dit as recipe
from longreel.training.miniature import sequences, vae
from longreel.training.miniature.export import export_dit, export_vae, read_dit, read_vae
from longreel.training.miniature.latent_classifier import (
    VISIBLE_WORDS,
    LatentClassifier,
    LatentClassifierRecipe,
    frames_of,
    latent_bce,
    multi_hot_labels,
    train_latent_classifier,
)
from longreel.training.miniature.latents import Stories


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
            attention_mask=torch.ones(4, 4, dtype=torch.bool), text_mask=torch.ones(2, 4, 7, dtype=torch.bool),
        )  # fmt: skip
        assert torch.allclose(ours, model(x, time, text), atol=1e-5)


def test_layouts_show_a_noisy_block_what_a_rollout_would():
    for seed in range(60):
        kind, layout = sequences.draw_layout(random.Random(seed))
        noisy = layout.noisy.nonzero().flatten()
        if kind in ("opening", "clip", "cut"):
            assert layout.attention_mask.all()
            continue
        for q in noisy[:: sequences.BLOCK].tolist():
            seen = layout.attention_mask[q]
            own = torch.arange(q, q + sequences.BLOCK)
            assert seen[own].all()
            others = seen.clone()
            others[own] = False
            assert not layout.noisy[others].any(), "noisy frames never see other noisy blocks"
            assert (layout.position[others] < layout.position[q]).all(), "nor the future"
            assert others.sum() <= sequences.SINK + 2 + sequences.WINDOW - sequences.SINK - sequences.BLOCK
            if layout.position[q] > 0:
                assert layout.position[others].min() == 0, "the sink is always seen"


def test_exported_models_can_be_trained_on(small_vae, tmp_path):
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    raw = vae.encode(small_vae, clip)
    shift, scale = torch.randn(16, 1, 1, 1), torch.rand(16, 1, 1, 1) + 0.5
    export_vae(small_vae, shift, scale, tmp_path)
    read = vae.build_vae(8)
    read_vae(read, tmp_path)
    latents = vae.encode(read, clip)
    assert torch.allclose(latents, (raw - shift) / scale, atol=0.02), "its own scale is the normalised one"
    assert torch.allclose(vae.decode(read, latents), vae.decode(small_vae, raw), atol=0.02)
    model, again = recipe.Miniature(SMALL), recipe.Miniature(SMALL)
    export_dit(model, SMALL, tmp_path)
    read_dit(again, tmp_path)
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


SMALL = recipe.DitRecipe(dim=48, ffn_dim=64, layers=1, heads=2, freq_dim=32, text_dim=128, steps=3)


def stories(count, takes, frames):
    torch.manual_seed(5)
    change = torch.full((count, takes), 6)
    return Stories(
        torch.randn(count, takes, 16, frames, 8, 8),
        torch.rand(count, takes, frames, 8, 8),
        torch.randint(1, 40, (count, takes, 3, 48)),
        change,
    )


def test_batches_hold_what_their_layout_says():
    kinds = set()
    for step in range(40):
        kind, batch = sequences.draw_batch(stories(4, 2, 21), stories(6, 1, 3), random.Random(step), 2)
        kinds.add(kind)
        count, frames = batch.sigma.shape
        assert batch.clean.shape == (count, 16, frames, 8, 8)
        assert count == (14 if kind == "opening" else 2), "openings are short: there are as many as fit"
        learned = batch.weight.amax(dim=(1, 3, 4)) > 0
        assert (batch.sigma[learned] > 0).all(), "what is learned is noisy"
        assert (batch.sigma[~learned] == 0).all(), "what is given is clean"
        assert int(batch.caption.max()) < batch.tokens.shape[1]
    assert kinds == {"opening", "clip", "cut", "start", "middle", "story"}


def test_a_finished_run_is_kept(tmp_path):
    torch.manual_seed(6)
    model = recipe.Miniature(SMALL)
    recipe.train_dit(SMALL, model, LatentClassifier(16), stories(4, 2, 21), stories(6, 1, 3), tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "dit.jsonl").open()] == [3]
    again = recipe.Miniature(SMALL)
    recipe.train_dit(SMALL, again, LatentClassifier(16), stories(4, 2, 21), stories(6, 1, 3), tmp_path)
    done = model.state_dict()
    assert all(torch.equal(value, done[key]) for key, value in again.state_dict().items())


def test_a_clean_frame_and_its_noisy_twin_are_the_same_frame():
    found = 0
    for seed in range(60):
        _, layout = sequences.draw_layout(random.Random(seed))
        for clean, noisy in enumerate(layout.noisy_index.tolist()):
            if noisy >= 0:
                found += 1
                assert layout.noisy[noisy]
                assert not layout.noisy[clean]
                assert (layout.take[clean], layout.frame[clean]) == (layout.take[noisy], layout.frame[noisy])
    assert found


def test_own_context_changes_clean_frames_with_a_twin_and_nothing_else():
    torch.manual_seed(8)
    model = recipe.Miniature(SMALL)
    for step in range(40):
        kind, batch = sequences.draw_batch(stories(4, 2, 21), stories(6, 1, 3), random.Random(step), 2)
        own = recipe.with_self_context(model, batch, 1.0)
        changed = (own.clean != batch.clean).flatten(3).any(dim=3).any(dim=1)
        assert torch.equal(changed, (batch.noisy_index >= 0).expand_as(changed)), kind
        assert recipe.with_self_context(model, batch, 0.0).clean is batch.clean
        # a zero head says velocity 0: the guess is the noised frame, somewhere between picture and noise
        picture, noise = batch.clean[:, :, batch.noisy_index], batch.noise[:, :, batch.noisy_index]
        between = (own.clean - picture) / (noise - picture)
        share = between[:, :, batch.noisy_index >= 0]
        assert ((share > 0.3) & (share < 1)).all()


@pytest.mark.parametrize("done", [1, 2, 3])
def test_own_steps_leave_nothing_of_the_picture_but_what_is_given(done):
    torch.manual_seed(8)
    model = recipe.Miniature(SMALL)
    with torch.no_grad():
        model.dit.head.head.weight.normal_(std=0.1)
    for step in range(12):
        _, batch = sequences.draw_batch(stories(4, 2, 21), stories(6, 1, 3), random.Random(step), 2)
        given = batch.sigma == 0
        torch.manual_seed(1)
        own = recipe.with_self_rollout(model, batch, done)
        hidden = torch.where(given[:, None, :, None, None], batch.clean, torch.zeros_like(batch.clean))
        torch.manual_seed(1)
        blind = recipe.with_self_rollout(model, recipe.replace(batch, clean=hidden), done)
        assert torch.equal(own.clean, blind.clean), "the pictures to be learned were never looked at"
        assert torch.equal(own.clean[:, :, 0][given[:, 0]], batch.clean[:, :, 0][given[:, 0]])
        assert torch.equal(own.sigma, sequences.FEW_STEPS[done] * ~given)


def test_after_a_cut_everybody_is_named_for_the_reader():
    told = stories(4, 2, 21)
    for step in range(60):
        kind, batch = sequences.draw_batch(told, stories(6, 1, 3), random.Random(step), 2)
        same = torch.isin(batch.tokens, told.tokens[:, :, 2]).all(dim=2) & (batch.tokens != batch.resolved_tokens).any(
            dim=2
        )
        assert not same.any() or kind in ("story", "cut")
        assert torch.equal(batch.resolved_tokens[~same], batch.tokens[~same])


def test_a_reader_finds_what_a_latent_shows(tmp_path):
    """Latents carry a word's own pattern somewhere: the reader learns to find it, and a guess is judged by it."""
    torch.manual_seed(9)
    patterns = torch.randn(len(VISIBLE_WORDS), 16) * 3
    tokens = torch.zeros(64, 1, 3, 48, dtype=torch.long)
    latents = torch.zeros(64, 1, 16, 3, 8, 8)
    for index in range(64):
        word, row, column = (int(torch.randint(n, ())) for n in (len(VISIBLE_WORDS), 8, 8))
        tokens[index, :, :, 5] = WORDS.index(VISIBLE_WORDS[word]) + 1
        latents[index, 0, :, :, row, column] = patterns[word][:, None]
    data = Stories(latents, torch.zeros(64, 1, 3, 8, 8), tokens, torch.full((64, 1), 21))
    reader = LatentClassifier(16)
    train_latent_classifier(
        LatentClassifierRecipe(width=16, steps=150, batch=64, rate=3e-3), reader, frames_of(data, data), tmp_path
    )
    named = multi_hot_labels(tokens[:, 0, 0])
    assert (named.sum(dim=1) == 1).all()
    told, all_frames = named[:, None].expand(-1, 3, -1), torch.ones(64, 3, dtype=torch.bool)
    right = latent_bce(reader, latents[:, 0], told, all_frames)
    wrong = latent_bce(reader, latents[:, 0], told.roll(1, dims=0), all_frames)
    assert right < 0.5 * wrong
    none = torch.zeros_like(all_frames)
    none[0, 0] = True
    first = latent_bce(reader, latents[:, 0], told, none)
    assert torch.isclose(first, latent_bce(reader, latents[:1, 0, :, :1], told[:1, :1], none[:1, :1]), atol=1e-5)


def _toy(folder, steps):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))

    def loss_at(step):
        value = (model(torch.randn(16, 4)) - 1).square().mean()
        return value, {}

    schedule = loop.Schedule(20, 1e-2, warmup=2, muon_lr=1e-2)
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
