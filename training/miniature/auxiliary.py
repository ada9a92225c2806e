"""Who else looks at what a LoRA of the miniature guesses, while it is trained: options and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...miniature.probe import Probe
from .export import read_probe, read_reader, read_vae
from .latent_classifier import Critic, Critics, Reading
from .pixel_losses import Onlooker
from .vae import VaeRecipe, build_vae


def add_critic_arguments(parser: argparse.ArgumentParser) -> None:
    """``--reading`` and ``--sight``."""
    parser.add_argument("--reading", type=float, default=0.3, help="miniature only: weight of the loss made of what a "
                        "reader sees in guessed latents, 0 for none")  # fmt: skip
    parser.add_argument("--sight", type=float, default=0.0, help="miniature only: weight of the loss made of what an "
                        "eye behind the decoder sees, 0 for none; doubles a step's time")  # fmt: skip


def open_critics(weights: Path, reading: float, sight: float, most: int = 4) -> Critic | None:
    """Those of weight above 0, of the files under ``weights``. ``most``: sequences of a batch that the eye looks at."""
    parts: list[Critic] = []
    if reading:
        parts.append(Reading(read_reader(weights), reading))
    if sight:
        eye = Probe().eval().requires_grad_(False)
        read_probe(eye, weights, "eye")
        vae = build_vae(VaeRecipe().width)
        read_vae(vae, weights)
        parts.append(Onlooker(vae.eval().requires_grad_(False), eye, sight, most))
    return Critics(tuple(parts)) if parts else None
