"""A probe looks at what the DiT's guesses of clean latents become as pictures, and says whom it sees.

The reader (``training.reader``) looks at latents and is content with some that the VAE's decoder draws as something
else. An ``eye`` looks through the decoder, as everybody does who looks at a film. It is the decoder's teacher
(``training.decoder``), another network than the probe that judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..miniature.probe import ATTRIBUTES, Probe
from .reader import SHOWN, shown
from .sequences import BLOCK, Batch
from .vae import draw

_LEAD = 2
"""Latent frames before a block that are decoded with it, so that the decoder is under way."""


@dataclass(frozen=True, eq=False)
class Onlooker:
    """``eye`` behind the decoder of ``vae``, both frozen; it looks at ``most`` sequences of a batch and its loss weighs
    ``weight``.
    """

    vae: Any
    eye: Probe
    weight: float = 1.0
    most: int = 6

    def loss(self, batch: Batch, guess: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Of one block of ``guess`` [B, 16, F, h, w]: any where clean frames come before it, else the first. Only of
        sequences that are ``told`` [B] their captions, and whose captions name one character.
        """
        learned = (batch.sigma.amax(dim=0) > 0).nonzero().flatten()
        blocks = len(learned) // BLOCK if (batch.twin >= 0).any() else 1
        first = int(learned[int(torch.randint(blocks, ())) * BLOCK])
        named = numbers(batch.named[torch.arange(len(guess)), batch.caption[:, first]])
        chosen = (told & (named >= 0).all(dim=1)).nonzero().flatten()[: self.most]
        if not len(chosen):
            return guess.new_zeros(())
        lead = _before(batch, first)
        latents = torch.cat([batch.clean[chosen][:, :, lead], guess[chosen, :, first : first + BLOCK]], dim=2)
        pictures = draw(self.vae, latents)
        return self.weight * told_loss(self.eye, pictures[:, :, 4 * _LEAD - 3 if lead else 0 :], named[chosen])


def numbers(tokens: torch.Tensor) -> torch.Tensor:
    """Class numbers [B, 4], in the order of ``ATTRIBUTES``, that captions [B, 48] name; -1 where they name none or two
    values.
    """
    words = shown(tokens) > 0
    found = []
    for values in ATTRIBUTES.values():
        named = torch.stack([words[:, [SHOWN.index(word) for word in one.split()]].all(dim=1) for one in values], dim=1)
        found.append(torch.where(named.sum(dim=1) == 1, named.float().argmax(dim=1), -1))
    return torch.stack(found, dim=1)


def told_loss(eye: Probe, made: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
    """How far ``eye`` is from reading ``named`` [B, 4] off every picture of clips [B, 3, T, 64, 64] in -1..1."""
    features = eye.features((made.transpose(1, 2).flatten(0, 1) + 1) / 2)
    wanted = dict(zip(ATTRIBUTES, named.repeat_interleave(made.shape[2], dim=0).unbind(1), strict=True))
    return torch.stack([F.cross_entropy(head(features), wanted[name]) for name, head in eye.heads.items()]).mean()


def _before(batch: Batch, first: int) -> list[int]:
    """The clean frames just before the block at ``first``, in order; none before a take's first block."""
    clean = batch.sigma.amax(dim=0) == 0
    position = batch.position[0]
    wanted = [position[first] - back for back in range(_LEAD, 0, -1)]
    found = [(clean & batch.sees[first] & (position == at)).nonzero().flatten().tolist() for at in wanted]
    return [frames[0] for frames in found] if all(found) else []
