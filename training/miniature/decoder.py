"""Finetuning of the VAE's decoder alone: on the latents that the DiT makes, with a perceptual loss by a probe.

A VAE learned on rendered clips draws what turns and jumps softly, and a sampler's latents, which are a little wrong,
more so. A body's outline is a few of a frame's pixels, so the squared error hardly changes with it; the features of a
`perceptual_net` do, a probe whose activations for decoded and for true pictures should agree (Johnson et al.,
"Perceptual Losses for Real-Time Style Transfer", 2016). It is not the one that judges. The encoder stays as it is, and
with it everything that was trained on its latents.

Four kinds of samples: rendered clips of any moment through the encoder, those that turn, sway, jump and stretch more
often; openings and starts of takes that the DiT has denoised from a noise level at which their content is still
determined; and films that it has sampled from noise. The latter have no ground truth, but their prompts name a
character, and the eye's classification of it is a loss: an outline that the latents hold and the decoder leaves soft
costs as much as a wrong one. The decoder cannot invent it, as it reads no prompt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...miniature.probe import Probe
from ...miniature.stories import describe, random_scene
from ...miniature.text import pad, tokenize
from ...miniature.world import FPS, Scene, render
from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from .dit import Miniature, predict
from .evaluate import Models, schedule
from .latents import Stories, opening_scene, story_scenes
from .param_groups import split_matrices
from .pixel_losses import attribute_loss, feature_matching_loss, numbers
from .sequences import FEW_STEPS
from .vae import draw, encode, psnr

_MOVING = {"spins": 0.35, "sways": 0.2, "jumps": 0.15, "stretches": 0.15, "walks": 0.1, "stands": 0.05}
"""Sampling weight of each action in rendered clips: those that are decoded softly are drawn more often."""
_SECONDS = 8.0
_CHARACTER_WEIGHT = 6.0
_TAKE = 9
"""Latent frames of a take's start."""
_FILM, _PART, _LEAD = 15, 7, 3
"""Latent frames of a film, of the part that is decoded, and of those at the part's start whose pictures do not count:
the decoder takes the first for the film's first.
"""


@dataclass(frozen=True)
class DecoderRecipe:
    """`steps` updates, each of `clips` rendered clips of `frames` pictures out of a pool of `pool`, of `openings`
    openings, of `takes` takes or of parts of `takes` films out of `films`. own: shares of the last three. `likeness`
    weighs the eye's features, `told` its classification of films.
    """

    steps: int = 1800
    pool: int = 2200
    films: int = 400
    clips: int = 4
    frames: int = 17
    openings: int = 8
    takes: int = 2
    own: tuple[float, float, float] = (0.2, 0.15, 0.25)
    likeness: float = 0.5
    told: float = 0.5
    rate: float = 3e-4
    muon_rate: float = 6e-4
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """Clips [B, 3, T, 64, 64] in -1..1, where characters are [B, 1, T, 64, 64], and latents [B, 16, F, 8, 8]."""

    clips: torch.Tensor
    masks: torch.Tensor
    latents: torch.Tensor

    @classmethod
    def of(cls, scenes: list[tuple[Scene, float]], frames: int, latents: torch.Tensor) -> Drawn:
        """`frames` pictures of each scene from a moment on."""
        drawn = [render(scene, start + torch.arange(frames) / FPS) for scene, start in scenes]
        return cls(
            torch.stack([one.frames.transpose(0, 1) * 2 - 1 for one in drawn]),
            torch.stack([one.masks.amax(dim=1)[None] for one in drawn]),
            latents,
        )


def draw_pool(vae: Any, recipe: DecoderRecipe) -> Drawn:
    """Rendered clips with the latents that the frozen encoder gives them; bytes and halves, on the CPU."""
    device = next(vae.parameters()).device
    clips, masks, latents = [], [], []
    for index in range(recipe.pool):
        rng = random.Random(f"decoder {recipe.seed} {index}")
        scene, start = _moving(rng, recipe.frames / FPS)
        drawn = Drawn.of([(scene, start)], recipe.frames, torch.empty(0))
        with torch.no_grad(), mixed_precision(device):
            clip = drawn.clips.to(device, memory_format=torch.channels_last_3d)
            latents.append(encode(vae, clip).half().cpu())
        clips.append(((drawn.clips + 1) * 127.5).round().byte())
        masks.append((drawn.masks * 255).round().byte())
    return Drawn(torch.cat(clips), torch.cat(masks), torch.cat(latents))


@dataclass(frozen=True)
class Films:
    """Films of the finished miniature: latents [N, 16, 15, 8, 8], and the labels of its prompts [N, 2, 4], as
    `pixel_losses.numbers` has it.
    """

    latents: torch.Tensor
    named: torch.Tensor


@torch.inference_mode()
def draw_films(models: Models, count: int, seed: int) -> Films:
    """Rolled out in four steps from prompts of one character or two; turning, swaying, jumping and stretching ones more
    often.
    """
    from ...host.wan.rollout import Prompt, roll_out

    latents, named = [], []
    for index in range(count):
        rng = random.Random(f"decoder films {seed} {index}")
        action = rng.choices(list(_MOVING), list(_MOVING.values()))[0]
        while action not in (scene := random_scene(rng, 1.0)).beats[0].actions:
            pass
        prompt = describe(scene)
        text = models.clip.encode_from_tokens_scheduled(models.clip.tokenize(prompt))
        shape, levels = (1, 16, _FILM, 8, 8), schedule(len(FEW_STEPS))
        made = roll_out(models.model, [Prompt(0, text)], shape, levels, seed=seed * 100_000 + index).latents
        latents.append(models.model.model.process_latent_in(made)[0].half().cpu())
        named.append(numbers(pad(tokenize(prompt))[None])[0])
    return Films(torch.stack(latents), torch.stack(named))


def _moving(rng: random.Random, seconds: float) -> tuple[Scene, float]:
    """A scene in whose first beat a character performs the drawn action, and a moment of that beat; often its first."""
    action = rng.choices(list(_MOVING), list(_MOVING.values()))[0]
    while action not in (scene := random_scene(rng, _SECONDS, held_out=rng.random() < 0.2)).beats[0].actions:
        pass
    end = scene.beats[1].at if len(scene.beats) > 1 else _SECONDS
    return scene, 0.0 if rng.random() < 0.3 else rng.uniform(0, max(end - seconds, 0.1))


@torch.no_grad()
def finished(model: Miniature, clean: torch.Tensor, tokens: torch.Tensor, done: int) -> torch.Tensor:
    """Latents [B, 16, F, h, w] noised to what four-step sampling has after `done` steps, and sampled to the end under
    tokens [B, 48].
    """
    device = clean.device
    position = torch.arange(clean.shape[2], device=device)[None].expand(len(clean), -1)
    with mixed_precision(device):
        text = model.text(tokens)
    for level in FEW_STEPS[done:]:
        noised = (1 - level) * clean + level * torch.randn_like(clean)
        with mixed_precision(device):
            time = torch.full(position.shape, level * 1000, device=device)
            v = predict(model.dit, noised, time, text, position=position).float()
        clean = noised - level * v
    return clean


def train_decoder(
    recipe: DecoderRecipe,
    vae: nn.Module,
    model: Miniature,
    perceptual_net: Probe,
    stories: Stories,
    openings: Stories,
    films: Films,
    seed: int,
    folder: Path,
) -> None:
    """Train the decoder of `vae` in place, on the device it is on, resuming from `folder`; it ends with averaged
    weights. `vae`'s latents are those of `stories` and `openings`, which were drawn with `seed`, and of `films`, which
    `model` has made.
    """
    device = next(vae.parameters()).device
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder", "conv2")))
    model.requires_grad_(False).eval()
    perceptual_net.requires_grad_(False).eval()
    pool = draw_pool(vae, recipe)

    def rendered(rng: random.Random) -> Drawn:
        chosen = [rng.randrange(recipe.pool) for _ in range(recipe.clips)]
        noise = rng.choice((0.0, 0.1, 0.2))
        z = pool.latents[chosen].float()
        return Drawn(pool.clips[chosen].float() / 127.5 - 1, pool.masks[chosen] / 255, z + noise * torch.randn_like(z))

    def opened(rng: random.Random) -> Drawn:
        chosen = [rng.randrange(len(openings)) for _ in range(recipe.openings)]
        scenes = [(opening_scene(seed, index), 0.0) for index in chosen]
        return own(rng, scenes, openings.latents[chosen, 0], openings.tokens[chosen, 0, 0])

    def begun(rng: random.Random) -> Drawn:
        chosen: list[tuple[int, int]] = []
        while len(chosen) < recipe.takes:
            story, take = rng.randrange(len(stories)), rng.randrange(2)
            if stories.change[story, take] >= _TAKE:
                chosen.append((story, take))
        scenes = [(story_scenes(seed, story)[take], 0.0) for story, take in chosen]
        which, takes = zip(*chosen, strict=True)
        return own(rng, scenes, stories.latents[which, takes, :, :_TAKE], stories.tokens[which, takes, 0])

    def own(rng: random.Random, scenes: list[tuple[Scene, float]], z: torch.Tensor, tokens: torch.Tensor) -> Drawn:
        latents = finished(model, z.float().to(device), tokens.to(device), rng.choice((2, 3)))
        return Drawn.of(scenes, 4 * latents.shape[2] - 3, latents)

    def filmed(rng: random.Random) -> tuple[torch.Tensor, Metrics]:
        chosen = [rng.randrange(len(films.latents)) for _ in range(recipe.takes)]
        start = rng.choice((0, rng.randint(1, _FILM - _PART)))
        made = draw(vae, films.latents[chosen, :, start : start + _PART].float().to(device))
        told = attribute_loss(
            perceptual_net, made[:, :, 4 * _LEAD - 3 if start else 0 :], films.named[chosen].to(device)
        )
        return recipe.told * told, {"film told": float(told.detach())}

    kinds = {"rendered": rendered, "opening": opened, "take": begun}

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        rng = random.Random(f"decoder {recipe.seed}/{step}")
        kind = rng.choices((*kinds, "film"), (1 - sum(recipe.own), *recipe.own))[0]
        if kind == "film":
            return filmed(rng)
        drawn = kinds[kind](rng)
        clips, made = drawn.clips.to(device), draw(vae, drawn.latents.to(device))
        error = made - clips
        weight = 1 + _CHARACTER_WEIGHT * drawn.masks.to(device)
        value = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
        likeness = feature_matching_loss(perceptual_net, made, clips)
        figures = {
            f"{kind} psnr": psnr((error.detach() / 2).square().mean()),
            f"{kind} unlike": float(likeness.detach()),
        }
        return value + recipe.likeness * likeness, figures

    schedule = Schedule(recipe.steps, recipe.rate, warmup=20, muon_lr=recipe.muon_rate, ema_decay=0.99)
    vae.load_state_dict(train("decoder", vae, learn, schedule, folder, groups=split_matrices(vae), seed=recipe.seed))
