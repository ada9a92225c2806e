"""A small network that reads from one latent frame which of the world's words it shows, and the loss made of it.

The squared error of the velocity hardly notices whether a ball has corners: a body's outline is a few of a latent
frame's thousand numbers. The reader's loss on the DiT's predicted clean latents weighs outlines as a viewer does (a
perceptual loss in the latents, as in Kang et al., "Distilling Diffusion Models into Conditional GANs", 2024, section
3.3, with words in place of a distance). It is trained on clean latents only and is not the attribute probe, which
classifies decoded films and is never trained on a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...miniature.text import WORDS
from ...miniature.world import BODIES, COLOURS, HEADGEAR, PLACES
from ..core.loop import Metrics, Schedule, train
from .latents import Stories
from .param_groups import split_matrices

VISIBLE_WORDS = tuple(sorted({word for phrase in (*COLOURS, *BODIES, *HEADGEAR, *PLACES) for word in phrase.split()}))
"""The words that a single frame can show."""
_TOKENS = torch.tensor([WORDS.index(word) + 1 for word in VISIBLE_WORDS])
_NOISE = 0.4


@dataclass(frozen=True, eq=False)
class LatentClassifierLoss:
    """What `reader` reads off guessed latents, weighing weight: a `AuxiliaryLoss`."""

    reader: LatentClassifier
    weight: float

    @property
    def weights(self) -> dict[str, float]:
        return {"reading": self.weight}

    def loss(self, guess: torch.Tensor, labels: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The loss of latents `guess` [B, 16, F, h, w] with the `labels`; None is skipped."""
        known = [index for index, words in enumerate(labels) if words is not None]
        if not known:
            return guess.new_zeros(())
        wanted = torch.stack([words for words in labels if words is not None]).to(guess.device)
        every = torch.ones(len(known), guess.shape[2], dtype=torch.bool, device=guess.device)
        wanted = wanted[:, None].expand(-1, guess.shape[2], -1)
        return self.weight * latent_bce(self.reader, guess[known], wanted, every)

    def likeness(self, guess: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """For latents without labels: the feature distance of `guess` and `clean` [B, 16, F, h, w], in its last maps,
        which say where, and in its words.
        """
        features = self.reader.features(guess.transpose(1, 2).flatten(0, 1))
        with torch.no_grad():
            wanted = self.reader.features(clean.transpose(1, 2).flatten(0, 1))
            labels = self.reader.logits(wanted).sigmoid()
        unlike = (features - wanted).square().mean() / wanted.square().mean()
        return self.weight * (unlike + F.binary_cross_entropy_with_logits(self.reader.logits(features), labels))


@dataclass(frozen=True)
class LatentClassifierRecipe:
    """Width of the reader, and a run of `steps`, or `seconds`, on `batch` latent frames each."""

    width: int = 64
    steps: int = 2000
    batch: int = 192
    rate: float = 1e-3
    seconds: float = 0.0
    seed: int = 0


class LatentClassifier(nn.Module):
    """Latent frames [N, 16, h, w] to logits [N, len(VISIBLE_WORDS)]: whether the word's object is anywhere in the
    frame.
    """

    def __init__(self, width: int):
        super().__init__()
        self.enter = nn.Conv2d(16, width, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(3)])
        self.words = nn.Linear(2 * width, len(VISIBLE_WORDS))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features by place: [N, width, h, w]."""
        x = self.enter(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(F.gelu(norm(x)))
        return x

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of such features."""
        found: torch.Tensor = self.words(torch.cat([features.amax(dim=(2, 3)), features.mean(dim=(2, 3))], dim=1))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(self.features(x))


@cache
def _tokens(device: torch.device) -> torch.Tensor:
    """Of `VISIBLE_WORDS`, sent to a device once: a GPU would be waited for."""
    return _TOKENS.to(device)


def multi_hot_labels(tokens: torch.Tensor) -> torch.Tensor:
    """Which of `VISIBLE_WORDS` the captions [..., 48] name: [..., len(VISIBLE_WORDS)] of 0 and 1."""
    return (tokens[..., None] == _tokens(tokens.device)).any(dim=-2).float()


def latent_bce(reader: nn.Module, guess: torch.Tensor, labels: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of `reader` for the `labels` [B, F, len(VISIBLE_WORDS)] on the latents `guess` [B, 16,
    F, h, w], over the frames that are `learned` [B, F].
    """
    logits = reader(guess.transpose(1, 2)[learned])
    return F.binary_cross_entropy_with_logits(logits, labels[learned])


Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""So many clean latent frames [N, 16, h, w] and the tokens [N, 48] of captions that name all they show."""


def frames_of(stories: Stories, openings: Stories) -> Draw:
    """Half of the frames are from stories, half from openings."""

    def frames(source: Stories, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        story, take = torch.randint(len(source), (count,)), torch.randint(source.latents.shape[1], (count,))
        at = torch.randint(source.latents.shape[3], (count,))
        return source.latents[story, take, :, at].float(), source.tokens[story, take, 0]

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        clean, tokens = zip(*(frames(source, count // 2) for source in (stories, openings)), strict=True)
        return torch.cat(clean), torch.cat(tokens)

    return draw


def train_latent_classifier(recipe: LatentClassifierRecipe, reader: LatentClassifier, draw: Draw, folder: Path) -> None:
    """Train `reader` in place on clean latents with a little noise, on the device it is on, resuming from
    `folder`.
    """
    device = next(reader.parameters()).device
    bodies = [VISIBLE_WORDS.index(body) for body in BODIES]

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        clean, tokens = draw(recipe.batch)
        clean, labels = clean.to(device), multi_hot_labels(tokens.to(device))
        share = _NOISE * torch.rand(len(clean), 1, 1, 1, device=device)
        logits = reader((1 - share) * clean + share * torch.randn_like(clean))
        value = F.binary_cross_entropy_with_logits(logits, labels)
        right = ((logits > 0) == (labels > 0.5)).float()
        return value, {"frames": right.amin(dim=1).mean(), "bodies": right[:, bodies].amin(dim=1).mean()}

    schedule = Schedule(recipe.steps, recipe.rate, muon_lr=2 * recipe.rate, ema_decay=0.995, seconds=recipe.seconds)
    groups = split_matrices(reader)
    reader.load_state_dict(train("reader", reader, learn, schedule, folder, groups=groups, seed=recipe.seed))
