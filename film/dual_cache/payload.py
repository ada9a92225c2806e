"""The conditioning made of the caches: segments of latents with their token rates, positions and noise. No model yet.

Source: docs/methods/filmweaver.md, tokens and positions, noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .keyframe import Keyframe
from .profile import CacheError, LayoutProfile, Size3
from .story import StoryCache

__all__ = ["CacheNoise", "Payload", "Segment", "build_payload"]

# The noisy end of what the temporal cache is trained with.
_FREE_HISTORY_SIGMA = 0.1


@dataclass(frozen=True)
class CacheNoise:
    """Noise mixed into the caches: sigma * noise + (1 - sigma) * latent, sigma 0..1.

    shot: of keyframes; training draws 0.1 to 0.4, so 0.1 is the lowest trained level. More frees pose and layout.
    temporal: of the frames before; training draws 0 to 0.1. history_strength: 1 conditions on the whole history as it
    is; less on fewer frames, with their sigma moved towards 0.1, which frees motion and camera; 0 on none. Raises
    CacheError.
    """

    shot: float = 0.1
    temporal: float = 0.0
    history_strength: float = 1.0

    def __post_init__(self) -> None:
        for name in ("shot", "temporal", "history_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise CacheError(f"The cache's {name.replace('_', ' ')} is {getattr(self, name)}: choose 0 to 1.")

    def history_frames(self, frames: int) -> int:
        """How many of the newest `frames` condition the chunk."""
        return math.ceil(frames * self.history_strength)

    @property
    def history_sigma(self) -> float:
        """Sigma of the frames before."""
        return self.temporal + (1 - self.history_strength) * max(0.0, _FREE_HISTORY_SIGMA - self.temporal)


@dataclass(frozen=True, eq=False)
class Segment:
    """Latents that are embedded with one kernel: a bucket of the temporal cache, or a keyframe.

    latent: [C, T, h, w] in the model's space, T a multiple of pool[0]. pool: see Bucket. times: t id of each row.
    phase: radians added to the temporal angles. sigma: of its noise, noise_seed: where it comes from.
    """

    kind: Literal["temporal", "shot"]
    latent: torch.Tensor
    pool: Size3
    times: tuple[float, ...]
    phase: float
    sigma: float
    noise_seed: int

    def pooled(self, patch: Size3) -> torch.Tensor:
        """What goes through the model's patch embedding: [1, C, T', h', w'] fp32 on the CPU, pooled, then noised.

        Height and width are first padded to whole kernels by repeating the last row and column. The same noise at every
        call: torch's CPU generator gives it for the seed.
        """
        height, width = self.latent.shape[2:]
        kernel = (patch[1] * self.pool[1], patch[2] * self.pool[2])
        missing = (0, -width % kernel[1], 0, -height % kernel[0], 0, 0)
        padded = F.pad(self.latent[None].float(), missing, mode="replicate")
        small = F.avg_pool3d(padded, self.pool)
        if not self.sigma:
            return small
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(small.shape, generator=generator)
        return self.sigma * noise + (1 - self.sigma) * small

    def ids(self, profile: LayoutProfile) -> torch.Tensor:
        """Position ids [tokens, 3] fp32 in the order of the flattened patch embedding of pooled()."""
        return profile.ids(self.times, self.latent.shape[2], self.latent.shape[3], self.pool)

    @property
    def cost(self) -> float:
        """Its tokens, in full latent frames (without padding)."""
        return self.latent.shape[1] / math.prod(self.pool)


@dataclass(frozen=True, eq=False)
class Payload:
    """Segments for one chunk, keyframes first. Their order does not matter to attention.

    Equality is identity: samplers compare conditioning at every step, and positive and negative share one payload.
    """

    profile: LayoutProfile
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        """Cache tokens that are added to the target's."""
        return sum(segment.ids(self.profile).shape[0] for segment in self.segments)

    @property
    def cost(self) -> float:
        """Full latent frames that the cache tokens weigh, for memory estimates; 5 with full caches as published."""
        return sum(segment.cost for segment in self.segments)

    def modulation_sigma(self, segment: Segment, target: float) -> float:
        """Noise level that a segment's tokens are modulated with while the target is at `target` (0..1)."""
        return {"shared": target, "own": segment.sigma, "zero": 0.0}[self.profile.time_mode]


def build_payload(
    cache: StoryCache,
    keyframes: Sequence[Keyframe],
    noise: CacheNoise = CacheNoise(),
    noise_seed: int = 0,
) -> Payload | None:
    """What the next chunk is conditioned on; None if that is nothing, and the model then runs unchanged.

    keyframes: as retrieved, best first. noise_seed: of the temporal cache's noise; keyframes have their own. Raises
    CacheError for more keyframes than the profile has places.
    """
    profile = cache.profile
    if len(keyframes) > profile.keyframes:
        raise CacheError(
            f"{len(keyframes)} keyframes are given and the layout has places for {profile.keyframes}: retrieve fewer."
        )
    segments = [
        Segment(
            kind="shot",
            latent=keyframe.latent,
            pool=(1, 1, 1),
            times=(profile.keyframe_time(rank),),
            phase=profile.keyframe_phase(rank),
            sigma=noise.shot,
            noise_seed=keyframe.noise_seed,
        )
        for rank, keyframe in enumerate(keyframes)
    ]
    history = cache.history
    if history is not None:
        history = history[:, history.shape[1] - noise.history_frames(history.shape[1]) :]
        for i, span in enumerate(profile.spans(history.shape[1])):
            frames = history[:, span.start : span.stop]
            oldest = frames[:, :1].expand(-1, span.repeats, -1, -1)
            segments.append(
                Segment(
                    kind="temporal",
                    latent=torch.cat([oldest, frames], dim=1),
                    pool=span.pool,
                    times=span.times,
                    phase=0.0,
                    sigma=noise.history_sigma,
                    # Buckets of one chunk must not share their noise.
                    noise_seed=(noise_seed + i) & (2**64 - 1),
                )
            )
    return Payload(profile, tuple(segments)) if segments else None
