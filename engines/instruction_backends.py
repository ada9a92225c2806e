"""How the instruction engine films: a causal Wan, an image-to-video Wan in chunks, Stable Video Diffusion with AID."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from typing_extensions import Self

from ..film.instruction import States, chunk_prompt
from ..film.reel.groups import StatesGroup
from ..film.reel.reel import Reel
from ..film.storyboard.shot import Shot, TimedPrompt
from ..host.families.svd import from_rows
from ..host.guidance import SpatioTemporalGuidance
from ..host.media.keyframes import decoded_frame
from ..host.model_fingerprint import fingerprint_model
from ..host.progress import Progress
from ..host.sampling import Inputs, Stage, sample, schedule, stages_by_boundary
from ..host.svd.adapters import AdapterFile, Strengths, apply_adapter
from ..host.svd.conditioning import condition
from ..host.wan.first_frame import kind_of, sample_clip, start_from
from .causal import CausalEngine
from .engine import EngineError, ShotInputs
from .instruction import Chunk, InstructionEngine, Planning, timed_prompts

__all__ = ["AdapterChunks", "CausalInstructionEngine", "FirstFrameChunks"]


@dataclass(frozen=True, eq=False)
class CausalInstructionEngine(CausalEngine):
    """A causal Wan films states as a schedule of prompts, with all that it remembers.

    planning: how instructions become states. It is planned once a shot, from its first frame or the last of the shot
    that it continues; a shot that begins with a cut and no picture is filmed by its instruction alone.
    """

    planning: Planning = field(default_factory=Planning)

    name: ClassVar[str] = "causal instruction"

    def get_models(self) -> list[ModelPatcher]:
        """The language model among them."""
        planner = self.planning.planner
        return [*super().get_models(), *([] if planner is None else [planner.clip.patcher])]

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), **self.planning.settings()}

    def film(self, shot: Shot, reel: Reel, report: Progress, inputs: ShotInputs) -> Reel:
        """Film one shot by its states; see EngineBase."""
        states = self.planning.plan(shot, self._first_picture(shot, reel, inputs))
        if len(shot.prompts) > 1 or states.fallback:
            told = shot
        else:
            prompts = (chunk_prompt(states.instruction, [state]) for state in states.states)
            told = replace(
                shot, prompts=tuple(TimedPrompt(at, text) for at, text in timed_prompts(states, shot, prompts))
            )
        longer = super().film(told, reel, report, inputs)
        last = longer.last_shot
        assert last is not None
        # The reel keeps what was asked for, so that the shot is found again; the states ride on it.
        meta = {**last.meta, StatesGroup.NAME: [list(states.texts)]}
        return reel.append(replace(last, shot=shot, meta=meta))

    def _first_picture(self, shot: Shot, reel: Reel, inputs: ShotInputs) -> Tensor | None:
        if inputs.picture is not None:
            return inputs.picture[-1]
        tail = reel.tail(3) if shot.start == "continue" and self.planning.planner is not None else None
        return None if tail is None else decoded_frame(tail, self.vae, tail.shape[2] - 1)


@dataclass(frozen=True, eq=False)
class FirstFrameChunks:
    """Chunks of an image-to-video Wan, each from the last frame of the one before, as KSampler would film them.

    The engine's model films alone, or its two experts share the steps. frames: of a chunk, 1 more than a multiple of 4.
    step_count, cfg, sampler, scheduler, negative: as KSampler has them. boundary: noise level from which on the second
    expert takes over.
    """

    frames: int
    step_count: int
    cfg: float
    sampler: str
    scheduler: str
    negative: str
    boundary: float = 0.9

    known: ClassVar[int] = 1

    @property
    def latent_frames(self) -> int:
        """Of a chunk."""
        return 1 + (self.frames - 1) // 4

    def check(self, engine: InstructionEngine) -> None:
        """Raises UnsupportedModelError for a model that films from no first frame, EngineError for short chunks."""
        for model in engine.models:
            kind_of(model)
        if self.frames < 5:
            raise EngineError(f"A chunk of {self.frames} frames holds nothing new: set 5 or more.")
        engine.clip.tokenize(self.negative)

    def settings(self) -> Mapping[str, Any]:
        """See EngineBase."""
        return {
            "way": "first frame",
            "frames": self.frames,
            "steps": self.step_count,
            "cfg": self.cfg,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "negative": self.negative,
            "boundary": self.boundary,
        }

    def with_steps(self, count: int) -> Self:
        """The same with so many denoising steps."""
        return replace(self, step_count=count)

    def models(self) -> list[ModelPatcher]:
        """None of its own."""
        return []

    def film(self, engine: InstructionEngine, chunk: Chunk, report: Progress) -> Tensor:
        """Latents [1, C, T, h, w] of the chunk, the first its known frame's."""
        count = min(self.latent_frames, max(chunk.latent_frames, 2))
        start = start_from(
            kind_of(engine.models[0]),
            chunk.frames[-1:],
            engine.vae,
            engine.encode_prompt(chunk_prompt(chunk.instruction, chunk.states)),
            engine.encode_prompt(self.negative),
            (engine.width, engine.height),
            engine.clock.frames(count),
        )
        return sample_clip(
            stages_by_boundary(engine.models, self.scheduler, self.step_count, self.boundary),
            start,
            seed=chunk.seed,
            steps=self.step_count,
            cfg=self.cfg,
            sampler=self.sampler,
            scheduler=self.scheduler,
            on_step=report.step,
        )


@dataclass(frozen=True, eq=False)
class AdapterChunks:
    """Chunks of Stable Video Diffusion with an AID adapter.

    adapter: it; strengths: of its parts. clip_vision: the checkpoint's vision encoder. step_count, sampler, scheduler:
    as KSampler has them. guidance: towards frames and words. known: frames that a chunk begins with, at most as many as
    the adapter was trained with. keep_known: they come out as they went in. augmentation, later_augmentation: noise on
    the known frames of the first and of later chunks; more in later ones holds up drift.
    """

    adapter: AdapterFile
    clip_vision: Any
    step_count: int = 25
    sampler: str = "euler"
    scheduler: str = "karras"
    guidance: SpatioTemporalGuidance = SpatioTemporalGuidance()  # noqa: RUF009 - immutable
    strengths: Strengths = Strengths()  # noqa: RUF009 - immutable
    known: int = 1
    keep_known: bool = False
    augmentation: float | None = None
    later_augmentation: float = 0.05

    @property
    def latent_frames(self) -> int:
        """As many as the adapter was trained with."""
        return self.adapter.settings.num_frames

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_model(self.adapter.patcher)

    def check(self, engine: InstructionEngine) -> None:
        """Raises InstructionError for a model or sizes that do not fit the adapter, EngineError for the rest."""
        apply_adapter(engine.models[0], self.adapter, self.strengths)
        if not 1 <= self.known <= self.adapter.settings.k_max:
            raise EngineError(
                f"The adapter was trained with at most {self.adapter.settings.k_max} known frames: set known to that "
                "or fewer."
            )
        if self.clip_vision is None:
            raise EngineError("There is no vision encoder: connect the one of the SVD checkpoint.")

    def settings(self) -> Mapping[str, Any]:
        """See EngineBase."""
        guidance, strengths = self.guidance, self.strengths
        return {
            "way": "svd",
            "adapter": self._fingerprint,
            "adapter settings": self.adapter.settings.to_metadata(),
            "steps": self.step_count,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "guidance": [*guidance.visual, guidance.text, guidance.window.start, guidance.window.end],
            "strengths": [strengths.spatial, strengths.short, strengths.long, strengths.text],
            "known": [self.known, self.keep_known, self.augmentation, self.later_augmentation],
        }

    def with_steps(self, count: int) -> Self:
        """The same with so many denoising steps."""
        return replace(self, step_count=count)

    def models(self) -> list[ModelPatcher]:
        """The adapter and the vision encoder."""
        return [self.adapter.patcher, self.clip_vision.patcher]

    def film(self, engine: InstructionEngine, chunk: Chunk, report: Progress) -> Tensor:
        """Latents [1, C, T, h, w] of the chunk, its known frames' first."""
        first = torch.equal(chunk.frames[:1], chunk.anchor)
        given = condition(
            self.adapter,
            engine.clip,
            self.clip_vision,
            engine.vae,
            chunk.frames,
            chunk.instruction,
            States(chunk.instruction, chunk.states),
            size=(engine.width, engine.height),
            augmentation=self.augmentation if first else self.later_augmentation,
            seed=chunk.seed,
            keep_known=self.keep_known,
            anchor=chunk.anchor,
        )
        model = apply_adapter(engine.models[0], self.adapter, self.strengths)
        samples = given.latent["samples"]
        rows = sample(
            [Stage(model, 0, self.step_count)],
            Inputs(given.conds, samples, given.latent.get("noise_mask")),
            [self.guidance],
            torch.randn(samples.shape, generator=torch.Generator().manual_seed(chunk.seed)),
            sigmas=schedule(model, self.scheduler, self.step_count, self.sampler),
            sampler=self.sampler,
            seed=chunk.seed,
            on_step=lambda latents: report.step(from_rows(latents)),
        )
        return from_rows(rows)
