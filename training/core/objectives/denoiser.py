"""A diffusion model in training: the device and precision it computes in, and sampling with what it has learned."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn


class Denoiser:
    """`dit`, fed and read in the right precision.

    like: name of a parameter that is never trained and has the precision of the model's blocks (of Wan core keeps the
    patch embedding in float32). bf16: compute in bf16; a base in float32 is then cast layer by layer under autocast,
    any other is fed what it computes in.
    """

    def __init__(self, dit: nn.Module, bf16: bool, *, like: str = "head.modulation"):
        weight = dit.get_parameter(like)
        self.dit, self.device = dit, weight.device
        self.autocast = bf16 and weight.dtype == torch.float32
        self.dtype = torch.bfloat16 if bf16 and not self.autocast else torch.float32

    def network(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor, **options: Any) -> torch.Tensor:
        """The model's output, float32, on its device: x [B, channels, F, h, w], times in the model's own units [B] or
        [B, F], texts [B, L, D]; `options` as the model's `forward` has them.
        """
        fed = (x.to(self.device, self.dtype), time.to(self.device), text.to(self.device, self.dtype))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output: torch.Tensor = self.dit(*fed, **options)
        return output.float()

    @abstractmethod
    def step(
        self, x: torch.Tensor, output: torch.Tensor, here: float, there: float, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """From noise level `here` to `there` with what was predicted at here: an Euler step, or, with `noise`, the
        prediction of the clean latents noised anew.
        """

    @torch.no_grad()
    def denoise(
        self,
        x: torch.Tensor,
        levels: Sequence[float],
        predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        noise: Callable[[], torch.Tensor] | None = None,
        given: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> torch.Tensor:
        """`x` [B, ...] from the first of the noise `levels` to the last, one step each.

        predict(x, sigma [B]): what the model makes of it. noise(): drawn at each step, for few-step models; None for
        Euler's steps. given(x): puts back what is known of the latents, after each step.
        """
        for here, there in pairwise(levels):
            output = predict(x, torch.full((len(x),), here))
            x = given(self.step(x, output, here, there, noise().to(x) if noise else None))
        return x


def levels_of(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Noise levels [B] to be multiplied with latents `like` [B, ...]."""
    return sigma.to(like.device).reshape(-1, *(1 for _ in like.shape[1:]))


def stratified(count: int) -> torch.Tensor:
    """[count] numbers of 0..1, one from each equal part, in random order: less noise in a gradient than independent
    draws.
    """
    return (torch.randperm(count) + torch.rand(count)) / count
