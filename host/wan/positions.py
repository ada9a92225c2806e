"""What tells a Wan model when and where: the sinusoids of diffusion time, the rotations (RoPE) of frames and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.wan.model
import torch

__all__ = ["rotation_matrices", "sinusoids", "time_frequencies"]


def time_frequencies(dim: int, device: torch.device) -> torch.Tensor:
    """Core's frequencies of the time embedding, fp32 [dim / 2]: made on the device, where core copies them from the
    host in every pass.
    """
    half = dim // 2
    return torch.pow(10000, -torch.arange(half, device=device).to(torch.float32).div(half))


def sinusoids(times: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Core's sinusoidal embedding [n, dim] fp32 of times [n]."""
    angles = torch.outer(times.float(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def rotation_matrices(
    dit: comfy.ldm.wan.model.WanModel,
    place: int,
    size: tuple[int, int, int],
    device: torch.device,
    options: dict[str, Any],
    phases: Sequence[float],
    pairs: int,
) -> torch.Tensor:
    """RoPE matrices [1, F * T, 1, all pairs, 2, 2] fp32 of latents of `size` frames, rows and columns.

    place: where RoPE counts the first frame; phases: radians added to the angles of the first `pairs` (temporal)
    channel pairs of each frame, none without. Positions are in fp32: core's own call builds them in the model's dtype,
    and bf16 has no integers beyond 256.
    """
    first = place * options.get("rope_options", {}).get("scale_t", 1.0)
    rotation: torch.Tensor = dit.rope_encode(
        *size, first, device=device, dtype=torch.float32, transformer_options=options
    )
    if not phases:
        return rotation
    angles = torch.tensor(phases, device=device).repeat_interleave(rotation.shape[1] // len(phases))
    cos, sin = angles.cos(), angles.sin()
    extra = torch.stack((cos, -sin, sin, cos), dim=-1).view(1, -1, 1, 1, 2, 2)
    return torch.cat((extra @ rotation[:, :, :, :pairs], rotation[:, :, :, pairs:]), dim=3)
