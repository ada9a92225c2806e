"""Storyboards: what a person writes, and the value it stands for.

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
  `seconds`: a number, `5s` or `m:ss`; 5 if not given. `seed`: 0 to 2**64 - 1; if not given, 0 in the first shot and the
  seed of the shot before plus 1 in a later one. `start`: `cut` (if not given) or `continue`. `references`: names
  separated by semicolons; a name with a comma, semicolon, quote or tab stands in double quotes, escaped as in JSON.
- A time is `[2.5s]`, `[0:02.5]` or `[1:00:02.5]`, counted from the shot's start. Times rise and stay below the shot's
  length. The first prompt starts at 0 and needs no time. What follows a time on its line is text, whatever it is.
- A line of a prompt that would be read as something else (separator, comment, setting, time, or, as a shot's first
  line, a misspelt setting) begins with a backslash, which is then removed. A backslash before any other line is kept,
  so `\\(as is\\)` stays as it is.

`parse_storyboard(format_storyboard(value)) == value` for every value, and formatting is canonical: equal values give
the same text. Comments, spacing and the difference between a default and its absence are not part of the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from .grammar import (
    KEEP,
    SETTING,
    TIME,
    SettingsLine,
    escape,
    format_reference,
    is_separator,
    misspelt,
    read_seconds,
    unescape,
)
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
    next_seed,
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
    "next_seed",
    "parse_shot",
    "parse_storyboard",
    "read_storyboards",
    "to_json",
]

_EMPTY = "The storyboard is empty: write at least one line that says what is seen."


def format_storyboard(storyboard: Storyboard) -> str:
    """The canonical text of a storyboard, without a line end at its end; parse_storyboard gives an equal value back."""
    texts: list[str] = []
    seed = 0
    for shot in storyboard.shots:
        texts.append(_format(shot, seed))
        seed = next_seed(shot.seed)
    return "\n---\n".join(texts)


def format_shot(shot: Shot) -> str:
    """The canonical text of one shot alone; parse_shot gives an equal value back."""
    return _format(shot, 0)


def _format(shot: Shot, default_seed: int) -> str:
    settings = [f"seconds: {number(shot.seconds)}"]
    if shot.seed != default_seed:
        settings.append(f"seed: {shot.seed}")
    if shot.start != "cut":
        settings.append(f"start: {shot.start}")
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

    Raises StoryboardError with line and column.
    """
    lines = _numbered_lines(text)
    if all(not line.strip() or _is_comment(line) for _, line in lines):
        raise StoryboardError(_EMPTY, 1, 1)
    shots: list[Shot] = []
    pending: list[tuple[int, str]] = []
    seed, begins = 0, 1
    for at_line, line in [*lines, (len(lines) + 1, "---")]:
        if not is_separator(line):
            pending.append((at_line, line))
            continue
        shots.append(_ShotReader(begins).read(pending, seed))
        seed = next_seed(shots[-1].seed)
        pending, begins = [], at_line
    return Storyboard(tuple(shots))


def parse_shot(text: str) -> Shot:
    """The one shot written in `text`, in a storyboard's grammar. Raises StoryboardError with line and column."""
    lines = _numbered_lines(text)
    for at_line, line in lines:
        if is_separator(line):
            raise StoryboardError(
                "A line of dashes begins another shot, but this text holds one: remove it, or use a storyboard.",
                at_line,
                _column(line),
            )
    return _ShotReader(1).read(lines, 0)


def read_storyboards(path: Path, seconds_per_prompt: float = DEFAULT_SECONDS) -> tuple[Storyboard, ...]:
    """The stories of a file: .jsonl holds one on each line, .json one, any other name one in a storyboard's grammar.

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
    return (from_json(text) if suffix == ".json" else parse_storyboard(text),)


def _numbered_lines(text: str) -> list[tuple[int, str]]:
    # Not splitlines(), which also splits at characters that a prompt may hold.
    return list(enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1))


def _column(line: str) -> int:
    return len(line) - len(line.lstrip()) + 1


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


@dataclass
class _OpenPrompt:
    at: float
    line: int
    column: int
    texts: list[str]


@dataclass
class _ShotReader:
    """Reads the lines of one shot. begins: the line to name when the shot turns out to be empty."""

    begins: int
    settings: dict[str, object] = field(default_factory=dict)
    prompts: list[_OpenPrompt] = field(default_factory=list)

    def read(self, lines: Iterable[tuple[int, str]], default_seed: int) -> Shot:
        for at_line, line in lines:
            if not _is_comment(line):
                self._read_line(at_line, line)
        if not self.prompts:
            raise StoryboardError(
                "This shot has no prompt: write what is seen, or remove the line of dashes.", self.begins, 1
            )
        seconds = cast(float, self.settings.get("seconds", DEFAULT_SECONDS))
        if fault := fault_in_times([prompt.at for prompt in self.prompts], seconds):
            place = self.prompts[fault[0]]
            raise StoryboardError(fault[1], place.line, place.column)
        return Shot(
            prompts=tuple(self._close(prompt) for prompt in self.prompts),
            seconds=seconds,
            seed=cast(int, self.settings.get("seed", default_seed)),
            start=cast(Start, self.settings.get("start", "cut")),
            references=cast("tuple[str, ...]", self.settings.get("references", ())),
        )

    def _read_line(self, at_line: int, line: str) -> None:
        content, column = line.strip(), _column(line)
        if SETTING.match(content):
            if self.prompts:
                message = f"Settings stand above the prompt: move this line to the head of its shot, {KEEP}."
                raise StoryboardError(message, at_line, column)
            SettingsLine(content, at_line, column).read_into(self.settings)
        elif time := TIME.match(content):
            at = read_seconds(time["time"], at_line, column + time.start("time"), bare=False)
            self.prompts.append(_OpenPrompt(at, at_line, column, [line[column - 1 + time.end() :]]))
        elif self.prompts:
            self.prompts[-1].texts.append(unescape(line, at_head=False))
        elif content:
            if near := misspelt(content):
                message = f"There is no setting `{near[0]}`: write `{near[1]}`, {KEEP}."
                raise StoryboardError(message, at_line, column)
            self.prompts.append(_OpenPrompt(0.0, at_line, column, [unescape(line, at_head=True)]))

    @staticmethod
    def _close(prompt: _OpenPrompt) -> TimedPrompt:
        text = "\n".join(prompt.texts)
        if not text.strip():
            message = "No prompt follows this time: write what is seen from here on, or remove it."
            raise StoryboardError(message, prompt.line, prompt.column)
        try:
            return TimedPrompt(prompt.at, text)
        except StoryboardError as error:
            raise StoryboardError(error.message, prompt.line, prompt.column) from None
