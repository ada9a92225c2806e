"""What a rollout refuses before it films: guidance, schedules, and latents that the schedule would ignore."""

from __future__ import annotations

import torch

__all__ = ["RolloutError", "check_guidance", "check_latents", "check_sigmas", "check_start"]

# What is left of a clip above it is less than a hundredth; schedules of 1000 timesteps begin at 0.998 and more.
_FULL_NOISE = 0.99


class RolloutError(ValueError):
    """A rollout that cannot be made as asked; the message is one sentence that says what to change."""


def check_guidance(guidance: float) -> None:
    """Raise RolloutError unless the guidance is 1."""
    if guidance != 1.0:
        raise RolloutError(f"Causal films are made with guidance 1, not {guidance:g}; set the guidance (CFG) to 1.")


def check_sigmas(sigmas: torch.Tensor) -> None:
    """Raise RolloutError unless the schedule falls from at most 1 to 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or float(sigmas[-1]) != 0.0 or not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise RolloutError("The sigmas of a causal film must fall step by step to 0; use a complete schedule.")
    if float(sigmas[0]) > 1.0:
        raise RolloutError("The sigmas of a causal film start at 1 at most; use a schedule made for this model.")


def check_start(sigmas: torch.Tensor, clip: bool = False) -> None:
    """check_sigmas, and raise RolloutError where the schedule begins at a noise level at which the film cannot begin.

    clip: whether there is a clip to begin from (video to video). With one the schedule begins below full noise, where
    nothing would be left of it; without one at full noise, since there is nothing else to begin from.
    """
    check_sigmas(sigmas)
    first = float(sigmas[0])
    if clip and first >= _FULL_NOISE:
        raise RolloutError(
            "The latent holds a clip of which nothing is left at the full noise that the schedule begins with: lower "
            "denoise in the scheduler to change the clip, or connect an empty latent to film without it."
        )
    if not clip and first < _FULL_NOISE:
        raise RolloutError(
            f"The schedule begins at {first:.3g} of the noise and there is no clip to begin from: use a complete "
            "schedule from 1 to 0 (denoise 1), or connect a clip's latent to Causal Sampler to change it."
        )


def check_latents(noise: torch.Tensor, channels: int) -> None:
    """Raise RolloutError unless these are latents of one video of so many channels."""
    if noise.shape[1] != channels:
        raise RolloutError(
            f"A causal film takes latents of {channels} channels and another node makes them {noise.shape[1]} (a "
            "joint latent of appearance and motion, for example): remove it, or film with another engine."
        )
    if noise.shape[0] != 1:
        raise RolloutError(f"It films one video and the latent holds {noise.shape[0]}: set its batch size to 1.")
