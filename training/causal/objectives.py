"""What a model learns on a block of a film that it has made itself.

* truth: the velocity towards the true block behind the model's own context, where the truth is known (scheduled
  sampling; Guo et al., "End-to-End Training for Autoregressive Video Diffusion via Self-Resampling", 2025);
* reading: what a classifier of latents reads in the guessed block (training.reader), against the prompt's words;
* matching: distribution matching (Yin et al., "DMD2", arXiv 2405.14867, section 4; Huang et al., "Self Forcing",
  arXiv 2506.08009, section 3.3; LongLive, arXiv 2509.22622, section 3.2): the base, all frames at once, scores a window
  of the film that ends with the guessed block; a LoRA of the base learns the score of such films as they are now, and
  the difference of the two is the gradient of the predicted latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..miniature.sequences import BLOCK
from .stream import NewBlock
from .stream_memory import block_flow, text_keys

WINDOW_BLOCKS = 6
"""Blocks that are scored together, the guessed one among them: with the frame that a base's clips begin with these are
less than the 21 latent frames Wan knows.
"""


@dataclass(frozen=True)
class Window:
    """Films' newest blocks as the input of a base: latents [B, C, F, h, w], text rows [B, R, D], which of them each
    frame reads [B, F, R], and positions [B, F].
    """

    latents: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor
    position: torch.Tensor


def window(new: NewBlock, guess: torch.Tensor, chosen: torch.Tensor) -> Window:
    """The guessed block [b, C, 3, h, w] of the films numbered `chosen` [b] behind their own blocks."""
    before = new.before[-(WINDOW_BLOCKS - 1) :]
    latents = torch.cat([*(part[0][chosen] for part in before), guess], dim=2)
    texts = [*(part[1][chosen] for part in before), new.text[chosen]]
    frames = latents.shape[2]
    owner = torch.arange(frames, device=guess.device) // BLOCK
    text_mask = F.one_hot(owner, len(texts)).bool().repeat_interleave(texts[0].shape[1], dim=1)
    # A window from the middle of a take does not begin with a frame that is one picture.
    first = 0 if new.block == len(before) else 1
    position = torch.arange(first, first + frames, device=guess.device).expand(len(chosen), -1)
    return Window(latents, torch.cat(texts, dim=1), text_mask.expand(len(chosen), -1, -1), position)


class DistributionMatching:
    """Distribution matching against `base`; `fake` is a second tree over it whose LoRA learns the films' own score.

    empty: encoded empty prompt [1, L, D], for a guidance above 1. shift: of the noise levels at which windows
    are scored; recompute: the fake score's blocks in the backward pass, for large models.
    """

    def __init__(
        self,
        base: Any,
        fake: Any,
        empty: torch.Tensor,
        *,
        guidance: float = 1.0,
        shift: float = 5.0,
        recompute: bool = False,
    ):
        self.base, self.fake, self.empty, self.guidance = base, fake, empty, guidance
        self.shift, self.recompute = shift, recompute

    def losses(self, seen: Window, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the predicted latents, of films that `counts` [b], and the fake score's, which do not share a
        graph.
        """
        latents = seen.latents.detach()
        with torch.no_grad():
            noised, level = self._noised(latents)
            real = self._clean(self.base, noised, level, seen)
            if self.guidance != 1:
                without = self._clean(self.base, noised, level, seen, empty=True)
                real = without + self.guidance * (real - without)
            fake = self._clean(self.fake, noised, level, seen)
            scale = (latents - real)[:, :, -BLOCK:].abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
            step = ((fake - real)[:, :, -BLOCK:] / scale).nan_to_num()
        guess = seen.latents[:, :, -BLOCK:]
        moved = 0.5 * (guess - (guess - step).detach()).square().mean(dim=(1, 2, 3, 4))
        student = (moved * counts).sum() / counts.sum().clamp(min=1)
        noised, level = self._noised(latents)
        made = self._clean(self.fake, noised, level, seen)
        # the clean latents' error over the noise level is the velocity's
        own = ((made - latents) / level[:, None, :, None, None].clamp(min=0.02)).square().mean()
        return student, own

    def _noised(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = torch.rand(len(latents), 1, device=latents.device) * 0.96 + 0.02
        level = (self.shift * u / (1 + (self.shift - 1) * u)).expand(-1, latents.shape[2])
        share = level[:, None, :, None, None]
        return (1 - share) * latents + share * torch.randn_like(latents), level

    def _clean(
        self, dit: Any, noised: torch.Tensor, level: torch.Tensor, seen: Window, *, empty: bool = False
    ) -> torch.Tensor:
        text = self.empty.to(seen.text).expand(len(noised), -1, -1) if empty else seen.text
        text_mask = None if empty else seen.text_mask
        found, _ = text_keys(dit, text)
        tokens = math.prod(-(-side // patch) for side, patch in zip(noised.shape[3:], dit.patch_size[1:], strict=True))
        bias = None
        if text_mask is not None:
            bias = torch.zeros(text_mask.shape, dtype=found[0][1].dtype, device=text_mask.device).masked_fill(
                ~text_mask, -torch.inf
            )
            bias = bias[:, None].repeat_interleave(tokens, dim=2)
        recompute = self.recompute and torch.is_grad_enabled()
        flow = block_flow(dit, noised, level * 1000, found, seen.position, text_bias=bias, recompute=recompute)
        assert flow is not None
        return noised - level[:, None, :, None, None] * flow.float()
