"""What a chunk is conditioned on, and what every backend has in common.

Source: docs/methods/filmweaver.md, other weights in the same engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ..film.dual_cache import CacheNoise, Keyframe, Mode, StoryCache
from ..film.reel.takes import FrameGrid, PromptSchedule, ShotPlan
from ..film.storyboard.shot import TimedPrompt
from ..host.families import of_vae
from ..host.media.keyframes import LEAD
from ..host.sampling import Conditioned
from .engine import EngineError

__all__ = ["OVERLAP", "Backend", "ChunkInputs", "check_history", "chunks", "prompt_per_chunk"]

Conditioning = list[Any]


@dataclass(frozen=True, eq=False)
class ChunkInputs:
    """What a chunk can be conditioned on.

    positive, negative: encoded text. cache: its history is the temporal cache. keyframes: as retrieved, best first.
    frames: latent frames to film. size: width and height in pixels. anchor: the take's first latent frame
    [1, C, 1, h, w] in LATENT space, where it has one already.
    """

    positive: Conditioning
    negative: Conditioning
    cache: StoryCache
    keyframes: Sequence[Keyframe]
    frames: int
    size: tuple[int, int]
    vae: VAE
    latent_format: LatentFormat
    noise: CacheNoise
    noise_seed: int
    anchor: Tensor | None = None

    @property
    def clock(self) -> FrameGrid:
        """How many frames latent frames are; the rate does not matter here."""
        return of_vae(self.vae).latents.grid(1.0)

    def keyframe_latents(self) -> list[Tensor]:
        """The keyframes' latents, each [1, C, 1, h, w] fp32 in LATENT space."""
        return [self._latent(keyframe) for keyframe in self.keyframes]

    def keyframe_latents_in_time(self) -> list[Tensor]:
        """As `keyframe_latents`, a user's first and then in the order they were filmed."""
        return [self._latent(keyframe) for keyframe in sorted(self.keyframes, key=lambda one: (one.shot, one.frame))]

    def overlap_frames(self) -> Tensor | None:
        """The take's last pictures [5, H, W, 3] or its only one, 0..1: what two latent frames are encoded from."""
        history = self.cache.history
        if history is None:
            return None
        known = min(OVERLAP, history.shape[1])
        tail = self.vae.decode(self.latent_format.process_out(history[None, :, -(known + LEAD) :]))[0].float().cpu()
        return tail[-self.clock.frames(known) :]

    def overlap(self, pictures: Tensor | None) -> int:
        """Latent frames that pictures at a clip's beginning are encoded as."""
        return 0 if pictures is None else self.clock.latent_frames(len(pictures))

    def _latent(self, keyframe: Keyframe) -> Tensor:
        latent: Tensor = self.latent_format.process_out(keyframe.latent[None].float())
        return latent


OVERLAP = 2
"""Latent frames before a clip that it is conditioned on: five pictures, and at least one of motion."""


class Backend(Protocol):
    """One kind of weights.

    name: in the node. fixed_chunk: latent frames at once where only so many will do, or 0. max_chunk: at most so many,
    overlap included, 0 for a whole shot. keyframes: at most. supports_continuation: it reads the frames before, so a
    shot can continue another or a picture. supports_empty_history: it can film with both caches empty.
    """

    @property
    def name(self) -> str: ...
    @property
    def fixed_chunk(self) -> int: ...
    @property
    def max_chunk(self) -> int: ...
    @property
    def keyframes(self) -> int: ...
    @property
    def supports_continuation(self) -> bool: ...
    @property
    def supports_empty_history(self) -> bool: ...

    def check(self, models: Sequence[ModelPatcher]) -> None:
        """Raise a ValueError of one sentence for models it cannot condition."""

    def condition(self, inputs: ChunkInputs) -> Conditioned:
        """The conditioning of one chunk."""


def check_history(backend: Backend, cache: StoryCache) -> None:
    """Raises EngineError for an empty history where the backend needs one."""
    if cache.mode is Mode.NONE and not backend.supports_empty_history:
        raise EngineError(
            f"The {backend.name} backend films from pictures and there are none yet: give the shot a picture to start "
            "from or references, use Add References, or film the first shot with another engine."
        )


def chunks(backend: Backend, plan: ShotPlan) -> list[int]:
    """Latent frames of a shot's chunks: as many as the backend must have, else as few pieces as it takes, evenly."""
    frames = plan.latent_frames
    if backend.fixed_chunk:
        return [backend.fixed_chunk] * (frames // backend.fixed_chunk)
    if not backend.max_chunk or (plan.take_start and frames <= backend.max_chunk):
        return [frames]
    # Every chunk but a take's first begins with what it goes on from.
    first = backend.max_chunk if plan.take_start else 0
    pieces = bool(first) + math.ceil((frames - first) / (backend.max_chunk - OVERLAP))
    return [frames // pieces + (index < frames % pieces) for index in range(pieces)]


def prompt_per_chunk(schedule: PromptSchedule, pieces: Sequence[int]) -> list[TimedPrompt]:
    """The prompt of each chunk: the one that holds at its middle; where chunks are the clock's blocks, at its first."""
    prompts: list[TimedPrompt] = []
    done = 0
    for frames in pieces:
        prompts.append([prompt for at, prompt in schedule.changes if at <= done + (frames - 1) // 2][-1])
        done += frames
    return prompts
