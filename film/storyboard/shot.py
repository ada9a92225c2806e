"""What a storyboard stands for: shots and their timed prompts, as values that are valid by construction."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Literal

__all__ = [
    "DEFAULT_SECONDS",
    "MAX_SECONDS",
    "MAX_SEED",
    "STARTS",
    "Shot",
    "Start",
    "Storyboard",
    "StoryboardError",
    "TimedPrompt",
]

Start = Literal["cut", "continue"]
STARTS: tuple[Start, ...] = ("cut", "continue")
DEFAULT_SECONDS = 5.0
MAX_SECONDS = 86_400.0
MAX_SEED = 2**64 - 1

SECONDS_RULE = f"a shot lasts more than 0 and at most {MAX_SECONDS:.0f} seconds"
TAKE = re.compile(r"[0-9a-f]{8,64}")
TAKE_RULE = "a take is named by 8 digits or more, as the project lists it"
SEED_RULE = f"a seed is a whole number from 0 to {MAX_SEED}"


_LONGEST = 600


class StoryboardError(ValueError):
    """A storyboard that cannot be read. `message` is one sentence that says what to change.

    line and column count from 1 and are None where the value came from code and not from text.
    """

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        if len(message) > _LONGEST:  # it quotes something that is no word
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(message if line is None else f"Line {line}, column {column or 1}: {message}")
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt and the second, counted from its shot's start, from which it holds.

    The text is normalised: lines end with LF and the whole is stripped. Raises StoryboardError if nothing is left.
    """

    at: float
    text: str

    def __post_init__(self) -> None:
        text = self.text.replace("\r\n", "\n").replace("\r", "\n").strip()
        if not text:
            raise StoryboardError("A prompt is empty: say what is seen.")
        check_characters(text)
        if not (math.isfinite(self.at) and self.at >= 0):
            raise StoryboardError(f"A prompt starts at {self.at} s: choose a time from 0 on.")
        object.__setattr__(self, "at", float(self.at))
        object.__setattr__(self, "text", text)


@dataclass(frozen=True)
class Shot:
    """One take, or a piece of one: its prompts, its length, and how it joins what was filmed before.

    prompts: at least one; the first at 0 s, times rising, all below `seconds`.
    seconds: planned length, more than 0 and at most MAX_SECONDS.
    seed: 0 .. MAX_SEED.
    start: "cut" begins a new take, "continue" goes on where the shot before ended.
    references: names of pictures, in order.
    take: fingerprint, or the beginning of it, of a finished take of the project that is used; "" for none.

    Raises StoryboardError for anything else.
    """

    prompts: tuple[TimedPrompt, ...]
    seconds: float = DEFAULT_SECONDS
    seed: int = 0
    start: Start = "cut"
    references: tuple[str, ...] = ()
    take: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", float(self.seconds))
        if not 0 < self.seconds <= MAX_SECONDS:
            raise StoryboardError(f"The shot lasts {number(self.seconds)} s, but {SECONDS_RULE}.")
        if not 0 <= self.seed <= MAX_SEED:
            raise StoryboardError(f"The seed is {self.seed}, but {SEED_RULE}.")
        if self.start not in STARTS:
            raise StoryboardError(f'The shot\'s start is "{self.start}": choose cut or continue.')
        if not self.prompts:
            raise StoryboardError("The shot has no prompt: say what is seen.")
        if fault := fault_in_times([prompt.at for prompt in self.prompts], self.seconds):
            raise StoryboardError(fault[1])
        for name in self.references:
            if not name.strip():
                raise StoryboardError("A reference has no name: give the name of a picture or remove it.")
            check_characters(name)
        if self.take and not TAKE.fullmatch(self.take):
            raise StoryboardError(f'The take is "{self.take}", but {TAKE_RULE}.')


@dataclass(frozen=True)
class Storyboard:
    """Shots in the order of the film, at least one."""

    shots: tuple[Shot, ...]

    def __post_init__(self) -> None:
        if not self.shots:
            raise StoryboardError("The storyboard is empty: write at least one line that says what is seen.")

    @property
    def seconds(self) -> float:
        """Planned length of the film in seconds."""
        return math.fsum(shot.seconds for shot in self.shots)


def number(value: float) -> str:
    """Shortest decimal digits, never an exponent, that read back as the same float."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def fault_in_times(starts: Sequence[float], seconds: float) -> tuple[int, str] | None:
    """What is wrong with the times at which a shot's prompts start: the prompt's index and a sentence, or None."""
    if starts[0] != 0:
        return 0, f"The shot's first prompt starts at {number(starts[0])} s: say what is seen from 0 s on."
    for i, (before, after) in enumerate(pairwise(starts), start=1):
        if after <= before:
            return i, f"The prompt at {number(after)} s follows one at {number(before)} s: put the times in order."
    if starts[-1] >= seconds:
        return len(starts) - 1, (
            f"A prompt starts at {number(starts[-1])} s but the shot lasts {number(seconds)} s: "
            "choose an earlier time or a longer shot."
        )
    return None


def check_characters(text: str) -> None:
    """Raises StoryboardError for half of a surrogate pair, which JSON escapes can bring in and no file can hold."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise StoryboardError("A name or prompt holds half of a surrogate pair, which is not text: remove it.")
