"""The decoder's last lessons: the right pictures for stored latents, an eye that sees differences, a frozen encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from longreel.miniature.probe import Probe
from longreel.miniature.world import FPS, render
from longreel.training.miniature import latents as stored
from longreel.training.miniature.decoder import DecoderRecipe, Films, draw_films, draw_pool, finished, train_decoder
from longreel.training.miniature.dit import DitRecipe, Miniature
from longreel.training.miniature.evaluate import load
from longreel.training.miniature.pixel_losses import feature_matching_loss
from longreel.training.miniature.vae import build_vae

from ...server.harness import REPOSITORY

WEIGHTS = REPOSITORY / "miniature" / "weights"
SEED = 5
ONE = torch.ones(16, 1, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards of two stories and of two openings each."""
    folder: Path = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "SHARD", 2)
        patch.setattr(stored, "OPENING_SHARD", 2)
        torch.manual_seed(0)
        stored.encode_stories(build_vae(4), 0 * ONE, ONE, 2, folder, SEED)
        yield folder


def test_scenes_are_those_that_the_latents_show(folder):
    stories, openings = stored.load_stories(folder), stored.load_stories(folder, "openings")
    for index in range(4):
        for take, scene in enumerate(stored.story_scenes(SEED, index)):
            masks = render(scene, torch.arange(stored.FRAMES) / FPS).masks
            assert torch.equal(stored.coverage(masks).bfloat16(), stories.weights[index, take])
        masks = render(stored.opening_scene(SEED, index), torch.arange(9) / FPS).masks
        assert torch.equal(stored.coverage(masks).bfloat16(), openings.weights[index, 0])


def test_an_eye_sees_no_difference_between_equals_and_pulls_at_what_is_made_alone():
    torch.manual_seed(0)
    perceptual_net = Probe().requires_grad_(False)
    true = torch.rand(2, 3, 5, 64, 64) * 2 - 1
    assert feature_matching_loss(perceptual_net, true, true) == 0
    made = (true + 0.1 * torch.randn_like(true)).requires_grad_()
    near, far = feature_matching_loss(perceptual_net, made, true), feature_matching_loss(perceptual_net, -made, true)
    assert 0 < near < far
    near.backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0


def test_finished_latents_keep_more_of_what_they_were_the_later_they_are_taken_up():
    torch.manual_seed(0)
    model = Miniature(DitRecipe(dim=48, ffn_dim=48, layers=1, heads=1)).requires_grad_(False)
    clean, tokens = torch.randn(2, 16, 3, 8, 8), torch.zeros(2, 48, dtype=torch.long)
    kept = [torch.corrcoef(torch.stack([finished(model, clean, tokens, done).flatten(), clean.flatten()]))[0, 1]
            for done in (1, 2, 3)]  # fmt: skip
    assert kept[0] < kept[1] < kept[2]


def test_only_the_decoder_learns_and_from_all_four_kinds(folder, tmp_path):
    stories, openings = stored.load_stories(folder), stored.load_stories(folder, "openings")
    torch.manual_seed(1)
    model, perceptual_net, vae = Miniature(DitRecipe(dim=48, ffn_dim=48, layers=1, heads=1)), Probe(), build_vae(4)
    start = {key: value.clone() for key, value in vae.state_dict().items()}
    films = Films(torch.randn(2, 16, 15, 8, 8).half(), torch.tensor([[[0] * 4, [-1] * 4]] * 2))
    recipe = DecoderRecipe(steps=12, pool=2, clips=1, openings=1, takes=1, own=(0.3, 0.25, 0.25), seed=1)
    train_decoder(recipe, vae, model, perceptual_net, stories, openings, films, SEED, tmp_path)
    changed = [key for key, value in vae.state_dict().items() if not torch.equal(value, start[key])]
    assert changed
    assert all(key.startswith(("decoder", "conv2")) for key in changed)
    logged = json.loads((tmp_path / "decoder.jsonl").read_text())
    assert {"rendered psnr", "opening psnr", "take psnr", "film told"} <= logged.keys()


def test_films_are_the_same_for_the_same_seed():
    models = load(WEIGHTS)
    films = draw_films(models, 2, seed=3)
    assert films.latents.shape == (2, 16, 15, 8, 8)
    again = draw_films(models, 1, seed=3)
    assert torch.equal(again.latents[0], films.latents[0])
    assert torch.equal(again.named[0], films.named[0])


def test_a_pool_holds_what_the_encoder_makes_of_its_clips():
    torch.manual_seed(0)
    vae = build_vae(4)
    pool = draw_pool(vae, DecoderRecipe(pool=3, frames=5))
    assert pool.clips.shape == (3, 3, 5, 64, 64)
    assert pool.latents.shape == (3, 16, 2, 8, 8)
    assert 0.01 < (pool.masks / 255).mean() < 0.5
