"""The onlooker looks at the right pictures of the right sequences, and knows whom their captions name."""

from __future__ import annotations

import random

import pytest
import torch
from longreel.miniature.probe import ATTRIBUTES, Probe
from longreel.miniature.text import pad, tokenize
from longreel.miniature.world import FPS, Actor, Beat, Character, Scene, render
from longreel.training.miniature.auxiliary import open_auxiliary_losses, weights_of
from longreel.training.miniature.evaluate import expected
from longreel.training.miniature.export import read_probe, read_vae
from longreel.training.miniature.latent_classifier import multi_hot_labels
from longreel.training.miniature.pixel_losses import DecodedProbeLoss, attribute_loss, numbers
from longreel.training.miniature.sequences import BLOCK, Batch, draw_layout
from longreel.training.miniature.vae import VaeRecipe, build_vae, encode

from ...server.harness import REPOSITORY

WEIGHTS = REPOSITORY / "miniature" / "weights"
RED, BLUE = Character("red", "box", "crown"), Character("blue", "star", "top hat")


def scene(who: Character) -> Scene:
    return Scene("desert", (Actor(who, "middle"),), (Beat(0.0, ("stands",)),))


@pytest.fixture(scope="module")
def perceptual_net():
    """The shipped probe stands for any."""
    perceptual_net = Probe().eval().requires_grad_(False)
    read_probe(perceptual_net, WEIGHTS)
    return perceptual_net


def test_captions_name_one_of_each_or_nobody():
    told = [
        "A red box with a crown stands in the middle in the desert.",
        "In the desert, a red box with a crown stands.",
        "A red box with a crown stands on the left and a blue star with a top hat walks on the right in the desert.",
        "The same character stands in the middle in the desert.",
    ]
    found = numbers(torch.stack([pad(tokenize(text)) for text in told]))
    wanted = [values.index(expected(scene(RED))[name]) for name, values in ATTRIBUTES.items()]
    other = [values.index(expected(scene(BLUE))[name]) for name, values in ATTRIBUTES.items()]
    nobody = [-1, -1, -1, wanted[3]]
    assert found[0].tolist() == found[1].tolist() == [wanted, nobody]
    assert found[2].tolist() == [wanted, other]
    assert found[3].tolist() == [nobody, nobody]


def test_an_eye_that_is_told_whom_a_film_shows_prefers_that_film(perceptual_net):
    pictures = [render(scene(who), torch.arange(5) / FPS).frames for who in (RED, BLUE)]
    made = torch.stack(pictures).transpose(1, 2) * 2 - 1
    named = torch.tensor(
        [[values.index(expected(scene(who))[name]) for name, values in ATTRIBUTES.items()] for who in (RED, BLUE)]
    )
    alone = torch.stack([named, torch.full_like(named, -1)], dim=1)
    assert attribute_loss(perceptual_net, made, alone) < 0.05
    assert attribute_loss(perceptual_net, made, alone.flip(0)) > 1

    two = Scene("desert", (Actor(RED, "left"), Actor(BLUE, "right")), (Beat(0.0, ("stands", "stands")),))
    both = render(two, torch.arange(5) / FPS).frames.transpose(0, 1)[None] * 2 - 1
    assert attribute_loss(perceptual_net, both, named[None]) < 0.05
    assert attribute_loss(perceptual_net, both, named.flip(0)[None]) > 1
    mixed = torch.cat([made, both]), torch.cat([alone, named[None]])
    assert attribute_loss(perceptual_net, *mixed) < 0.05
    assert attribute_loss(perceptual_net, mixed[0], mixed[1].flip(0)) > 1


@pytest.mark.parametrize("kind", ["opening", "clip", "start", "middle", "cut"])
def test_true_latents_are_seen_as_named_whatever_the_layout(perceptual_net, kind):
    """Guesses that are the truth cost little, such of somebody else much; who is not told is not looked at."""
    vae = build_vae(VaeRecipe().width).requires_grad_(False)
    read_vae(vae, WEIGHTS)
    rng = random.Random(0)
    while (drawn := draw_layout(rng))[0] != kind:
        pass
    layout = drawn[1]
    with torch.no_grad():
        clips = [render(scene(who), torch.arange(81) / FPS).frames.transpose(0, 1) * 2 - 1 for who in (RED, BLUE)]
        takes = encode(vae, torch.stack(clips))[:, :, layout.frame]
    tokens = torch.stack([
        pad(tokenize(f"A {who.colour} {who.body} with a {who.headgear} stands in the desert.")) for who in (RED, BLUE)
    ])[:, None]  # fmt: skip
    sigma = layout.noisy.float()[None].expand(2, -1)
    batch = Batch(
        takes, torch.zeros_like(takes), sigma, sigma[:, None, :, None, None], tokens, tokens,
        torch.zeros(2, len(layout.frame), dtype=torch.long), layout.position[None].expand(2, -1), layout.attention_mask,
        layout.noisy_index,
    )  # fmt: skip
    pixel_loss, everybody = DecodedProbeLoss(vae, perceptual_net, 2.0), torch.tensor([True, True])
    guess = takes.clone().requires_grad_()
    right = pixel_loss.of_batch(batch, guess, everybody)
    assert right < 0.5 < pixel_loss.of_batch(batch, takes.flip(0), everybody)
    right.backward()
    touched = (guess.grad.abs().sum(dim=(1, 3, 4)) > 0).any(dim=0)
    causal = bool((layout.noisy_index >= 0).any())
    assert BLOCK <= touched.sum() <= BLOCK + (0 if causal else 2), "a whole clip's block comes with its own lead"
    assert layout.noisy[touched].sum() >= BLOCK
    assert not causal or layout.noisy[touched].all()
    assert pixel_loss.of_batch(batch, takes, torch.tensor([False, False])) == 0


@pytest.fixture(scope="module")
def takes():
    """Two takes of one character each as latents [2, 16, 6, 8, 8], and the words that they show."""
    vae = build_vae(VaeRecipe().width).requires_grad_(False)
    read_vae(vae, WEIGHTS)
    clips = [render(scene(who), torch.arange(21) / FPS).frames.transpose(0, 1) * 2 - 1 for who in (RED, BLUE)]
    told = [f"A {who.colour} {who.body} with a {who.headgear} stands in the desert." for who in (RED, BLUE)]
    with torch.no_grad():
        return encode(vae, torch.stack(clips)), list(
            multi_hot_labels(torch.stack([pad(tokenize(text)) for text in told]))
        )


@pytest.mark.parametrize("seed", range(4))
def test_critics_tell_true_latents_from_others_by_words_and_by_likeness(takes, seed):
    """Whichever frames are looked at; and who is not named is not looked at by words."""
    latents, words = takes
    critic = open_auxiliary_losses(WEIGHTS, 0.5, 2.0)
    assert weights_of(critic) == {"reading": 0.5, "sight": 2.0}
    torch.manual_seed(seed)
    assert critic.loss(latents, words) < 0.5 < critic.loss(latents, words[::-1])
    assert critic.loss(latents, [None, None]) == 0
    assert critic.likeness(latents, latents) < 0.1 < critic.likeness(latents, latents.flip(0))
    only = open_auxiliary_losses(WEIGHTS, 0.0, 1.0)
    guess = latents.clone().requires_grad_()
    (only.loss(guess, [words[0], None]) + only.likeness(guess[:1], latents.flip(0)[:1])).backward()
    assert guess.grad[0].abs().sum() > 0
    assert guess.grad[1].abs().sum() == 0
    assert open_auxiliary_losses(WEIGHTS, 0.0, 0.0) is None
    assert weights_of(None) == {"reading": 0.0, "sight": 0.0}
