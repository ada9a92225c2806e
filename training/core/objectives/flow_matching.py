"""Flow matching of a Wan model conditioned on its first frame: noise levels, predictions, losses and samples.

x = (1 - sigma) * clean + sigma * noise, and the model learns the velocity noise - clean (Wan; FFGo's released trainer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from ...miniature.latent_classifier import AuxiliaryLoss
from ...miniature.sequences import FEW_STEPS
from ..lora import LoraError
from ..run import weighted_mse

Expert = Literal["both", "high", "low"]
FirstFrame = Literal["clean", "concat"]
"""How a model is conditioned on its first frame: as a latent at noise level 0 among noisy ones (TI2V-5B, the
miniature), or by extra input channels, mask and latents (I2V A14B).
"""
_MASK_CHANNELS = 4


@dataclass(frozen=True)
class SigmaRange:
    """The noise levels that are trained, `low` to `high` within 0..1, uniform in time before `shift`."""

    low: float = 0.0
    high: float = 1.0
    shift: float = 5.0

    @classmethod
    def of(cls, expert: Expert, boundary: float = 0.9, shift: float = 5.0) -> SigmaRange:
        """An expert's own band: `high` works from 1 down to `boundary`, `low` below; `both` is one model."""
        return cls(boundary if expert == "high" else 0.0, boundary if expert == "low" else 1.0, shift)

    @property
    def share(self) -> float:
        """The band's part of an unrestricted draw: 0.357 for A14B's high expert (shift 5, boundary 0.9)."""
        return self._time(self.high) - self._time(self.low)

    def at(self, share: torch.Tensor) -> torch.Tensor:
        """The noise level that far (0..1) up the band."""
        time = self._time(self.low) + share * self.share
        return self.shift * time / (1 + (self.shift - 1) * time)

    def _time(self, sigma: float) -> float:
        return sigma / (self.shift - (self.shift - 1) * sigma)


@dataclass(frozen=True, eq=False)
class Example:
    """One clip: normalised latents [C, F, h, w] whose first frame is the condition, the encoded caption [L, D], and for
    models that take extra channels `known` [C, F, h, w], the latents of the first frame followed by mid-grey. subject
    [F, h, w]: where the cast is. clip: its number; several examples of one clip take turns in its place.
    """

    latents: torch.Tensor
    text: torch.Tensor
    known: torch.Tensor | None = None
    subject: torch.Tensor | None = None
    clip: int | None = None


def first_frame_of(dit: Any, channels: int) -> FirstFrame:
    """How the model is conditioned on its first frame, by its input channels.

    Raises LoraError: it is neither way, or it also wants CLIP-vision features.
    """
    if getattr(dit, "img_emb", None) is not None:
        raise LoraError("Wan 2.1 image-to-video models need CLIP-vision features, which this recipe does not give: "
                        "choose Wan 2.2 I2V, TI2V-5B or the miniature.")  # fmt: skip
    extra = dit.patch_embedding.weight.shape[1] - channels
    if extra not in (0, channels + _MASK_CHANNELS):
        raise LoraError(f"A model with {channels + extra} input channels cannot be given a first frame "
                        f"of {channels}: choose an image-to-video model that fits the VAE.")  # fmt: skip
    return "concat" if extra else "clean"


class FlowMatcher:
    """A model, how its first frame is conditioned on, its precision, and an auxiliary loss."""

    def __init__(self, dit: nn.Module, first_frame: FirstFrame, bf16: bool, critic: AuxiliaryLoss | None = None):
        # Never adapted, and in the precision of the blocks (core keeps the patch embedding in float32).
        weight: torch.Tensor = dit.get_parameter("head.modulation")
        self.dit, self.first_frame, self.device, self.critic = dit, first_frame, weight.device, critic
        # A base in float32 is cast layer by layer under autocast; any other is fed what it computes in.
        self.autocast = bf16 and weight.dtype == torch.float32
        self.dtype = torch.bfloat16 if bf16 and not self.autocast else torch.float32

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
        """Predicted velocity [B, C, F, h, w], float32, of latents `x` at noise levels `sigma` [B]."""
        text = torch.stack([example.text for example in examples])
        time = sigma.to(self.device)[:, None] * 1000
        if self.first_frame == "clean":
            time = time.repeat(1, x.shape[2])
            time[:, 0] = 0
        else:
            known = torch.stack([_known(example) for example in examples]).to(x)
            mask = torch.zeros_like(known[:, :_MASK_CHANNELS])
            mask[:, :, 0] = 1
            x = torch.cat([x, mask, known], dim=1)
        return self.flow(x, time, text)

    def flow(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Predicted velocity, float32, of what the model is fed: x [B, channels, F, h, w], times in 0..1000 [B] or
        [B, F], texts [B, L, D].
        """
        fed = (x.to(self.device, self.dtype), time.to(self.device), text.to(self.device, self.dtype))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.dit(*fed, transformer_options={}).float()

    def noised(self, sigma: torch.Tensor, noise: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
        """The examples at `sigma` [B], first frames clean where the model takes them so."""
        clean = self._clean(examples)
        level = sigma.to(self.device)[:, None, None, None, None]
        return self._given((1 - level) * clean + level * noise, clean)

    def _given(self, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """`x` with the first frames of `clean`, where the model takes them so."""
        return torch.cat([clean[:, :, :1], x[:, :, 1:]], dim=2) if self.first_frame == "clean" else x

    def loss(
        self, examples: Sequence[Example], sigma: torch.Tensor, noise: torch.Tensor, subject: float = 0.0
    ) -> torch.Tensor:
        """Mean squared error of the velocity over what is not given, known subjects weighing 1 + `subject` times as
        much, and the auxiliary loss there.
        """
        noised = self.noised(sigma, noise, examples)
        v = self.velocity(noised, sigma, examples)
        guess = noised - sigma.to(self.device)[:, None, None, None, None] * v
        clean = self._clean(examples)
        return self._seen(v - (noise - clean), guess, clean, examples, subject)

    def self_rollout_loss(self, examples: Sequence[Example], done: int, subject: float = 0.0) -> torch.Tensor:
        """The error of the predicted clean latents after `done` of four steps from noise, weighed as in `loss`.

        Nothing of the clip is left in the latents then: a colour that the first step took from the wrong reference is
        set right here, or not at all.
        """
        clean = self._clean(examples)
        x = self.noised(torch.ones(len(examples)), torch.randn(clean.shape).to(clean), examples)
        x = self._denoised(x, FEW_STEPS[: done + 1], examples, lambda: torch.randn(clean.shape))
        level = FEW_STEPS[done]
        guess = x - level * self.velocity(x, torch.full((len(examples),), level), examples)
        return self._seen(guess - clean, guess, clean, examples, subject)

    def _clean(self, examples: Sequence[Example]) -> torch.Tensor:
        return torch.stack([example.latents for example in examples]).to(self.device, torch.float32)

    def _seen(
        self, error: torch.Tensor, guess: torch.Tensor, clean: torch.Tensor, examples: Sequence[Example], subject: float
    ) -> torch.Tensor:
        """Errors [B, C, F, h, w] weighed, plus the auxiliary loss of the prediction."""
        start = 1 if self.first_frame == "clean" else 0
        known = [None if one.subject is None else one.subject[start:] for one in examples]
        value = weighted_mse(error.square().mean(dim=1)[:, start:], known, subject)
        if self.critic:
            value = value + self.critic.likeness(guess[:, :, start:], clean[:, :, start:])
        return value

    @torch.no_grad()
    def sample(
        self, example: Example, band: SigmaRange, steps: int, seed: int, *, renoise: bool = False
    ) -> torch.Tensor:
        """Latents [C, F, h, w] by Euler steps through the band, then at once to 0; no guidance. renoise: each
        prediction of the clean latents is re-noised instead, for few-step models.

        An expert that does not start from noise starts from the example at the top of its band.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(example.latents.shape, generator=generator)[None].to(self.device)
        levels = [*band.at(torch.linspace(1, 0, steps + 1)).tolist(), *([0.0] if band.low else [])]
        x = self.noised(torch.tensor(levels[:1]), noise, [example])
        again = (lambda: torch.randn(x.shape, generator=generator)) if renoise else None
        return self._denoised(x, levels, [example], again)[0]

    @torch.no_grad()
    def _denoised(
        self,
        x: torch.Tensor,
        levels: Sequence[float],
        examples: Sequence[Example],
        noise: Callable[[], torch.Tensor] | None,
    ) -> torch.Tensor:
        """`x` from the first of `levels` to the last, with `noise` drawn anew at each if it is given."""
        clean = self._clean(examples)
        for here, there in pairwise(levels):
            v = self.velocity(x, torch.full((len(examples),), here), examples)
            x = self._given(advance(x, v, here, there, noise().to(x) if noise else None), clean)
        return x


def advance(x: torch.Tensor, v: torch.Tensor, here: float, there: float, noise: torch.Tensor | None) -> torch.Tensor:
    """From noise level `here` to `there` along the velocity v: an Euler step, or the predicted clean latents with
    `noise` (core's "lcm").
    """
    if noise is None:
        return x + (there - here) * v
    return (1 - there) * (x - here * v) + there * noise


def _known(example: Example) -> torch.Tensor:
    if example.known is None:
        raise LoraError("This model takes its first frame as extra channels and the examples have none: "
                        "encode the dataset for this model.")  # fmt: skip
    return example.known
