"""EDM (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022) as SVD has it.

x = clean + sigma * noise, ln sigma is normal, and the model predicts the v of v-prediction between preconditioned input
and output (Karras et al., table 1 and section 5; SVD, arXiv 2311.15127, appendix D: p_mean 0.7, p_std 1.6, sigma_data
1, c_noise = ln(sigma) / 4). As ComfyUI's ModelSamplingContinuousEDM with V_PREDICTION, which a test holds it to.
"""

from __future__ import annotations

import torch
from torch import nn

from .denoiser import Denoiser, levels_of


class EDM(Denoiser):
    """A model that predicts v = (sigma_data * noise - sigma / sigma_data * clean) / sqrt(sigma^2 + sigma_data^2), so
    that D(x) = c_skip * x + c_out * v with c_skip = sigma_data^2 / (sigma^2 + sigma_data^2) and
    c_out = -sigma * sigma_data / sqrt(sigma^2 + sigma_data^2).
    """

    def __init__(
        self,
        dit: nn.Module,
        bf16: bool,
        *,
        like: str,
        p_mean: float = 0.7,
        p_std: float = 1.6,
        sigma_data: float = 1.0,
    ):
        super().__init__(dit, bf16, like=like)
        self.p_mean, self.p_std, self.sigma_data = p_mean, p_std, sigma_data

    def quantile(self, q: torch.Tensor) -> torch.Tensor:
        """The noise level at that quantile (0..1) of the log-normal distribution, its ends cut at 1e-4."""
        normal = torch.special.ndtri(q.double().clamp(1e-4, 1 - 1e-4))
        return (self.p_mean + self.p_std * normal).exp().float()

    @staticmethod
    def add_noise(clean: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`clean` [B, ...] at noise levels `sigma` [B]."""
        return clean + levels_of(sigma, clean) * noise

    def scaled_input(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network is fed: c_in * x, of unit variance."""
        return x / self._norm(levels_of(sigma, x))

    @staticmethod
    def timestep(sigma: torch.Tensor) -> torch.Tensor:
        """The network's conditioning on the noise level: c_noise."""
        return 0.25 * sigma.log()

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """D(x): the predicted clean latents, of the network's `output` at `x` [B, ...]."""
        level = levels_of(sigma, x)
        norm = self._norm(level)
        return x * (self.sigma_data / norm) ** 2 - output * level * self.sigma_data / norm

    def target(self, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The output for which `denoised` gives `clean`."""
        level = levels_of(sigma, clean)
        return (self.sigma_data**2 * noise - level * clean) / (self.sigma_data * self._norm(level))

    def loss(self, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Squared errors of the output, [B, ...] as clean: those of the denoised latents weighed by 1 / c_out^2, so
        that every noise level counts alike at first (section 5).
        """
        return (output - self.target(clean, noise, sigma)).square()

    def sigmas(self, steps: int, low: float = 0.002, high: float = 700.0, rho: float = 7.0) -> list[float]:
        """`steps` + 1 falling levels for sampling, the last of them 0 (equation 5)."""
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        return [*levels.tolist(), 0.0]

    def step(
        self, x: torch.Tensor, output: torch.Tensor, here: float, there: float, noise: torch.Tensor | None
    ) -> torch.Tensor:
        clean = self.denoised(x, torch.full((len(x),), here), output)
        if noise is None:
            return x + (there - here) * (x - clean) / here
        return clean + there * noise

    def _norm(self, level: torch.Tensor) -> torch.Tensor:
        return (level**2 + self.sigma_data**2).sqrt()
