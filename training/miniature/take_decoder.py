"""The VAE's decoder once more, on latents that the DiT has made of long takes, whose true pictures are known.

What `training.miniature.decoder` does with openings, starts of takes and films, here with takes filmed again from
noised truth (`take_films.refilm`): latents with a sampler's errors, twenty seconds on, and the pictures that they
should have become.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...miniature.batch import World
from ...miniature.probe import Probe
from ...miniature.world import FPS
from ..core.loop import Metrics, Schedule, train
from .dit import Miniature
from .drawn import DrawnClips
from .param_groups import split_matrices
from .pixel_losses import feature_matching_loss
from .take_films import refilm
from .take_sequences import TakeSequences
from .takes import encode_clips
from .vae import decibels, draw

_CHARACTER_WEIGHT = 6.0
_PART, _LEAD = 7, 3
"""Latent frames that are decoded, and of those at the part's start whose pictures do not count: the decoder takes the
first for the film's first.
"""


@dataclass(frozen=True)
class TakeDecoderRecipe:
    """Updates of `clips` rendered clips of `frames` pictures, or, in `own` of the batches, of parts of `clips` takes of
    `films` that were filmed again. likeness: weight of the perceptual loss.
    """

    steps: int = 10**9
    seconds: float = 0.0
    films: int = 512
    clips: int = 16
    frames: int = 17
    own: float = 0.6
    likeness: float = 0.5
    rate: float = 3e-4
    muon_rate: float = 6e-4
    seed: int = 0


def train_decoder_on_takes(
    recipe: TakeDecoderRecipe,
    vae: Any,
    model: Miniature,
    perceptual_net: Probe,
    sequences: TakeSequences,
    world: World,
    folder: Path,
) -> None:
    """Train the decoder of `vae` in place, on the device it is on, resuming from `folder`; it ends with averaged
    weights. `vae`'s latents are those of `sequences`.
    """
    device = sequences.device
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder", "conv2")))
    frozen: tuple[nn.Module, ...] = (model, perceptual_net)
    for network in frozen:
        network.requires_grad_(False).eval()
    none, one = torch.zeros(16, 1, 1, 1, device=device), torch.ones(16, 1, 1, 1, device=device)
    takes, source = sequences.footage.takes, DrawnClips(world, recipe.seed, moving=0.6)
    filmed = random.Random(f"decoder {recipe.seed}").sample(range(len(takes)), min(recipe.films, len(takes)))
    half = (len(filmed) + 1) // 2
    for done, part in ((2, filmed[:half]), (3, filmed[half:])):
        for i in range(0, len(part), 256):
            refilm(model, sequences, part[i : i + 256], done)

    def rendered(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        clips, weights = source.clips(step, recipe.clips, recipe.frames)
        z = encode_clips(vae, none, one, (clips.transpose(1, 2) + 1) / 2).float()
        return clips, (weights - 1) / 3, z + 0.1 * random.choice((0, 1, 2)) * torch.randn_like(z)

    def own(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = random.Random(f"decoder {recipe.seed}/{step}")
        chosen = [rng.choice(filmed) for _ in range(recipe.clips)]
        start = rng.choice((0, rng.randint(1, takes.frames - _PART)))
        rows = torch.tensor(chosen).to(device, non_blocking=True)
        z = sequences.own[rows, :, start : start + _PART].float()
        # latent frame j shows pictures 4 j - 3 to 4 j
        first = 4 * (start + _LEAD) - 3 if start else 0
        moments = torch.arange(first, 4 * (start + _PART - 1) + 1) / FPS
        scenes = [sequences.footage.scenes[index] for index in chosen]
        drawn = world.render(scenes, moments.expand(len(chosen), -1))
        return drawn.frames.transpose(1, 2) * 2 - 1, drawn.masks[:, None], z

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        random.seed(f"decoder {recipe.seed} {step}")
        kind, make = ("own", own) if random.random() < recipe.own else ("rendered", rendered)
        clips, masks, z = make(step)
        made = draw(vae, z)[:, :, -clips.shape[2] :]
        error = made - clips
        weight = 1 + _CHARACTER_WEIGHT * masks
        value = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
        seen = feature_matching_loss(perceptual_net, made, clips)
        figures = {f"{kind} psnr": decibels((error.detach() / 2).square().mean()), f"{kind} unlike": seen.detach()}
        return value + recipe.likeness * seen, figures

    schedule = Schedule(
        recipe.steps, recipe.rate, warmup=20, muon_lr=recipe.muon_rate, ema_decay=0.99, seconds=recipe.seconds
    )
    vae.load_state_dict(train("decoder", vae, learn, schedule, folder, groups=split_matrices(vae), seed=recipe.seed))
