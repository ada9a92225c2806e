"""Takes: how many latent frames a shot must film, and which frames of them the finished film shows.

A take is a cut and the shots that continue it. It is decoded in one stream: its first latent frame gives one frame,
each later one `compression` frames. Engines film whole blocks, so a take usually covers a little more than was planned;
the surplus is trimmed at the take's end, so motion within a take never jumps. An engine whose takes begin with frames
that are no part of the film (a composed first frame and what dissolves out of it) has them trimmed there: its lead.

The film keeps to the storyboard's clock: shot n ends at the frame nearest to the sum of the planned seconds up to it.
So lengths never drift, however many shots there are, and a shot's frames depend only on it and the shots before it.

All of it is arithmetic on exact fractions; nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Protocol

from ..storyboard.shot import Shot, TimedPrompt, number

__all__ = [
    "FrameGrid",
    "FrameRange",
    "PromptSchedule",
    "ShotPlan",
    "Take",
    "TakeError",
    "TimedShot",
    "plan_shot",
    "plan_story",
    "schedule_prompts",
    "stretches",
    "takes",
]


class TakeError(ValueError):
    """A shot cannot be filmed as planned; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class FrameGrid:
    """How time is counted.

    fps: frames a second. compression: frames to each latent frame of a take but its first. block: latent frames of one.
    lead: frames at the beginning of each take that are filmed and trimmed.
    """

    fps: float
    compression: int
    block: int
    lead: int = 0

    def frames(self, latent_frames: int) -> int:
        """Frames that a take of so many latent frames decodes to."""
        return 1 + self.compression * (latent_frames - 1) if latent_frames else 0

    def latent_frames(self, frames: int) -> int:
        """Fewest latent frames of a take that decode to so many frames or more."""
        return ceil(Fraction(frames - 1, self.compression)) + 1 if frames else 0

    @property
    def exact_fps(self) -> Fraction:
        """The rate as it is written: 23.976 is 23976/1000."""
        return _exact(self.fps)


class TimedShot(Protocol):
    """What planning needs to know of a filmed or planned shot; FilmedShot and ShotPlan are such."""

    @property
    def seconds(self) -> float: ...
    @property
    def latent_frames(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def take_start(self) -> bool: ...
    @property
    def lead(self) -> int: ...


@dataclass(frozen=True)
class ShotPlan:
    """What to film for a shot.

    latent_frames: to film, whole blocks, at least one. frames: of the finished film that belong to the shot, at least
    one. take_start: it begins a take. take_latents, take_frames: latent frames and frames of its take before it. lead:
    how many of the latter are its own and trimmed, 0 unless it begins a take.
    """

    seconds: float
    latent_frames: int
    frames: int
    take_start: bool
    take_latents: int
    take_frames: int
    lead: int = 0


def plan_shot(filmed: Sequence[TimedShot], shot: Shot, clock: FrameGrid) -> ShotPlan:
    """The plan of the shot that comes after `filmed`, the whole film so far.

    Raises TakeError for a shot shorter than a frame, or one that continues nothing.
    """
    fps = clock.exact_fps
    if _exact(shot.seconds) * fps < 1:
        raise TakeError(
            f"The shot lasts {number(shot.seconds)} s, less than a frame at {clock.fps:g} frames a second: "
            f"make it {number(round(1 / clock.fps + 0.0005, 3))} s or longer."
        )
    take_start = shot.start == "cut"
    if not take_start and not filmed:
        raise TakeError("The first shot continues nothing: let it start with a cut, or give it a reel to continue.")
    end = _nearest((sum(_exact(part.seconds) for part in filmed) + _exact(shot.seconds)) * fps)
    # Footage of another engine may have run ahead of the storyboard; the shot is then as short as it can be.
    frames = max(1, end - sum(part.frames for part in filmed))
    before = () if take_start else _last_take(filmed)
    take_latents = sum(part.latent_frames for part in before)
    lead = clock.lead if take_start else 0
    take_frames = lead + sum(part.lead + part.frames for part in before)
    missing = clock.latent_frames(take_frames + frames) - take_latents
    # A short shot may lie in the surplus of the shot before it. It still films a block: its prompt must reach the
    # film's memory, and every filmed shot holds something.
    blocks = max(1, ceil(Fraction(missing, clock.block)))
    return ShotPlan(shot.seconds, blocks * clock.block, frames, take_start, take_latents, take_frames, lead)


def plan_story(shots: Sequence[Shot], clock: FrameGrid, filmed: Sequence[TimedShot] = ()) -> tuple[ShotPlan, ...]:
    """Plans of shots that follow one another after `filmed`. Raises TakeError naming the shot, counted from 1."""
    plans: list[ShotPlan] = []
    for shot in shots:
        try:
            plans.append(plan_shot([*filmed, *plans], shot, clock))
        except TakeError as error:
            raise TakeError(f"Shot {len(filmed) + len(plans) + 1}: {error}") from None
    return tuple(plans)


@dataclass(frozen=True)
class Take:
    """Shots that decode in one stream.

    shots: their indices. latent_frames: of all of them. frames: kept, in one piece; the others are trimmed. start: the
    finished film's frame at which it begins. lead: frames before the first that is kept.
    """

    shots: range
    latent_frames: int
    frames: int
    start: int
    lead: int = 0


def takes(filmed: Sequence[TimedShot]) -> tuple[Take, ...]:
    """The takes of a film, in order; together they show all its frames."""
    result: list[Take] = []
    for i, part in enumerate(filmed):
        if part.take_start:
            start = result[-1].start + result[-1].frames if result else 0
            result.append(Take(range(i, i + 1), part.latent_frames, part.frames, start, part.lead))
        else:
            last = result[-1]
            latent_frames, frames = last.latent_frames + part.latent_frames, last.frames + part.frames
            result[-1] = Take(range(last.shots.start, i + 1), latent_frames, frames, last.start, last.lead)
    return tuple(result)


@dataclass(frozen=True)
class FrameRange:
    """Frames start .. stop (exclusive) of a take, counted from the first that it decodes to."""

    take: Take
    start: int
    stop: int


def stretches(all_takes: Sequence[Take], start: int = 0, stop: int | None = None) -> Iterator[FrameRange]:
    """Where frames start .. stop (exclusive; to the end if None) of the finished film lie, take by take in order."""
    for take in all_takes:
        first = max(start - take.start, 0)
        last = take.frames if stop is None else min(stop - take.start, take.frames)
        if first < last:
            yield FrameRange(take, take.lead + first, take.lead + last)


@dataclass(frozen=True)
class PromptSchedule:
    """When the prompts of a shot take effect.

    changes: latent frame of the shot (0 is its first, each is a block's first) and the prompt that holds from it on;
    rising, the first at 0. unseen: prompts that hold in no block, as the next starts in the same one or the shot ends.
    """

    changes: tuple[tuple[int, TimedPrompt], ...]
    unseen: tuple[TimedPrompt, ...]


def schedule_prompts(shot: Shot, plan: ShotPlan, clock: FrameGrid) -> PromptSchedule:
    """When the shot's prompts take effect: each at the first block that starts at or after its latent frame.

    Times count from the shot's planned start, also where the take is ahead of it, so that a prompt changes in the
    finished film at the storyboard's time, but for the rest of a block.
    """
    changes: dict[int, TimedPrompt] = {}
    unseen: list[TimedPrompt] = []
    for prompt in shot.prompts:
        frame = plan.take_frames + ceil(_exact(prompt.at) * clock.exact_fps)
        missing = clock.latent_frames(frame + 1) - 1 - plan.take_latents
        latent = max(0, ceil(Fraction(missing, clock.block)) * clock.block) if prompt.at else 0
        if latent >= plan.latent_frames:
            unseen.append(prompt)
            continue
        if latent in changes:
            unseen.append(changes[latent])
        changes[latent] = prompt
    return PromptSchedule(tuple(sorted(changes.items(), key=lambda change: change[0])), tuple(unseen))


def _exact(value: float) -> Fraction:
    """A float as it is written, so that 0.1 is a tenth."""
    return Fraction(repr(float(value)))


def _nearest(value: Fraction) -> int:
    """Nearest whole number, halves up: unlike round(), it never shortens a shot because of the parity of its end."""
    return floor(value + Fraction(1, 2))


def _last_take(filmed: Sequence[TimedShot]) -> Sequence[TimedShot]:
    start = max(i for i, part in enumerate(filmed) if part.take_start)
    return filmed[start:]
