"""Flow matching of a Wan model that is given its first frame: what is noised, predicted and weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core.auxiliary import AuxiliaryLoss
from ..core.lora import LoraError
from ..core.objectives.flow_matching import FlowMatching, SigmaRange
from ..core.run import weighted_mse
from ..miniature.sequences import FEW_STEPS

FirstFrame = Literal["clean", "concat"]
"""How a model is given its first frame: as a latent at noise level 0 among noisy ones (TI2V-5B, the miniature), or as
extra input channels, mask and latents (I2V A14B).
"""
_MASK_CHANNELS = 4


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


class FirstFrameMatcher(FlowMatching):
    """A model and how it is conditioned on its first frame. auxiliary: a further loss on its predictions."""

    def __init__(self, dit: nn.Module, first_frame: FirstFrame, bf16: bool, auxiliary: AuxiliaryLoss | None = None):
        super().__init__(dit, bf16)
        self.first_frame, self.auxiliary = first_frame, auxiliary

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
        return self.network(x, time, text, transformer_options={})

    def noised(self, sigma: torch.Tensor, noise: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
        """The examples at `sigma` [B], first frames clean where the model takes them so."""
        clean = self._clean(examples)
        return self._given(self.add_noise(clean, sigma, noise), clean)

    def _given(self, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """`x` with the first frames of `clean`, where the model takes them so."""
        return torch.cat([clean[:, :, :1], x[:, :, 1:]], dim=2) if self.first_frame == "clean" else x

    def loss(
        self, examples: Sequence[Example], sigma: torch.Tensor, noise: torch.Tensor, subject_weight: float = 0.0
    ) -> torch.Tensor:
        """Mean squared error of the velocity over what is not given, known subjects weighing 1 + `subject_weight` times
        as much, and the auxiliary loss there.
        """
        noised = self.noised(sigma, noise, examples)
        v = self.velocity(noised, sigma, examples)
        clean = self._clean(examples)
        return self._weighed(v - (noise - clean), self.guess(noised, sigma, v), clean, examples, subject_weight)

    def self_rollout_loss(self, examples: Sequence[Example], done: int, subject_weight: float = 0.0) -> torch.Tensor:
        """The error of the predicted clean latents after `done` of four steps from noise, weighed as in `loss`.

        Nothing of the clip is left in the latents then: a colour that the first step took from the wrong reference is
        set right here, or not at all.
        """
        clean = self._clean(examples)
        x = self.noised(torch.ones(len(examples)), torch.randn(clean.shape).to(clean), examples)
        x = self._rolled_out(x, FEW_STEPS[: done + 1], examples, lambda: torch.randn(clean.shape))
        level = torch.full((len(examples),), FEW_STEPS[done])
        guess = self.guess(x, level, self.velocity(x, level, examples))
        return self._weighed(guess - clean, guess, clean, examples, subject_weight)

    def _clean(self, examples: Sequence[Example]) -> torch.Tensor:
        return torch.stack([example.latents for example in examples]).to(self.device, torch.float32)

    def _weighed(
        self, error: torch.Tensor, guess: torch.Tensor, clean: torch.Tensor, examples: Sequence[Example], weight: float
    ) -> torch.Tensor:
        """Errors [B, C, F, h, w] weighed, and the auxiliary loss of the prediction."""
        start = 1 if self.first_frame == "clean" else 0
        known = [None if one.subject is None else one.subject[start:] for one in examples]
        value = weighted_mse(error.square().mean(dim=1)[:, start:], known, weight)
        if self.auxiliary:
            value = value + self.auxiliary.likeness(guess[:, :, start:], clean[:, :, start:])
        return value

    @torch.no_grad()
    def sample(
        self, example: Example, band: SigmaRange, steps: int, seed: int, *, renoise: bool = False
    ) -> torch.Tensor:
        """Latents [C, F, h, w] by Euler steps through the range of noise levels, then at once to 0; no guidance.
        renoise: each prediction of the clean latents is re-noised instead, for few-step models.

        An expert that does not start from noise starts from the example at the top of its range.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(example.latents.shape, generator=generator)[None].to(self.device)
        levels = [*band.quantile(torch.linspace(1, 0, steps + 1)).tolist(), *([0.0] if band.low else [])]
        x = self.noised(torch.tensor(levels[:1]), noise, [example])
        again = (lambda: torch.randn(x.shape, generator=generator)) if renoise else None
        return self._rolled_out(x, levels, [example], again)[0]

    def _rolled_out(
        self,
        x: torch.Tensor,
        levels: Sequence[float],
        examples: Sequence[Example],
        noise: Callable[[], torch.Tensor] | None,
    ) -> torch.Tensor:
        """`x` from the first of `levels` to the last, with `noise` drawn anew at each if it is given."""
        clean = self._clean(examples)
        return self.denoise(
            x, levels, lambda x, sigma: self.velocity(x, sigma, examples), noise, lambda x: self._given(x, clean)
        )


def _known(example: Example) -> torch.Tensor:
    if example.known is None:
        raise LoraError("This model takes its first frame as extra channels and the examples have none: "
                        "encode the dataset for this model.")  # fmt: skip
    return example.known
