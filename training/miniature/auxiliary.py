"""Auxiliary losses of the miniature's LoRAs: command-line options and the losses they add."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ...miniature.probe import Probe
from ..core.auxiliary import AuxiliaryLoss, AuxiliaryLosses
from .export import read_latent_classifier, read_probe, read_vae
from .latent_classifier import LatentClassifierLoss
from .pixel_losses import DecodedProbeLoss
from .vae import VaeRecipe, build_vae


def add_auxiliary_arguments(parser: argparse.ArgumentParser) -> None:
    """`--latent-loss` and `--pixel-loss`."""
    parser.add_argument("--latent-loss", "--reading", type=float, default=0.3, help="miniature only: weight of the "
                        "loss by a classifier of predicted latents, 0 for none")  # fmt: skip
    parser.add_argument("--pixel-loss", "--sight", type=float, default=0.0, help="miniature only: weight of the loss "
                        "by a probe of the decoded latents, 0 for none; doubles a step's time")  # fmt: skip


def open_auxiliary_losses(
    weights: Path, reading: float, sight: float, most: int = 4, device: torch.device | str = "cpu"
) -> AuxiliaryLoss | None:
    """Those of weight above 0, of the files under `weights`, on `device`. most: sequences of a batch that the
    perceptual loss decodes.
    """
    parts: list[AuxiliaryLoss] = []
    if reading:
        parts.append(LatentClassifierLoss(read_latent_classifier(weights).to(device), reading))
    if sight:
        perceptual_net = Probe().eval().requires_grad_(False)
        read_probe(perceptual_net, weights, "eye")
        vae = build_vae(VaeRecipe().width)
        read_vae(vae, weights)
        vae.to(device).eval().requires_grad_(False)
        parts.append(DecodedProbeLoss(vae, perceptual_net.to(device), sight, most))
    return AuxiliaryLosses(tuple(parts)) if parts else None


def weights_of(auxiliary: AuxiliaryLoss | None) -> dict[str, float]:
    """Of all auxiliary losses that there are, 0 for those that a run does without."""
    return {"reading": 0.0, "sight": 0.0} | (auxiliary.weights if auxiliary else {})
