"""Streaming long tuning: a causal model films on from its own frames and learns on the newest block, over takes longer
than any clip, with changes of prompt inside them.

Nothing of the memory is in the graph, so a step costs one block's pass however long the film is. The base's ordinary
batches can be mixed in, so that what else it can (all frames at once, a given first frame, cuts) is not forgotten.
Sources: LongLive, arXiv 2509.22622, section 3.2; MemFlow, arXiv 2512.14699, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...film.kv_memory import MEMFLOW, MemorySettings
from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from ..miniature.dit import loss as velocity_loss
from ..miniature.latent_classifier import multi_hot_labels
from ..miniature.param_groups import split_matrices
from ..miniature.sequences import BLOCK, FEW_STEPS, noise_levels
from .long_data import LongTakes
from .objectives import DistributionMatching, window
from .stream import NewBlock, Stream

Replay = Callable[[int], tuple[torch.Tensor, Metrics]]
OBJECTIVES = ("truth", "reading", "matching")


@dataclass(frozen=True)
class CausalRecipe:
    """A run of `steps` updates on `films` films at once, each of `blocks` blocks.

    truth, reading, matching: weights of the objectives (see objectives), 0 for none. own: share of the films that learn
    on what the few steps have made so far, not on the noised truth. reach: own blocks behind one another up to which
    the truth counts in full; `beyond` is its weight after them, where a film and its truth may have drifted apart.
    scored: films that distribution matching scores. guidance: of its base. replay: share of updates that are the base's
    ordinary batches. farthest: latent frames that a film may lie away from its first block. rank: of a LoRA, 0 to learn
    all of the model.
    """

    steps: int = 2000
    films: int = 16
    blocks: int = 27
    truth: float = 1.0
    reading: float = 0.3
    matching: float = 0.0
    own: float = 0.5
    reach: int = 8
    beyond: float = 0.3
    scored: int = 8
    guidance: float = 1.0
    replay: float = 0.2
    farthest: int = 1500
    rank: int = 0
    fake_rank: int = 32
    rate: float = 2e-4
    muon_rate: float = 0.0
    warmup: int = 50
    accumulate: int = 1
    average: float = 0.995
    levels: tuple[float, ...] = FEW_STEPS
    settings: MemorySettings = MEMFLOW
    seed: int = 0


class LongTuning:
    """The loss of one block after the other. student: the model, or its LoRA tree; matching: see objectives."""

    def __init__(
        self,
        recipe: CausalRecipe,
        stream: Stream,
        *,
        reader: nn.Module | None = None,
        matching: DistributionMatching | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.recipe, self.stream = recipe, stream
        self.reader, self.matching, self.replay = reader, matching, replay
        self.gradients: list[torch.Tensor] = []
        self.names: list[str] = []

    def loss_at(self, step: int) -> tuple[torch.Tensor, Metrics]:
        """Sample the next block of all films and return its loss; see training.loop.train."""
        recipe, stream = self.recipe, self.stream
        if self.replay is not None and float(torch.rand(())) < recipe.replay:
            value, figures = self.replay(step)
            return value, {f"base {name}": figure for name, figure in figures.items()}
        new = stream.open()
        asked = self._asked(new)
        if stream.shadow is not None and self.matching is None:
            value, figures = self._on_shadow(asked)
        else:
            with mixed_precision(new.position.device):
                value, figures, guess = self._learn(asked)
                if self.matching is not None:
                    scored = torch.arange(min(recipe.scored, stream.films), device=guess.device)
                    student, fake = self.matching.losses(window(new, guess[scored], scored), asked["learned"][scored])
                    value = value + recipe.matching * student + fake
                    figures |= {"matching": student.detach(), "fake": fake.detach()}
        stream.close(new)
        return value, dict(figures)

    def _asked(self, new: NewBlock) -> dict[str, torch.Tensor]:
        """What the model is asked about a block, and what its answers are weighed against: tensors alone."""
        recipe, stream = self.recipe, self.stream
        device, films = new.position.device, stream.films
        own = torch.rand(films, device=device) < (recipe.own if new.truth is not None else 1.0)
        if self.matching is not None:
            own[: recipe.scored] = True
        done = int(torch.randint(len(recipe.levels), ()))
        made = new.guesses[done - 1] if done else torch.zeros_like(new.guesses[0])
        clean = made if new.truth is None else torch.where(own[:, None, None, None, None], made, new.truth)
        with device:
            level = noise_levels((films, 1), few=0.6)
        level = torch.where(own[:, None], torch.full_like(level, recipe.levels[done]), level).expand(-1, BLOCK)
        noise, share = torch.randn_like(clean), level[:, None, :, None, None]
        x = (1 - share) * clean + share * noise
        learned = (~new.given if new.block else torch.ones_like(new.given)).float()
        asked = {"x": x, "level": level, "learned": learned}
        if new.truth is not None and new.weight is not None:
            counts = torch.where(new.run <= recipe.reach, 1.0, recipe.beyond) * learned * (~own | (done == 0))
            asked |= {"target": noise - new.truth, "weight": new.weight * counts[:, None, None, None, None]}
        if self.reader is not None:
            asked["named"] = multi_hot_labels(new.tokens)
        return asked

    def _learn(
        self, asked: dict[str, torch.Tensor], shadow: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The loss, its parts, and the guessed block."""
        recipe, x, level, learned = self.recipe, asked["x"], asked["level"], asked["learned"]
        v = self.stream.flow(x, 1000 * level, shadow=shadow)
        guess = x - level[:, None, :, None, None] * v
        value, figures = v.new_zeros(()), dict[str, torch.Tensor]()
        if recipe.truth and "target" in asked:
            truth = velocity_loss(v, asked["target"], asked["weight"] + 1e-8)
            value = value + recipe.truth * truth
            figures["truth"] = truth.detach()
        if recipe.reading and self.reader is not None:
            logits = self.reader(guess.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(guess), BLOCK))
            named = asked["named"][:, None].expand_as(logits)
            wrong = F.binary_cross_entropy_with_logits(logits.float(), named, reduction="none").mean(dim=(1, 2))
            read = (wrong * learned).sum() / learned.sum().clamp(min=1)
            value = value + recipe.reading * read
            figures["read"] = read.detach()
        return value, figures, guess

    def _on_shadow(self, asked: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same by the bf16 copy, without casts and as one graph; the gradients are the model's own when the loss
        that is returned is propagated back.
        """
        stream, shadow = self.stream, self.stream.shadow
        assert shadow is not None
        masters, copies = list(stream.dit.parameters()), list(shadow.parameters())
        if not self.gradients:
            self.gradients = [torch.zeros_like(p) for p in masters]
        held = {name: stream.kept(f"asked {name}", value) for name, value in asked.items()}

        def learn() -> None:
            with torch.enable_grad():
                value, figures, _ = self._learn(held, shadow=True)
                found = torch.autograd.grad(value, copies, allow_unused=True, materialize_grads=True)
            torch._foreach_copy_(self.gradients, list(found))
            self.names = list(figures)
            stream.kept("told", torch.stack([value.detach(), *figures.values()]))

        stream.captured(("learn", *stream.memory.phase), learn)
        told = stream.buffers["told"].clone()
        value: torch.Tensor = _Handed.apply(told[0], self.gradients, *masters)
        return value, dict(zip(self.names, told[1:].unbind(), strict=True))


class _Handed(torch.autograd.Function):
    """A loss whose gradients by some parameters are there already."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: list[torch.Tensor], *masters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, scale)


def tune(
    model: Any,
    takes: LongTakes,
    recipe: CausalRecipe,
    folder: Path,
    *,
    reader: nn.Module | None = None,
    replay: Replay | None = None,
    budget: float = 0.0,
    name: str = "causal",
) -> None:
    """Tune all of a `Miniature`'s DiT in place, on the device it is on, resuming from `folder`; the text encoder stays.

    reader: frozen, for the reading objective; replay(step): loss and figures of an ordinary batch of the base; budget:
    seconds, 0 for none; `steps` is then the most. The model ends with averaged weights.
    """
    dit, text = model.dit, model.text
    device = next(dit.parameters()).device
    text.requires_grad_(False)
    if reader is not None:
        reader.requires_grad_(False).eval()
    stream = Stream(
        dit, takes.to(device), lambda tokens: text(tokens), films=recipe.films, blocks=recipe.blocks,
        size=(dit.patch_embedding.in_channels, *_sides(takes)), settings=recipe.settings, levels=recipe.levels,
        farthest=recipe.farthest, shadow=device.type == "cuda",
    )  # fmt: skip
    learner = nn.ModuleDict({"student": dit})
    matching = None
    if recipe.matching:
        matching, learner["fake"] = matching_of(dit, text(torch.zeros(1, takes.tokens.shape[-1], dtype=torch.long,
                                                device=device)), recipe)  # fmt: skip
    tuning = LongTuning(recipe, stream, reader=reader, matching=matching, replay=replay)
    run(tuning, learner, recipe, folder, name, seconds=budget)
    text.requires_grad_(True)


def matching_of(dit: Any, empty: torch.Tensor, recipe: CausalRecipe) -> tuple[DistributionMatching, nn.Module]:
    """Distribution matching against `dit` as it is now, and the LoRA that learns the films' own score."""
    import copy

    from ..core.lora import WAN_LAYERS, adapt, choose_layers

    base = copy.deepcopy(dit).requires_grad_(False)
    fake, adapter = adapt(base, choose_layers(base, WAN_LAYERS), recipe.fake_rank, seed=recipe.seed)
    return DistributionMatching(base, fake, empty.detach(), guidance=recipe.guidance), adapter


def run(
    tuning: LongTuning, learner: nn.Module, recipe: CausalRecipe, folder: Path, name: str, *, seconds: float = 0.0
) -> None:
    """Train what of `learner` has gradients; it ends with averaged weights."""
    schedule = Schedule(
        recipe.steps, recipe.rate, muon_lr=recipe.muon_rate, warmup=recipe.warmup, weight_decay=0.01,
        ema_decay=recipe.average, accumulate=recipe.accumulate, seconds=seconds,
    )  # fmt: skip
    learner.load_state_dict(
        train(
            name,
            learner,
            tuning.loss_at,
            schedule,
            folder,
            groups=split_matrices(learner),
            seed=recipe.seed,
            further=tuning.stream,
        )
    )


def _sides(takes: LongTakes) -> tuple[int, int]:
    assert takes.latents is not None
    return takes.latents.shape[3], takes.latents.shape[4]
