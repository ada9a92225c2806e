"""The layout profile: positions of cache tokens in time and space, and their rates. A LoRA holds only for its own.

Sizes are in latent elements (`height`, `width` of a latent frame) and latent frames. A token's id is (t, h, w) as RoPE
takes it; fractional and negative ids are meant. Source: docs/methods/filmweaver.md, tokens and positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch

from ..decode import DecodeError, Value, parse, quoted

__all__ = [
    "FILMWEAVER",
    "METADATA_KEY",
    "Bucket",
    "BucketSpan",
    "CacheError",
    "LayoutProfile",
    "Size3",
    "TimeMode",
    "check_profile",
]

Size3 = tuple[int, int, int]
TimeMode = Literal["shared", "own", "zero"]
ChannelFill = Literal["zeros", "known"]

METADATA_KEY = "longreel.filmweaver.profile"
VERSION = 1
_MOST = 10**6
_DAMAGED = "The layout profile is damaged: use another copy of the LoRA."


class CacheError(ValueError):
    """Caches, keyframes or a profile that do not fit; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class Bucket:
    """One age class of the temporal cache.

    latents: how many frames it holds at most. pool: (t, h, w) latent elements averaged into one before the base patch
    embedding, so pool[0] * pool[1] * pool[2] is its token reduction.
    """

    latents: int
    pool: Size3


@dataclass(frozen=True)
class BucketSpan:
    """The frames of a history that fall into one bucket: `start` to `stop` (exclusive), oldest first.

    repeats: how often the oldest frame is repeated, before it, to fill the time kernel. times: t id of each row of
    tokens, oldest first.
    """

    start: int
    stop: int
    pool: Size3
    repeats: int
    times: tuple[float, ...]


@dataclass(frozen=True)
class LayoutProfile:
    """What a cache-guided LoRA was trained with. All of it must agree between training and use.

    patch: (t, h, w) patch of the base model. chunk: latent frames denoised at once. keyframes: how many condition a
    chunk, at most. buckets: of the temporal cache, newest first. gap: time from the target's first frame back to the
    newest cached one; 1 reads as going on. shot_start, shot_spacing: keyframe of rank k has t = -(shot_start + k *
    shot_spacing). phase: radians per rank, (k + 1) * phase is added to the temporal RoPE angles. time_mode: the noise
    level cache tokens are modulated with: "shared" the target's, "own" their own, "zero" none. channel_fill: what
    stands in the extra input channels of an image-to-video base: zeros, or the frame marked as known. version: of these
    rules.

    Defaults: the token rates of the paper, with our positions where it is silent. Raises CacheError.
    """

    patch: Size3 = (1, 2, 2)
    chunk: int = 6
    keyframes: int = 3
    buckets: tuple[Bucket, ...] = (Bucket(1, (1, 1, 1)), Bucket(2, (1, 2, 2)), Bucket(16, (2, 4, 4)))
    gap: float = 1.0
    shot_start: float = 24.0
    shot_spacing: float = 6.0
    phase: float = 1 / 6
    time_mode: TimeMode = "shared"
    channel_fill: ChannelFill = "zeros"
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_version(self.version)
        if min(self.chunk, self.keyframes, *self.patch) < 1 or not self.buckets:
            raise CacheError("Chunk, keyframes, patch and buckets of a layout profile must be 1 or more.")
        for bucket in self.buckets:
            if min(bucket.latents, *bucket.pool) < 1 or bucket.latents % bucket.pool[0]:
                raise CacheError(
                    f"A bucket of {bucket.latents} latents cannot be pooled by {list(bucket.pool)}: "
                    "make its latents a multiple of the first number."
                )
        if self.time_mode not in get_args(TimeMode):
            raise CacheError(f"Unknown time mode {quoted(self.time_mode)}: choose shared, own or zero.")
        if self.channel_fill not in get_args(ChannelFill):
            raise CacheError(f"Unknown channel fill {quoted(self.channel_fill)}: choose zeros or known.")

    @property
    def history(self) -> int:
        """Latent frames the temporal cache holds at most."""
        return sum(bucket.latents for bucket in self.buckets)

    def spans(self, latents: int) -> tuple[BucketSpan, ...]:
        """How a history of that many frames falls into buckets, newest bucket first; empty buckets are left out.

        Frames beyond the oldest bucket are in none. An incomplete time kernel keeps the id of a complete one.
        """
        spans: list[BucketSpan] = []
        age = 0
        for bucket in self.buckets:
            count = min(bucket.latents, latents - age)
            if count <= 0:
                break
            kernel = bucket.pool[0]
            rows = math.ceil(count / kernel)
            centres = [age + row * kernel + (kernel - 1) / 2 for row in reversed(range(rows))]
            times = tuple(-(self.gap + centre) for centre in centres)
            stop = latents - age
            spans.append(BucketSpan(stop - count, stop, bucket.pool, rows * kernel - count, times))
            age += count
        return tuple(spans)

    def keyframe_time(self, rank: int) -> float:
        """t id of the keyframe of that rank, 0 the best."""
        return -(self.shot_start + rank * self.shot_spacing)

    def keyframe_phase(self, rank: int) -> float:
        """Radians added to the temporal angles of the keyframe of that rank."""
        return (rank + 1) * self.phase

    def grid(self, height: int, width: int, pool: Size3 = (1, 1, 1)) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame, which is padded to whole kernels."""
        return math.ceil(height / (self.patch[1] * pool[1])), math.ceil(width / (self.patch[2] * pool[2]))

    def ids(self, times: tuple[float, ...], height: int, width: int, pool: Size3 = (1, 1, 1)) -> torch.Tensor:
        """Ids [rows * columns * len(times), 3] fp32 in the order of a flattened patch embedding: t, then h, then w.

        A pooled token's h and w are the centre of the base tokens it stands for.
        """
        rows, columns = self.grid(height, width, pool)
        axes = (
            torch.tensor(times, dtype=torch.float32),
            pool[1] * torch.arange(rows, dtype=torch.float32) + (pool[1] - 1) / 2,
            pool[2] * torch.arange(columns, dtype=torch.float32) + (pool[2] - 1) / 2,
        )
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)

    def target_ids(self, height: int, width: int) -> torch.Tensor:
        """Ids of the chunk being denoised, as ids()."""
        return self.ids(tuple(float(t) for t in range(self.chunk // self.patch[0])), height, width)

    def tokens(self, height: int, width: int, history: int, keyframes: int) -> int:
        """Tokens of the target, that many cached frames and that many keyframes, together."""
        rows, columns = self.grid(height, width)
        count = (self.chunk // self.patch[0] + keyframes) * rows * columns
        for span in self.spans(history):
            rows, columns = self.grid(height, width, span.pool)
            count += len(span.times) * rows * columns
        return count

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict of every field."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayoutProfile:
        """Inverse of to_json. Raises CacheError on another version, an unknown, missing or misshapen field."""
        values = dict(values)
        # The version comes first: another one may have other fields.
        _check_version(values.get("version"))
        names = {field.name for field in fields(cls)}
        if odd := sorted(names ^ set(values)):
            name = odd[0][:80]
            raise CacheError(
                f"The layout profile lacks or does not know the field {quoted(name)}: train the LoRA again."
            )
        told = Value(values)
        try:
            parsed = dict(
                values,
                patch=_size3(told["patch"]),
                buckets=tuple(
                    Bucket(bucket["latents"].integer(1, _MOST), _size3(bucket["pool"]))
                    for bucket in told["buckets"].list(100)
                ),
                **{name: told[name].integer(1, _MOST) for name in ("chunk", "keyframes")},
                **{name: told[name].number(-1e6, 1e6) for name in ("gap", "shot_start", "shot_spacing", "phase")},
                **{name: told[name].text(100) for name in ("time_mode", "channel_fill")},
            )
        except DecodeError as error:
            raise CacheError(f"{_DAMAGED.rstrip('.')} ({error}).") from error
        return cls(**parsed)

    def to_metadata(self) -> dict[str, str]:
        """The entry for a LoRA file's safetensors metadata, whose values are strings."""
        return {METADATA_KEY: json.dumps(self.to_json(), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> LayoutProfile:
        """The profile in a LoRA file's metadata. Raises CacheError if there is none or it cannot be used."""
        if METADATA_KEY not in metadata:
            raise CacheError("This LoRA carries no layout profile: choose one made by Longreel's FilmWeaver trainer.")
        try:
            return cls.from_json(parse(metadata[METADATA_KEY], 1 << 20).object())
        except DecodeError as error:
            raise CacheError(_DAMAGED) from error


def check_profile(found: LayoutProfile, wanted: LayoutProfile) -> None:
    """Raises CacheError, naming the first field that differs, unless `found` (a LoRA's, a file's) is `wanted`."""
    mine, other = found.to_json(), wanted.to_json()
    for name in mine:
        if mine[name] != other[name]:
            raise CacheError(
                f"The layout profile has {name.replace('_', ' ')} {json.dumps(mine[name])} where "
                f"{json.dumps(other[name])} is wanted: use the profile that the LoRA was trained with."
            )


def _check_version(version: object) -> None:
    if version is not None and not isinstance(version, int):
        raise CacheError(_DAMAGED)
    if version != VERSION:
        raise CacheError(
            f"The layout profile has version {version} and this Longreel knows {VERSION}: "
            "update Longreel, or train the LoRA again."
        )


def _size3(values: Value) -> Size3:
    t, h, w = (value.integer(1, _MOST) for value in values.list(3, 3))
    return t, h, w


FILMWEAVER = LayoutProfile()
