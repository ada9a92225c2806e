"""Storyboards: the text a user writes, and its value.

A storyboard is plain text. Shots are separated by a line `---`; a shot may begin with settings; the rest is its prompt,
and a line that begins with a time changes the prompt inside the shot:

    seconds: 10, seed: 3
    # Lines that begin with a number sign are comments.
    A red robot walks through the forest.
    It is early morning.
    [4.5s] The robot stops and looks up.
    ---
    seconds: 5, start: continue, references: robot.png; "a forest, at dawn.png"
    The robot walks on.

Rules, complete:

- Lines end with LF, CRLF or CR. Spaces around a prompt and blank lines before and after it do not count; blank lines
  inside it do. A line of three dashes or more separates shots.
- Settings stand above the prompt, several on a line with commas between them, on one line or more:
  `seconds`: a number, `5s` or `m:ss`; 5 if not given. `seed`: 0 to 2**64 - 1; if not given, how many shots stand
  before it, so that another seed for one shot changes that of no other. `start`: `cut` (if not given) or `continue`.
  `references`: names separated by semicolons; a name with a comma, semicolon, quote or tab stands in double
  quotes, escaped as in JSON. `take`: the fingerprint, or 8 digits or more of its beginning, of a finished take.
- A time is `[2.5s]`, `[0:02.5]` or `[1:00:02.5]`, counted from the shot's start, or a range `[0:10-0:20]`, which must
  end where the next prompt or the shot's end is. Times rise and stay below the shot's length. The first prompt starts
  at 0 and needs no time. What follows a time on its line is text, whatever it is.
- Wide signs of East Asian keyboards are read as plain ones in separators, settings and times; invisible characters at a
  line's ends do not count for what it is.
- What only looks like a separator, setting, time or heading is not filmed as words but refused (grammar.near_miss).
- A line of a prompt that would be read or refused as something else begins with a backslash, which is then removed. A
  backslash before any other line is kept, so `\\(as is\\)` stays as it is.

`parse_storyboard(format_storyboard(value)) == value` for every value, and formatting is canonical: equal values give
the same text. Comments, spacing and the difference between a default and its absence are not part of the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from .grammar import (
    KEEP,
    SETTING,
    TIME,
    SettingsLine,
    column_of,
    content_of,
    escape,
    format_reference,
    is_separator,
    near_miss,
    read_range,
    settings_content,
    unescape,
)
from .imports import from_csv, from_fountain
from .json_form import from_json, from_jsonl, to_json
from .shot import (
    DEFAULT_SECONDS,
    MAX_SECONDS,
    MAX_SEED,
    STARTS,
    Shot,
    Start,
    Storyboard,
    StoryboardError,
    TimedPrompt,
    fault_in_times,
    number,
)

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
    "format_shot",
    "format_storyboard",
    "from_json",
    "from_jsonl",
    "parse_shot",
    "parse_storyboard",
    "read_shot",
    "read_storyboards",
    "storyboard_faults",
    "to_json",
]

_EMPTY = "The storyboard is empty: write at least one line that says what is seen."


def format_storyboard(storyboard: Storyboard) -> str:
    """The canonical text of a storyboard, without a line end at its end; parse_storyboard gives an equal value back."""
    return "\n---\n".join(_format(shot, index) for index, shot in enumerate(storyboard.shots))


def format_shot(shot: Shot) -> str:
    """The canonical text of one shot alone; parse_shot gives an equal value back."""
    return _format(shot, 0)


def _format(shot: Shot, default_seed: int) -> str:
    settings = [f"seconds: {number(shot.seconds)}"]
    if shot.seed != default_seed:
        settings.append(f"seed: {shot.seed}")
    if shot.start != "cut":
        settings.append(f"start: {shot.start}")
    if shot.take:
        settings.append(f"take: {shot.take}")
    if shot.references:
        settings.append("references: " + "; ".join(format_reference(name) for name in shot.references))
    lines = [", ".join(settings)]
    first, *later = shot.prompts
    lines.extend(escape(line, at_head=i == 0) for i, line in enumerate(first.text.split("\n")))
    for prompt in later:
        opening, *rest = prompt.text.split("\n")
        lines.append(f"[{number(prompt.at)}s] {opening}")
        lines.extend(escape(line, at_head=False) for line in rest)
    return "\n".join(lines)


def parse_storyboard(text: str) -> Storyboard:
    """The storyboard written in `text`; the grammar is in the module's docstring.

    Raises StoryboardError with line and column: the first of `storyboard_faults`.
    """
    shots, faults = _parse(text)
    if faults:
        raise min(faults, key=lambda fault: (fault.line or 0, fault.column or 0))
    return Storyboard(tuple(shots))


def storyboard_faults(text: str) -> tuple[StoryboardError, ...]:
    """Everything in `text` that cannot be read, in the order of its lines; empty where parse_storyboard succeeds."""
    return tuple(sorted(_parse(text)[1], key=lambda fault: (fault.line or 0, fault.column or 0)))


def _parse(text: str) -> tuple[list[Shot], list[StoryboardError]]:
    lines = _numbered_lines(text)
    faults: list[StoryboardError] = []
    if all(not line.strip() or (_is_comment(line) and not near_miss(content_of(line), True)) for _, line in lines):
        return [], [StoryboardError(_EMPTY, 1, 1)]
    shots: list[Shot] = []
    pending: list[tuple[int, str]] = []
    index, begins = 0, 1
    for at_line, line in [*lines, (len(lines) + 1, "---")]:
        if not is_separator(line):
            pending.append((at_line, line))
            continue
        shot = _ShotReader(begins, faults).read(pending, index)
        if shot is not None:
            shots.append(shot)
        pending, index, begins = [], index + 1, at_line
    return shots, faults


def read_shot(lines: Iterable[str], default_seed: int) -> Shot | None:
    """The shot of these lines, which hold no separator; None where one of them cannot be read.

    default_seed: its seed if they state none, which is how many shots stand before it.
    """
    return _ShotReader(1, []).read(enumerate(lines, start=1), default_seed)


def parse_shot(text: str) -> Shot:
    """The one shot written in `text`, in a storyboard's grammar. Raises StoryboardError with line and column."""
    lines = _numbered_lines(text)
    for at_line, line in lines:
        if is_separator(line):
            raise StoryboardError(
                "A line of dashes begins another shot, but this text holds one: remove it, or use a storyboard.",
                at_line,
                column_of(line),
            )
    faults: list[StoryboardError] = []
    shot = _ShotReader(1, faults).read(lines, 0)
    if shot is None:
        raise faults[0]
    return shot


def read_storyboards(path: Path, seconds_per_prompt: float = DEFAULT_SECONDS) -> tuple[Storyboard, ...]:
    """The stories of a file: .jsonl holds one on each line, .json one, .csv a table of its shots, .fountain a
    screenplay, any other name one in a storyboard's grammar.

    seconds_per_prompt: length of the shots of a .jsonl file, which states none.
    Raises StoryboardError, also where the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StoryboardError(f"The storyboard file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StoryboardError(f"The storyboard file {path} is not UTF-8 text: save it as UTF-8.") from error
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return from_jsonl(text, seconds_per_prompt)
    readers = {".json": from_json, ".csv": from_csv, ".fountain": from_fountain}
    return (readers.get(suffix, parse_storyboard)(text),)


def _numbered_lines(text: str) -> list[tuple[int, str]]:
    # Not splitlines(), which also splits at characters that a prompt may hold.
    return list(enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1))


def _is_comment(line: str) -> bool:
    return content_of(line).startswith("#")


@dataclass
class _OpenPrompt:
    at: float
    line: int
    column: int
    texts: list[str]
    until: float | None = None


@dataclass
class _ShotReader:
    """Reads the lines of one shot. begins: the line to name when the shot turns out to be empty; faults: takes what
    cannot be read.
    """

    begins: int
    faults: list[StoryboardError]
    settings: dict[str, object] = field(default_factory=dict)
    prompts: list[_OpenPrompt] = field(default_factory=list)

    def read(self, lines: Iterable[tuple[int, str]], default_seed: int) -> Shot | None:
        """The shot; None where a fault was found in it."""
        found = len(self.faults)
        for at_line, line in lines:
            try:
                self._read_line(at_line, line)
            except StoryboardError as error:
                self.faults.append(error)
        if not self.prompts and len(self.faults) == found:
            message = "This shot has no prompt: write what is seen, or remove the line of dashes."
            self.faults.append(StoryboardError(message, self.begins, 1))
        seconds = cast(float, self.settings.get("seconds", DEFAULT_SECONDS))
        if len(self.faults) == found:
            self.faults.extend(self._faults_in_times(seconds))
        closed = [self._close(prompt) for prompt in self.prompts]
        if len(self.faults) > found:
            return None
        return Shot(
            prompts=tuple(prompt for prompt in closed if prompt),
            seconds=seconds,
            seed=cast(int, self.settings.get("seed", default_seed)),
            start=cast(Start, self.settings.get("start", "cut")),
            references=cast("tuple[str, ...]", self.settings.get("references", ())),
            take=cast(str, self.settings.get("take", "")),
        )

    def _read_line(self, at_line: int, line: str) -> None:
        content, column, at_head = content_of(line), column_of(line), not self.prompts
        if SETTING.match(content):
            if not at_head:
                message = f"Settings stand above the prompt: move this line to the head of its shot, {KEEP}."
                raise StoryboardError(message, at_line, column)
            SettingsLine(settings_content(line), at_line, column).read_into(self.settings)
        elif time := TIME.match(content):
            at, until = read_range(time, at_line, column)
            self.prompts.append(_OpenPrompt(at, at_line, column, [line[column - 1 + time.end() :]], until))
        elif fault := near_miss(content, at_head):
            raise StoryboardError(fault, at_line, column)
        elif _is_comment(line):
            pass
        elif not at_head:
            self.prompts[-1].texts.append(unescape(line, at_head=False))
        elif line.strip():
            self.prompts.append(_OpenPrompt(0.0, at_line, column, [unescape(line, at_head=True)]))

    def _faults_in_times(self, seconds: float) -> Iterator[StoryboardError]:
        if fault := fault_in_times([prompt.at for prompt in self.prompts], seconds):
            place = self.prompts[fault[0]]
            yield StoryboardError(fault[1], place.line, place.column)
            return
        ends = [prompt.at for prompt in self.prompts[1:]] + [seconds]
        for prompt, end in zip(self.prompts, ends):
            if prompt.until is not None and abs(prompt.until - end) > 1e-6:
                what = "the next prompt starts" if end < seconds else "the shot ends"
                message = f"This range ends at {number(prompt.until)} s but {what} at {number(end)} s: make them agree."
                yield StoryboardError(message, prompt.line, prompt.column)

    def _close(self, prompt: _OpenPrompt) -> TimedPrompt | None:
        text = "\n".join(prompt.texts)
        try:
            if not text.strip():
                raise StoryboardError("No prompt follows this time: write what is seen from here on, or remove it.")
            return TimedPrompt(prompt.at, text)
        except StoryboardError as error:
            self.faults.append(StoryboardError(error.message, prompt.line, prompt.column))
            return None
