"""Many films at once that a model films on from its own frames, block by block, and what may be learned of each block.

A stream goes through as many takes as there are films, from their first blocks; then it begins again with others. A
film may leap after its first block to a later part of its take, farther still on the time axis, with three true blocks
to go on from. Where the truth is known, some of a film's blocks are anchored: the last steps start from the noised
truth, so that the film keeps time with its take while its pictures stay the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...film.kv_memory import MemorySettings
from ..miniature.sequences import BLOCK, FEW_STEPS
from .graphs import Captured
from .long_data import LongTakes
from .stream_memory import Context, KeyValues, StreamMemory, block_flow, text_keys

GIVEN = 3
"""True blocks before a film that begins in the middle of its take."""
_RATES = (0.0, 0.3, 1.0)
"""How often a film's block is anchored; each film draws one."""
_ANCHOR = 2
"""Steps after which an anchored block is replaced by the noised truth: place and pose are still determined there."""
_CHARACTER_WEIGHT = 4.0
KEPT = 7
"""Blocks of own latents that a stream keeps: what a recache passes, and what is scored."""


@dataclass(frozen=True)
class NewBlock:
    """One block of all films.

    block: its number; text: encoded prompts [B, L, D]; tokens: of these [B, L']; position: [B, 3]; truth and weight:
    [B, C, 3, h, w] and [B, 1, 3, h, w], or None; guesses: the clean latents [B, C, 3, h, w] after each of the few
    steps; before: the blocks before as they were committed, their prompts' rows and positions, oldest first; given:
    films whose block is a true one, to go on from [B]; anchored: films whose block is [B]; run: how many blocks the
    film has gone on for without an anchor [B].
    """

    block: int
    text: torch.Tensor
    tokens: torch.Tensor
    position: torch.Tensor
    truth: torch.Tensor | None
    weight: torch.Tensor | None
    guesses: list[torch.Tensor]
    before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    given: torch.Tensor
    anchored: torch.Tensor
    run: torch.Tensor


class Stream:
    """B films in step. `open` begins a block and films it without gradients; `flow` evaluates the model on it with
    gradients; `close` makes it part of the films.

    dit: the model that learns, or its LoRA tree. All randomness is torch's global generators'.
    """

    def __init__(
        self,
        dit: Any,
        takes: LongTakes,
        encode: Callable[[torch.Tensor], torch.Tensor],
        *,
        films: int,
        blocks: int,
        size: tuple[int, int, int],
        settings: MemorySettings,
        levels: tuple[float, ...] = FEW_STEPS,
        farthest: int = 0,
        shadow: bool = False,
        cuts: frozenset[int] = frozenset(),
    ) -> None:
        """blocks: of a film, at most the takes'; size: channels, height and width of latents; levels: the noise levels
        films are made at; farthest: latent frames that a film may leap on the time axis, at most; shadow: film with a
        copy of the model in bf16 (for a small model on a GPU, where casts cost more than the arithmetic); cuts: blocks
        before which all films cut.
        """
        self.dit, self.takes, self.encode, self.films = dit, takes, encode, films
        self.blocks, self.size, self.levels, self.farthest = min(blocks, takes.blocks), size, levels, farthest
        self.cuts = cuts
        self.device = next(dit.parameters()).device
        self.shadow = copy.deepcopy(dit).to(torch.bfloat16) if shadow else None
        rows, columns = (-(-side // dit.patch_size[axis]) for axis, side in ((1, size[1]), (2, size[2])))
        self.memory = StreamMemory(dit, films, rows * columns, settings, BLOCK, _dtype(self._filmer))
        self.block = self.blocks
        self.captured = Captured(self.device.type == "cuda" and shadow)
        self.buffers: dict[str, torch.Tensor] = {}
        self.before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.tokens = self.run = self.text = torch.empty(0)

    # One block

    def open(self) -> NewBlock:
        """Begin the next block of all films, or new films, and film it."""
        if self.block >= self.blocks:
            self._begin()
        j, memory = self.block, self.memory
        caption = self.schedule[j]
        tokens = self.tokens[torch.arange(self.films, device=self.device), self.captions[j]]
        differs = caption != self.schedule[j - 1]
        # A leap is no change of prompt: what is there is computed under the prompt that is on there.
        switched = differs & ~self.leaps if j == 1 else differs & (j > 1)
        changed = self.changes[j]
        if j in self.cuts:
            memory.cut()
            self.before = []
        if j == 0 or bool(differs.any()):
            with torch.no_grad():
                self.text = self.encode(tokens).to(memory.sink.dtype)
        self._sync_shadow()
        truth, weight = self._truth(j)
        anchored = torch.zeros_like(self.given, dtype=torch.bool)
        if truth is not None:
            anchored = torch.rand(self.films, device=self.device) < self.rate
        text, position = self.kept("text", self.text), self.kept("position", self._position(j))
        noise, known = self.kept("noise", self._noise()), self.kept("known", (~changed & (j not in self.cuts)).float())
        start = None if truth is None else self.kept("truth", truth)
        start_at = self.kept("anchored", anchored)
        self.captured(("fold", *memory.phase), lambda: memory.fold(text_keys(self._filmer, text)[1], known))
        if bool(switched.any()) and self.before:
            self._recache(text, self.kept("changed", changed))

        def film() -> None:
            made = self._denoise(noise, text_keys(self._filmer, text)[0], position, start, start_at)
            self.kept("guesses", torch.stack(made))

        self.captured(("film", *memory.phase), film)
        guesses = list(self.buffers["guesses"].clone())
        given, before = self.given > j, list(self.before)
        return NewBlock(j, self.text, tokens, position, truth, weight, guesses, before, given, anchored, self.run)

    def flow(self, x: torch.Tensor, time: torch.Tensor, *, shadow: bool = False) -> torch.Tensor:
        """The model's velocity [B, C, 3, h, w] of the open block's latents x under its prompts and behind the memory,
        with gradients, of its shadow's weights if asked for; time: noise levels [B, 3] in 0..1000.
        """
        dit = self._filmer if shadow else self.dit
        text, _ = text_keys(dit, self.buffers["text"].to(_dtype(dit)))
        velocity = block_flow(dit, x.to(_dtype(dit)), time, text, self.buffers["position"], self.memory.context)
        assert velocity is not None
        return velocity.float()

    def close(self, new: NewBlock) -> None:
        """Commit the films' own blocks, or true ones where they are given."""
        own = new.guesses[-1]
        if new.truth is not None:
            own = torch.where(new.given[:, None, None, None, None], new.truth, own)
        self.run = torch.where(new.given | new.anchored, torch.zeros_like(self.run), self.run + 1)
        text, position, latents = self.buffers["text"], self.buffers["position"], self.kept("own", own)

        def commit() -> None:
            keys: KeyValues = []
            self._pass(latents, 0.0, text_keys(self._filmer, text)[0], position, keys)
            self.memory.commit(keys)

        self.captured(("commit", *self.memory.phase), commit)
        self.memory.committed()
        self.before = [*self.before, (own, self.text, self._position(self.block))][-KEPT:]
        self.block += 1

    # Parts

    def _chosen(self) -> torch.Tensor:
        """The takes that new films go through [B], on the CPU."""
        return torch.randint(len(self.takes), (self.films,))

    def _begin(self) -> None:
        takes, films = self.takes, self.films
        chosen = self._chosen()
        spare = takes.blocks - self.blocks
        leaps = (torch.rand(films) < 0.5) & (spare > 0 or self.farthest > 0) & (takes.latents is not None)
        first = torch.where(leaps, torch.randint(spare + 1, (films,)), torch.zeros(films, dtype=torch.long))
        gap = BLOCK * (torch.exp(torch.rand(films) * torch.log1p(torch.tensor(self.farthest / BLOCK))) - 1).long()
        self.place = torch.arange(self.blocks)[:, None] + first * (torch.arange(self.blocks) > 0)[:, None]
        self.schedule = takes.caption[chosen, BLOCK * self.place]
        self.leaps = leaps
        shift = BLOCK * first + gap * leaps
        self.given = torch.where(leaps, 1 + GIVEN, torch.zeros_like(first)).to(self.device)
        if takes.latents is not None:
            self.given = torch.maximum(self.given, (torch.rand(films) < 0.5).long().to(self.device))
        self.shift, self.chosen = shift.to(self.device), chosen.to(self.device)
        self.place = self.place.to(self.device)
        differs = self.schedule != self.schedule.roll(1, 0)
        differs[0] = False
        differs[1] &= ~leaps
        self.changes, self.captions = differs.to(self.device), self.schedule.to(self.device)
        self.rate = torch.tensor(_RATES)[torch.randint(len(_RATES), (films,))].to(self.device)
        self.run = torch.zeros(films, dtype=torch.long, device=self.device)
        self.tokens = takes.tokens.to(self.device)[self.chosen]
        self.before = []
        self.block = 0
        self.memory.clear()

    def _truth(self, j: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.takes.latents is None:
            return None, None
        frames = BLOCK * self.place[j][:, None] + torch.arange(BLOCK, device=self.device)
        truth = self.takes.latents[self.chosen[:, None], :, frames].float().transpose(1, 2)
        if self.takes.coverage is None:
            return truth, torch.ones_like(truth[:, :1])
        return truth, 1 + _CHARACTER_WEIGHT * self.takes.coverage[self.chosen[:, None], frames].float()[:, None]

    def _position(self, j: int) -> torch.Tensor:
        frames = BLOCK * j + torch.arange(BLOCK, device=self.device).expand(self.films, BLOCK)
        return frames + self.shift[:, None] if j else frames

    def kept(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """`value` in a place of its own that is the same for every block, as a graph needs it."""
        if name not in self.buffers or self.buffers[name].shape != value.shape:
            self.buffers[name] = torch.empty_like(value)
        return self.buffers[name].copy_(value)

    @property
    def _filmer(self) -> Any:
        return self.shadow or self.dit

    @torch.no_grad()
    def _sync_shadow(self) -> None:
        if self.shadow is not None:
            torch._foreach_copy_(list(self.shadow.parameters()), list(self.dit.parameters()))

    def _pass(
        self,
        x: torch.Tensor,
        level: float,
        text: KeyValues,
        position: torch.Tensor,
        keys: KeyValues | None = None,
        context: Context | None = None,
    ) -> torch.Tensor | None:
        time = torch.full((self.films, x.shape[2]), 1000 * level, device=self.device)
        return block_flow(
            self._filmer, x.to(_dtype(self._filmer)), time, text, position, context or self.memory.context, keys
        )

    def _noise(self) -> torch.Tensor:
        """A block's noise for each step: [steps, B, C, 3, h, w]."""
        return torch.randn((len(self.levels), self.films, self.size[0], BLOCK, *self.size[1:]), device=self.device)

    def _denoise(
        self,
        noise: torch.Tensor,
        text: KeyValues,
        position: torch.Tensor,
        truth: torch.Tensor | None,
        anchored: torch.Tensor,
    ) -> list[torch.Tensor]:
        """The clean latents [B, C, 3, h, w] that each of the few steps predicts; the last is the block."""
        guesses: list[torch.Tensor] = []
        for level, fresh in zip(self.levels, noise, strict=True):
            x = level * fresh + (1 - level) * guesses[-1] if guesses else level * fresh
            velocity = self._pass(x, level, text, position)
            assert velocity is not None
            guesses.append(x - level * velocity.float())
            if truth is not None and len(guesses) == _ANCHOR < len(self.levels):
                guesses[-1] = torch.where(anchored[:, None, None, None, None], truth, guesses[-1])
        return guesses

    def _recache(self, text: torch.Tensor, switched: torch.Tensor) -> None:
        frames, whole = self.memory.recache_frames()
        blocks = self.before[-(frames // BLOCK) :]
        x = self.kept(f"past {frames}", torch.cat([part[0] for part in blocks], dim=2))
        position = self.kept(f"past positions {frames}", torch.cat([part[2] for part in blocks], dim=1))

        def context(layer: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return self.memory.context(layer, ring=False, sink=not whole)

        def recache() -> None:
            keys: KeyValues = []
            self._pass(x, 0.0, text_keys(self._filmer, text)[0], position, keys, context)
            self.memory.recached(keys, frames, switched)

        self.captured(("recache", frames, whole, *self.memory.phase), recache)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where the films are, with their memory."""
        if self.block >= self.blocks:
            return {}
        names = (
            "block",
            "place",
            "schedule",
            "leaps",
            "given",
            "shift",
            "chosen",
            "rate",
            "run",
            "tokens",
            "before",
            "changes",
            "captions",
        )
        return {name: getattr(self, name) for name in names} | {"text": self.text, "memory": self.memory.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if not state:
            return
        for name, value in state.items():
            if name != "memory":
                setattr(self, name, value)
        # The host plans by these two.
        self.schedule, self.leaps = self.schedule.cpu(), self.leaps.cpu()
        self.memory.load(state["memory"])


def _dtype(dit: Any) -> torch.dtype:
    """What a model computes in: core keeps some layers in float32 whatever the others are."""
    dtype: torch.dtype = dit.head.modulation.dtype
    return dtype
