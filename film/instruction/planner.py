"""State planning: the questions to a vision-language model, and how its answer becomes exactly S states.

AID (arXiv 2406.06465, section 3.2) lets a multimodal language model look at the first frame and the instruction and
write S = 4 short descriptions of successive states; without them FVD on SSv2 rises from 50.23 to 64.48 (its table 2).
The wording here is our own and versioned. Any text can take the model's place: `parse_states` reads a JSON list of
strings or of objects (with time, actors and camera), numbered or dashed lines, plain lines, or prose.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

__all__ = [
    "DEFAULT_STATES",
    "MAX_STATES",
    "Detail",
    "InstructionError",
    "State",
    "States",
    "fallback_states",
    "next_states_prompt",
    "parse_states",
    "states_prompt",
]

DEFAULT_STATES = 4
"""As in the paper."""
MAX_STATES = 32
_LONGEST_ANSWER = 20_000
_LONGEST_STATE = 1_000
_MOST_OPENINGS = 64  # brackets at which JSON is looked for

Detail = Literal["plain", "timed"]


class InstructionError(ValueError):
    """An instruction, states or a setting that cannot be used; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class State:
    """One moment of what happens.

    text: a sentence. at: when it holds, 0 (first frame) .. 1 (last), None where the model did not say. actors: who or
    what moves. camera: what the camera does, "" for nothing said.
    """

    text: str
    at: float | None = None
    actors: tuple[str, ...] = ()
    camera: str = ""

    @property
    def prompt(self) -> str:
        """The state as a prompt of a video model: its sentence, then the camera."""
        if not self.camera:
            return self.text
        return f"{self.text.rstrip('.')}. Camera: {self.camera.rstrip('.')}."


@dataclass(frozen=True)
class States:
    """Successive states of one instruction, at least one.

    fallback: no usable answer was found, and every state is the instruction itself. reason: what was wrong with the
    answer, "" if nothing. done: the model says that the instruction is carried out when these states are.
    """

    instruction: str
    states: tuple[State, ...]
    fallback: bool = False
    reason: str = ""
    done: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences alone, in order."""
        return tuple(state.text for state in self.states)

    def times(self) -> tuple[float, ...]:
        """When each state holds, 0..1 and never falling: as the model said, or spread evenly from 0 to 1."""
        if all(state.at is not None for state in self.states):
            return tuple(float(state.at or 0.0) for state in self.states)
        last = max(len(self.states) - 1, 1)
        return tuple(number / last for number in range(len(self.states)))

    def to_text(self) -> str:
        """Numbered lines that a user can edit; `parse_states` reads the sentences back."""
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self.texts, start=1))

    def to_json(self) -> str:
        """A JSON list of objects that `parse_states` reads back whole."""
        rows = []
        for state in self.states:
            row: dict[str, Any] = {"state": state.text}
            if state.at is not None:
                row["time"] = state.at
            if state.actors:
                row["actors"] = list(state.actors)
            if state.camera:
                row["camera"] = state.camera
            rows.append(row)
        return json.dumps(rows, ensure_ascii=False, indent=1)


# What the model is asked

_PLAIN = (  # aid-states/1
    "The picture is the first frame of a short clip. In the clip this happens: <<instruction>> Write {count} snapshots "
    "of the scene in time order. Snapshot 1 is exactly what the picture shows. Snapshot {count} is right after the "
    "action has finished. Spread the others evenly. "
)
_NEXT = (  # aid-states-next/1
    "The picture is the latest frame of a clip that goes on. In the whole clip this happens: <<instruction>> The part "
    "that comes now is number {part} of {parts}. {before}Write {count} snapshots of this part only, in time order. "
    "Snapshot 1 is exactly what the picture shows. Snapshot {count} is where this part ends. Spread the others evenly. "
)
_RULES = (
    "One sentence each, present tense, at most 25 words. Always name an object with the same words. Say only "
    "positions, contacts, poses and states of objects and hands. Add no object that is not visible or mentioned; do "
    "not talk about the camera. Answer with a JSON list of {count} strings and nothing else."
)
_TIMED_RULES = (
    "Present tense, at most 25 words a sentence. Always name an object with the same words. Add no object that is not "
    "visible or mentioned. Answer with a JSON list of {count} objects and nothing else; each has the keys "
    '"state" (one sentence on positions, contacts, poses and states of objects and hands), "time" (0 for the first '
    'frame, 1 for the last), "actors" (a list of those who move) and "camera" (a few words, empty if it is still).'
)


def states_prompt(instruction: str, count: int = DEFAULT_STATES, detail: Detail = "plain") -> str:
    """What to ask of a vision-language model beside the first frame, template `aid-states/1`.

    detail: "plain" asks for sentences, "timed" for times, actors and camera as well. Raises InstructionError for an
    empty instruction or a count outside 1..32.
    """
    check_count(count)
    return _filled(_PLAIN + _rules(detail), instruction, count=count)


def next_states_prompt(
    instruction: str, count: int, part: int, parts: int, before: str = "", detail: Detail = "plain"
) -> str:
    """What to ask beside the last frame filmed, for part `part` (from 1) of `parts`, template `aid-states-next/1`.

    before: the state that the part before this one should have ended in, "" if not known. Raises InstructionError as
    `states_prompt` does, and for a part that is not in 1..parts.
    """
    check_count(count)
    if not 1 <= part <= parts:
        raise InstructionError(f"Part {part} of {parts} does not exist: count from 1.")
    told = f"The part before should have ended like this: {_quoted(before)} " if before.strip() else ""
    return _filled(_NEXT + _rules(detail), instruction, count=count, part=part, parts=parts, before=told)


def check_count(count: int) -> None:
    """Raises InstructionError unless 1 <= count <= MAX_STATES."""
    if not 1 <= count <= MAX_STATES:
        raise InstructionError(f"There are {count} states: choose a number from 1 to {MAX_STATES}.")


def _rules(detail: Detail) -> str:
    return _TIMED_RULES if detail == "timed" else _RULES


def _filled(template: str, instruction: str, **values: Any) -> str:
    """Braces and quotes leave the instruction first, so that it cannot pass for a placeholder or for JSON."""
    if not _clean(instruction):
        raise InstructionError("The instruction is empty: say what shall happen.")
    return template.format(**values).replace("<<instruction>>", _quoted(instruction))


def _quoted(text: str) -> str:
    return '"' + re.sub(r"[\"{}\u201c\u201d]", "", _clean(text)).rstrip(". ") + '".'


# How the answer is read


def parse_states(answer: str, instruction: str, count: int = DEFAULT_STATES, *, strict: bool = True) -> States:
    """Exactly `count` states out of any text; without a usable answer they are all the instruction, see `fallback`.

    More states than asked for are thinned evenly, first and last kept; fewer are repeated to the nearest. strict: take
    an answer only if it looks like states, with 3 words each, not all alike, and a word of the instruction in one of
    them; False takes any text that is there, for states written by hand. Never raises for an answer; raises
    InstructionError for a count outside 1..32.
    """
    check_count(count)
    text = re.sub(r"(?s)^.*</think>", "", answer)[:_LONGEST_ANSWER].encode("utf-8", "ignore").decode("utf-8")
    found, done = _read(text)
    reason = _fault(found, instruction) if strict else ("" if found else "The answer is empty.")
    if reason:
        return fallback_states(instruction, count, reason)
    last = len(found) - 1
    spread = [found[_nearest(number, last, count - 1)] for number in range(count)]
    return States(instruction, tuple(_timed(spread)), done=done)


def fallback_states(instruction: str, count: int = DEFAULT_STATES, reason: str = "") -> States:
    """The instruction in place of every state. Raises InstructionError for a count outside 1..32."""
    check_count(count)
    state = State(_clean(instruction) or "Nothing changes.")
    return States(instruction, (state,) * count, fallback=True, reason=reason)


def _nearest(number: int, last: int, last_wanted: int) -> int:
    """Which of last + 1 given states stands at place `number` of last_wanted + 1; halves go up."""
    return last if last_wanted == 0 else math.floor(number * last / last_wanted + 0.5)


def _read(text: str) -> tuple[list[State], bool]:
    """All states that a text holds, and whether it says that the instruction is carried out."""
    for value in _json_values(text):
        done = isinstance(value, dict) and value.get("done") is True
        rows = _rows(value)
        states = [state for row in rows if (state := _state(row)) is not None]
        if states:
            return states, done
    if text.lstrip().startswith("```"):
        text = re.sub(r"```\w*", "", text)
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if _MARK.match(line)]
    if len(marked) >= 2:
        lines = marked
    elif len(lines) < 2:
        lines = _SENTENCE.split(text)
    return [state for line in lines if (state := _state(line)) is not None], False


_MARK = re.compile(
    r"\s*(?:[-*\u2022]\s+|\(?\d{1,2}\s*[.):](?!\d)\s*|[*_#\s]*(?:snapshot|state|step|frame)\s*\d{1,2}[*_\s]*[:.)-]\s*)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s*(?=\S)|\n")


def _json_values(text: str) -> Iterator[Any]:
    """JSON lists and objects in a text, outermost first, from left to right."""
    decoder = json.JSONDecoder()
    position = 0
    for _ in range(_MOST_OPENINGS):
        opening = re.compile(r"[\[{]").search(text, position)
        if opening is None:
            return
        try:
            value, position = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):  # not JSON, or brackets in thousands
            position = opening.start() + 1
            continue
        yield value


def _rows(value: Any) -> Sequence[Any]:
    """The list of states in a JSON value: itself, the first list that an object holds, or the object alone."""
    if isinstance(value, list):
        return value
    if _text_of(value) is not None:
        return [value]
    return next((inner for inner in value.values() if isinstance(inner, list)), [])


def _text_of(row: Any) -> str | None:
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        for key in ("state", "text", "description", "snapshot", "caption", "event", "action"):
            if isinstance(row.get(key), str):
                return str(row[key])
    return None


def _state(row: Any) -> State | None:
    """A row of an answer as a state, None if it says nothing."""
    said = _text_of(row)
    mark = _MARK.match(said or "")
    text = _clean((said or "")[mark.end() if mark else 0 :])
    if not re.search(r"\w", text):
        return None
    if not isinstance(row, dict):
        return State(text)
    actors = row.get("actors", [])
    names = [actors] if isinstance(actors, str) else actors if isinstance(actors, list) else []
    camera = row.get("camera")
    return State(
        text,
        _time(next((row[key] for key in ("time", "at", "t") if key in row), None)),
        tuple(name for each in names if isinstance(each, str) and (name := _clean(each))),
        _clean(camera) if isinstance(camera, str) else "",
    )


_NUMBER = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(%|s|sec|seconds)?\s*")


def _time(value: Any) -> float | None:
    """A time as a number that is not negative: 0.5, "0.5", "50%", "2.5 s"."""
    if isinstance(value, str) and (number := _NUMBER.fullmatch(value)):
        value = float(number[1]) / (100 if number[2] == "%" else 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)


def _timed(states: Sequence[State]) -> list[State]:
    """Times as shares of the clip: seconds are divided by the last; times that fall or are missing are all dropped."""
    times = [state.at for state in states]
    said = [at for at in times if at is not None]
    if len(said) < len(times) or any(after < before for before, after in pairwise(said)):
        return [replace(state, at=None) for state in states]
    longest = max(1.0, said[-1])
    return [replace(state, at=at / longest) for state, at in zip(states, said)]


def _clean(text: str) -> str:
    """One line without the characters that only structure an answer."""
    line = " ".join(text.encode("utf-8", "ignore").decode("utf-8").split())
    return line.strip("\"'*_`,; \u201c\u201d")[:_LONGEST_STATE].strip()


# A word is a run of letters and digits, or one character of a script that writes no spaces.
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_COMMON = set(re.findall(r"\w+", """
    a an and are as at be by down from has his her in into is it its of off on onto or out over than that the their then
    this to up was while with
"""))  # fmt: skip


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _fault(states: Sequence[State], instruction: str) -> str:
    """Why an answer cannot be taken for states of the instruction, "" if it can."""
    if len(states) < 2:
        return "The answer holds fewer than two states."
    if short := next((state.text for state in states if len(_words(state.text)) < 3), None):
        return f"A state has fewer than three words: {short[:60]}"
    if len({state.text.casefold() for state in states}) == 1:
        return "All states say the same."
    wanted = set(_words(instruction)) - _COMMON
    if wanted and not any(wanted & set(_words(state.text)) for state in states):
        return "No state mentions anything of the instruction."
    return ""
