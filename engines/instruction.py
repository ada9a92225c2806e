"""The instruction engine: a sentence is planned as successive states, and the model at hand films them (AID,
2406.06465).

A shot's prompt says what shall happen. A vision-language model gets the frame in which the shot begins and writes
successive states; a backend films them: a causal Wan as a schedule of prompts, an image-to-video Wan chunk by chunk,
each from the last frame and with a prompt of its states, Stable Video Diffusion with an adapter chunk by chunk from the
last frames and with a condition for every frame. Between chunks the plan can be made anew from the frame that was
reached. Several prompts in a shot are states written by the user, with their times.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..film.instruction import State, States, chunk_states, fallback_states, spread_chunks
from ..film.instruction.planner import DEFAULT_STATES
from ..film.reel.groups import StatesGroup
from ..film.reel.reel import FilmedShot, Reel
from ..film.reel.takes import ShotPlan, plan_shot
from ..film.storyboard.shot import Shot
from ..host.families.family import fit
from ..host.files.paths import spill_folder
from ..host.files.pictures import load_picture
from ..host.media.keyframes import LEAD
from ..host.media.plan_states import StatePlanner
from ..host.progress import Progress
from .engine import Capabilities, EngineBase, EngineError, ShotInputs, share_of

__all__ = ["Chunk", "ChunkBackend", "InstructionEngine", "Planning", "timed_prompts", "written_states"]


@dataclass(frozen=True, eq=False)
class Planning:
    """How instructions become states.

    planner: a vision-language model; None plans nothing. states: planned beforehand, for every shot; they go before the
    planner. count: of states. replan: ask again before each chunk, from the frame that was reached.
    """

    planner: StatePlanner | None = None
    states: States | None = None
    count: int = DEFAULT_STATES
    replan: bool = False

    def settings(self) -> dict[str, Any]:
        """What of it decides how a shot looks, JSON-able."""
        return {
            "planner": None if self.planner is None else self.planner.identity,
            "states": None if self.states is None else self.states.to_json(),
            "count": self.count,
            "replan": self.replan and self.planner is not None,
        }

    def plan(self, shot: Shot, picture: Tensor | None) -> States:
        """States of a whole shot. picture: [H, W, 3] in 0..1 in which it begins, None where nothing is known of it."""
        if len(shot.prompts) > 1:
            return written_states(shot)
        instruction = shot.prompts[0].text
        if self.states is not None:
            return replace(self.states, instruction=instruction)
        if self.planner is not None and picture is not None:
            return self.planner.plan(picture, instruction).states
        return fallback_states(instruction, self.count)

    def plan_part(self, states: States, picture: Tensor, part: int, parts: int, before: str) -> tuple[State, ...]:
        """States of part `part` (from 0): those of the whole shot that fall into it, or planned anew from `picture`."""
        if part and self.replan and self.planner is not None:
            planned = self.planner.plan_next(picture, states.instruction, part + 1, parts, before).states
            if not planned.fallback:
                return planned.states
        return chunk_states(states, part, parts, self.count)


def written_states(shot: Shot) -> States:
    """A shot's timed prompts as states; together they are its instruction."""
    states = tuple(State(" ".join(prompt.text.split()), prompt.at / shot.seconds) for prompt in shot.prompts)
    return States(" ".join(state.text for state in states), states)


@dataclass(frozen=True, eq=False)
class Chunk:
    """What a backend films at once.

    frames: [K, H, W, 3] in 0..1, in the film's size, with which it begins. anchor: the take's first frame, [1, H, W,
    3]. latent_frames: at most so many are needed. seed: of its noise.
    """

    instruction: str
    states: tuple[State, ...]
    frames: Tensor
    anchor: Tensor
    latent_frames: int
    seed: int


class ChunkBackend(Protocol):
    """A way to film from first frames. latent_frames: of a chunk; known: of them, those that begin it again."""

    @property
    def latent_frames(self) -> int: ...
    @property
    def known(self) -> int: ...
    @property
    def step_count(self) -> int: ...
    def with_steps(self, count: int) -> ChunkBackend: ...
    def check(self, engine: InstructionEngine) -> None: ...
    def settings(self) -> Mapping[str, Any]: ...
    def models(self) -> list[ModelPatcher]: ...
    def film(self, engine: InstructionEngine, chunk: Chunk, report: Progress) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class InstructionEngine(EngineBase):
    """Films chunk by chunk, each from the last frames.

    backend: how a chunk is filmed. planning: how instructions become states.
    """

    backend: ChunkBackend
    planning: Planning = field(default_factory=Planning)

    name: ClassVar[str] = "instruction"

    @property
    def capabilities(self) -> Capabilities:
        """It goes on from any shot of its model family, from its last frames."""
        return Capabilities(continues=True, references=1, prompts_per_shot=None, start_image=True)

    def get_models(self) -> list[ModelPatcher]:
        """The backend's models and the language model among them."""
        planner = self.planning.planner
        return [*super().get_models(), *self.backend.models(), *([] if planner is None else [planner.clip.patcher])]

    def _memory_layout(self) -> dict[str, Any]:
        return {self.name: {}}

    def _settings(self) -> dict[str, Any]:
        return {**self.backend.settings(), **self.planning.settings()}

    def steps(self, plan: ShotPlan) -> int:
        """Denoising steps of all its chunks."""
        return self._parts(plan) * self.backend.step_count

    def _fewer_steps(self, share: float) -> dict[str, Any]:
        return {"backend": self.backend.with_steps(share_of(self.backend.step_count, share))}

    def _parts(self, plan: ShotPlan) -> int:
        known = self.backend.known
        return spread_chunks(plan.latent_frames + (0 if plan.take_start else known), self.backend.latent_frames, known)

    def check(self) -> None:
        """Refuse models and settings that cannot film. Raises ValueErrors of one sentence."""
        self.check_models()
        self.backend.check(self)

    def shot_inputs(self, shot: Shot, given: Tensor | None = None) -> ShotInputs:
        """Its first frame: the picture given, or its one reference. See EngineBase."""
        if len(shot.references) + (given is not None) > 1:
            raise EngineError("A shot of the instruction engine starts from one picture: keep one.")
        if shot.start == "continue":
            if shot.references or given is not None:
                raise EngineError("Only a shot that starts with a cut can start from a picture: set its start to cut.")
            return ShotInputs()
        picture = load_picture(shot.references[0]) if shot.references else given
        if picture is None:
            raise EngineError(
                "The shot has nothing to begin with: give it a start image or a reference, or let it continue another."
            )
        return ShotInputs(picture)

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot chunk by chunk; see EngineBase."""
        plan = plan_shot(reel.shots, shot, self.clock)
        parts, known = self._parts(plan), self.backend.known
        frames = self._begin(reel, inputs.picture)
        anchor, states = frames[:1], self.planning.plan(shot, frames[-1])
        filmed: list[Tensor] = []
        told: list[list[str]] = []
        for part in range(parts):
            missing = plan.latent_frames - sum(piece.shape[2] for piece in filmed)
            repeated = 0 if part == 0 and plan.take_start else known
            before = told[-1][-1] if told else ""
            now = self.planning.plan_part(states, frames[-1], part, parts, before)
            told.append([state.text for state in now])
            logging.info("Longreel, part %d of %d: %s", part + 1, parts, " / ".join(told[-1]))
            seed = (shot.seed + part) % 2**64
            chunk = Chunk(states.instruction, now, frames, anchor, missing + repeated, seed)
            made = self.backend.film(self, chunk, report)
            filmed.append(made[:, :, repeated : repeated + missing])
            if part + 1 < parts:
                frames = self._last_frames(made)
        stored = FilmedShot.store(
            shot,
            torch.cat(filmed, dim=2),
            previous=reel.fingerprint,
            settings=self.settings(inputs.picture),
            take_start=plan.take_start,
            frames=plan.frames,
            meta={StatesGroup.NAME: told},
            folder=spill_folder(),
            family=self.family.latents.family,
        )
        return reel.append(stored)

    def _begin(self, reel: Reel, picture: Tensor | None) -> Tensor:
        """The frames with which a shot begins: its picture in the film's size, or the last ones of the reel."""
        if picture is not None:
            return fit(picture, self.width, self.height)
        tail = reel.tail(LEAD + self._known_frames)
        assert tail is not None, "plan_shot refuses a shot that continues nothing"
        return self._last_frames(tail)

    @property
    def _known_frames(self) -> int:
        return self.clock.frames(self.backend.known)

    def _last_frames(self, latents: Tensor) -> Tensor:
        """The last frames [K, H, W, 3] of latents [1, C, T, h, w], decoded with the few before them only."""
        tail = latents[:, :, -(LEAD + self._known_frames) :]
        return torch.cat(list(self.family.decoder().decode(tail)))[-self._known_frames :].float().cpu()


def timed_prompts(states: States, shot: Shot, prompts: Iterator[str]) -> list[tuple[float, str]]:
    """When each prompt holds, in seconds of the shot: a state's prompt from halfway to the one before."""
    times = states.times()
    changes: list[tuple[float, str]] = []
    for number, prompt in enumerate(prompts):
        at = 0.0 if number == 0 else (times[number - 1] + times[number]) / 2 * shot.seconds
        if changes and (prompt == changes[-1][1] or at <= changes[-1][0]):
            continue
        changes.append((at, prompt))
    return changes
