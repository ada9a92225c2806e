"""The joint objective: one noise level, two noises, the velocities of appearance and of motion.

L = |u_x - (noise_x - x)|^2 + lambda |u_d - (noise_d - d)|^2 over [x, d] at the same sigma (VideoJAM, section 4.1, with
flow matching's signs as ComfyUI has them). In some samples the prompt is left out, in some the motion input is zeroed,
so that both can guide later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from ...host.wan.joint_latent import JointLatent, joint_kwargs
from ..core.objectives.flow_matching import FlowMatching
from .data import MotionExample

__all__ = ["JointMatcher", "Losses", "Prepared"]

BINS = (0.0, 0.5, 0.8, 0.95, 1.0)
"""Edges of the noise levels by which losses are logged."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch at its noise levels. x, d: noised [B, C, F, h, w]; v_x, v_d: their velocities. sigma: [B]. text:
    [B, L, D]. drop: [B, 1], 1 where the motion input is zeroed.
    """

    x: torch.Tensor
    d: torch.Tensor
    v_x: torch.Tensor
    v_d: torch.Tensor
    sigma: torch.Tensor
    text: torch.Tensor
    drop: torch.Tensor


@dataclass(frozen=True, eq=False)
class Losses:
    """Mean squared errors of each sample [B]: of appearance, and of motion."""

    appearance: torch.Tensor
    motion: torch.Tensor

    def by_level(self, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
        """Figures for the log: the mean of each within the bins of noise that are there."""
        figures = {}
        for low, high in pairwise(BINS):
            inside = ((sigma > low) & (sigma <= high)).to(self.motion.device)
            if bool(inside.any()):
                figures[f"appearance {low:g}-{high:g}"] = self.appearance.detach()[inside].mean()
                figures[f"motion {low:g}-{high:g}"] = self.motion.detach()[inside].mean()
        return figures


class JointMatcher(FlowMatching):
    """A Wan model and the layers through which it carries motion; without layers (joint None) the model alone.

    scale: factor on motion latents, as in the adapter's file.
    """

    def __init__(self, dit: nn.Module, joint: JointLatent | None, bf16: bool):
        super().__init__(dit, bf16)
        self.joint = joint
        self.scale = 1.0 if joint is None else joint.info.motion_latent_scale

    def prepare(
        self, examples: Sequence[MotionExample], sigma: torch.Tensor, empty: torch.Tensor, text_drop: float, drop: float
    ) -> Prepared:
        """Draw noises and what is left out. empty: the empty prompt [L, D]. text_drop, drop: 0..1."""
        x, d = (
            torch.stack([getattr(each, name) for each in examples]).to(self.device, torch.float32)
            for name in ("latents", "motion")
        )
        d = d * self.scale
        noise_x, noise_d = (torch.randn(each.shape).to(each) for each in (x, d))
        texts = pad_texts([each.text for each in examples], empty, torch.rand(len(examples)) < text_drop)
        dropped = (torch.rand(len(examples), 1) < drop).float().to(self.device)
        return Prepared(
            self.add_noise(x, sigma, noise_x),
            self.add_noise(d, sigma, noise_d),
            noise_x - x,
            noise_d - d,
            sigma,
            texts,
            dropped,
        )

    def velocities(self, batch: Prepared) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predicted velocities of appearance and, with layers, of motion, [B, C, F, h, w] float32."""
        time = batch.sigma.to(self.device) * 1000
        if self.joint is None:
            return self.network(batch.x, time, batch.text, transformer_options={}), None
        options = joint_kwargs(self.joint, batch.drop)
        both = self.network(torch.cat([batch.x, batch.d], dim=1), time, batch.text, **options)
        count = batch.x.shape[1]
        return both[:, :count], both[:, count:]

    def losses(self, batch: Prepared, *, motion_loss_on_drop: bool = True) -> Losses:
        """Of each sample. motion_loss_on_drop: whether samples without motion input learn to predict motion too."""
        v_x, v_d = self.velocities(batch)
        appearance = (v_x - batch.v_x).square().flatten(1).mean(dim=1)
        if v_d is None:
            return Losses(appearance, torch.zeros_like(appearance))
        motion = (v_d - batch.v_d).square().flatten(1).mean(dim=1)
        return Losses(appearance, motion if motion_loss_on_drop else motion * (1 - batch.drop[:, 0]))


def pad_texts(texts: Sequence[torch.Tensor], empty: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """Prompts [B, L, D] of one length, the empty one where dropped [B]; shorter ones are padded with zero rows, as
    ComfyUI's Wan text encoders do.
    """
    chosen = [empty if bool(left_out) else text for text, left_out in zip(texts, dropped, strict=True)]
    longest = max(len(text) for text in chosen)
    return torch.stack([torch.nn.functional.pad(text, (0, 0, 0, longest - len(text))) for text in chosen])
