"""Losses behind the VAE decoder: a probe classifies the decoded predictions of clean latents.

The classifier of latents (`training.miniature.latent_classifier`) accepts latents that the VAE's decoder renders as
something else. The `perceptual_net`, a probe, classifies pixels behind the decoder, as a viewer would. It is the
decoder's teacher (`training.miniature.decoder`), another network than the probe that judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...miniature.probe import ATTRIBUTES, Probe, half
from ...miniature.text import WORDS
from .latent_classifier import VISIBLE_WORDS, multi_hot_labels
from .sequences import BLOCK, Batch
from .vae import draw

_AND = WORDS.index("and") + 1
_LEAD = 2
"""Latent frames before a block that are decoded with it, so that the decoder is under way."""


@dataclass(frozen=True, eq=False)
class DecodedProbeLoss:
    """`perceptual_net` behind the decoder of `vae`, both frozen; it classifies a few frames of `most` sequences of a
    batch and its loss weighs `weight`. A `reader.AuxiliaryLoss`.
    """

    vae: Any
    perceptual_net: Probe
    weight: float = 1.0
    most: int = 6

    @property
    def weights(self) -> dict[str, float]:
        return {"sight": self.weight}

    def of_batch(self, batch: Batch, guess: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Of one block of `guess` [B, 16, F, h, w]. Only of sequences that are conditioned on their captions (`told`
        [B]), and whose captions name one character or two; of two each half of the pictures is looked at.
        """
        learned = (batch.sigma.amax(dim=0) > 0).nonzero().flatten()
        first = int(learned[int(torch.randint(len(learned) // BLOCK, ())) * BLOCK])
        named = numbers(batch.resolved_tokens[torch.arange(len(guess)), batch.caption[:, first]])
        named = torch.where(told[:, None, None], named, -1)
        return self._told(_before(batch, guess, first), guess[:, :, first : first + BLOCK], named)

    def loss(self, guess: torch.Tensor, named: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Of latents `guess` [B, 16, F, h, w], each of which shows one character and the words `named`; None, and words
        of two characters, are not looked at.
        """
        nobody = torch.zeros(len(VISIBLE_WORDS))
        alone = _classes(torch.stack([nobody if one is None else one.cpu() for one in named]) > 0).to(guess.device)
        lead, part = _block(guess, _somewhere(guess))
        return self._told(lead, part, torch.stack([alone, torch.full_like(alone, -1)], dim=1))

    def likeness(self, guess: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """For latents without labels: the feature distance of `guess` and `clean` [B, 16, F, h, w]."""
        chosen, first = torch.randperm(len(guess))[: self.most], _somewhere(guess)
        made = self._pictures(*_block(guess[chosen], first))
        with torch.no_grad():
            true = self._pictures(*_block(clean[chosen], first))
        return self.weight * feature_matching_loss(self.perceptual_net, made, true)

    def _told(self, lead: torch.Tensor, part: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
        chosen = (named[:, 0] >= 0).all(dim=1).nonzero().flatten()[: self.most]
        if not len(chosen):
            return part.new_zeros(())
        made = self._pictures(lead[chosen], part[chosen])
        return self.weight * attribute_loss(self.perceptual_net, made, named[chosen])

    def _pictures(self, lead: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of `part` after lead: [B, 3, T, H, W] in -1..1."""
        return draw(self.vae, torch.cat([lead, part], dim=2))[:, :, max(4 * lead.shape[2] - 3, 0) :]


def numbers(tokens: torch.Tensor) -> torch.Tensor:
    """Class numbers [B, 2, 4], in the order of `ATTRIBUTES`, that captions [B, 48] name of their first and of their
    second character, and of the place of both; -1 where they name none or two values.
    """
    second = (tokens == _AND).cumsum(dim=1) > 0
    found = _classes(
        torch.stack([multi_hot_labels(tokens.masked_fill(hidden, 0)) for hidden in (second, ~second)], dim=1) > 0
    )
    found[..., -1] = _classes(multi_hot_labels(tokens) > 0)[:, None, -1]
    return found


def _classes(words: torch.Tensor) -> torch.Tensor:
    """Class numbers [..., 4] that words [..., len(VISIBLE_WORDS)] stand for, the place last; -1 for none or two
    values."""
    found = []
    for values in ATTRIBUTES.values():
        named = torch.stack(
            [words[..., [VISIBLE_WORDS.index(word) for word in one.split()]].all(dim=-1) for one in values], -1
        )
        found.append(torch.where(named.sum(dim=-1) == 1, named.float().argmax(dim=-1), -1))
    return torch.stack(found, dim=-1)


def attribute_loss(perceptual_net: Probe, made: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `perceptual_net` for the labels `named` [B, 2, 4], as `numbers` gives them, over every picture
    of clips [B, 3, T, 64, 64] in -1..1.
    """
    two = (named[:, 1] >= 0).all(dim=1)
    seen, wanted = [made[~two]], [named[~two, 0]]
    for side in range(2 if two.any() else 0):
        seen.append(half(made[two].flatten(1, 2), side).unflatten(1, made.shape[1:3]))
        wanted.append(named[two, side])
    features = perceptual_net.features(_looked_at(torch.cat(seen)))
    told = dict(zip(ATTRIBUTES, torch.cat(wanted).repeat_interleave(made.shape[2], dim=0).unbind(1), strict=True))
    return torch.stack(
        [F.cross_entropy(head(features), told[name]) for name, head in perceptual_net.heads.items()]
    ).mean()


def feature_matching_loss(perceptual_net: Probe, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Feature matching of `perceptual_net` over clips [B, 3, T, 64, 64] in -1..1: over its finer maps, and twice its
    deepest ones all.
    """

    def seen(clips: torch.Tensor) -> list[torch.Tensor]:
        return perceptual_net.feature_maps(_looked_at(clips))

    with torch.no_grad():
        wanted = seen(true)
    *maps, whole = seen(made)
    fine = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(maps[:3], wanted, strict=False)]
    return sum(fine, torch.zeros_like(whole[0, 0])) / 3 + 2 * (
        (whole - wanted[-1]).square().mean() / wanted[-1].square().mean()
    )


def _looked_at(clips: torch.Tensor) -> torch.Tensor:
    """Frames [B * T, 3, 64, 64] in 0..1 of clips [B, 3, T, h, w] in -1..1."""
    frames = (clips.transpose(1, 2).flatten(0, 1) + 1) / 2
    return frames if frames.shape[-2:] == (64, 64) else F.interpolate(frames, size=(64, 64), mode="area")


def _somewhere(latents: torch.Tensor) -> int:
    """Where a block of [B, 16, F, h, w] may begin, drawn."""
    return int(torch.randint(latents.shape[2] - BLOCK + 1, ()))


def _block(latents: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `_LEAD` frames of [B, 16, F, h, w] before the block at `first`, and the block."""
    return latents[:, :, max(first - _LEAD, 0) : first], latents[:, :, first : first + BLOCK]


def _before(batch: Batch, guess: torch.Tensor, first: int) -> torch.Tensor:
    """The latent frames [B, 16, n, h, w] just before the block at `first`, at most _LEAD: of a rollout's sequences the
    clean ones, none before a take's first block; of whole clips what is guessed of them.
    """
    if not (batch.noisy_index >= 0).any():
        return _block(guess, first)[0]
    clean = batch.sigma.amax(dim=0) == 0
    position = batch.position[0]
    wanted = [position[first] - back for back in range(_LEAD, 0, -1)]
    found = [(clean & batch.attention_mask[first] & (position == at)).nonzero().flatten().tolist() for at in wanted]
    return batch.clean[:, :, [frames[0] for frames in found] if all(found) else []]
