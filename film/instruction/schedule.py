"""Which state holds when: states over the frames of a clip, and over the chunks of a longer one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from .planner import InstructionError, State, States

__all__ = ["chunk_prompt", "chunk_states", "spread_chunks", "state_at"]


def state_at(times: Sequence[float], moment: float) -> int:
    """Index of the state that holds at `moment` (0 first frame .. 1 last): the one whose time is nearest.

    times: never falling, see `States.times`. Of two equally near the later holds, so that a change comes halfway
    between two states.
    """
    middles = [(before + after) / 2 for before, after in pairwise(times)]
    return bisect_right(middles, moment)


def spread_chunks(frames: int, chunk: int, known: int) -> int:
    """How many chunks of `chunk` frames, the first `known` of each given, make a clip of `frames` frames.

    The first chunk brings its known frames along, so n chunks have known + n * (chunk - known) frames. Raises
    InstructionError unless 1 <= known < chunk.
    """
    if not 1 <= known < chunk:
        raise InstructionError(
            f"{known} known frames do not fit a chunk of {chunk}: give at least 1 and fewer than the chunk has."
        )
    return max(1, math.ceil((frames - known) / (chunk - known)))


def chunk_states(states: States, part: int, parts: int, count: int) -> tuple[State, ...]:
    """`count` states of part `part` (from 0) of `parts` equal ones, spread evenly over the part.

    A plan made once for a whole clip serves a clip of several chunks so: each chunk gets the states of its share of the
    time. Raises InstructionError for a part that does not exist.
    """
    if not 0 <= part < parts:
        raise InstructionError(f"Part {part + 1} of {parts} does not exist.")
    times = states.times()
    last = max(count - 1, 1)
    moments = [(part + number / last) / parts for number in range(count)]
    return tuple(states.states[state_at(times, moment)] for moment in moments)


def chunk_prompt(instruction: str, states: Sequence[State]) -> str:
    """A prompt of an ordinary video model for a chunk: the instruction, then its states in order, none twice in a row.

    States that are the instruction itself (the fallback) add nothing.
    """
    said = [" ".join(instruction.split())]
    for state in states:
        sentence = state.prompt
        if sentence != said[-1] and state.text != said[0]:
            said.append(sentence)
    return " ".join(sentence if sentence.endswith((".", "!", "?")) else sentence + "." for sentence in said)
