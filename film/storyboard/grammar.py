"""How a storyboard's lines are parsed: text, settings and times. The grammar is in storyboard.py."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

from .shot import MAX_SECONDS, MAX_SEED, SECONDS_RULE, SEED_RULE, STARTS, StoryboardError, check_characters, number

__all__ = [
    "KEEP",
    "SETTING",
    "TIME",
    "SettingsLine",
    "escape",
    "format_reference",
    "is_separator",
    "misspelt",
    "read_seconds",
    "unescape",
]

_KEYS = ("seconds", "seed", "start", "references")

# Separators, comments, settings and times are recognised on a line without the spaces around it.
SETTING = re.compile(rf"({'|'.join(_KEYS)})\s*:", re.ASCII | re.IGNORECASE)
# Wider than a valid time, so that [2,5s] and [3] are reported instead of being filmed as words.
TIME = re.compile(
    r"\[\s*(?P<time>[-+]?[\d.,:]*\d[\d.,:]*\s*(?:s|sec|secs|seconds?|ms|m|min)?)\s*\]", re.ASCII | re.IGNORECASE
)
_NAMED = re.compile(r"([a-z_]+)\s*:", re.ASCII | re.IGNORECASE)
_SECONDS = re.compile(r"(\d+\.?\d*|\.\d+)(?P<unit>\s*(?:s|sec|secs|seconds?))?", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"(?:(?P<hours>\d{1,2}):(?=\d\d:))?(?P<minutes>\d{1,4}):(?P<seconds>[0-5]\d(?:\.\d*)?)", re.ASCII)
_BARE_NAME = re.compile(r'[^",;\x00-\x1f\x7f]+')
KEEP = "or begin the line with a backslash to keep it as words"


def is_separator(line: str) -> bool:
    """Whether a line ends a shot."""
    return re.fullmatch(r"-{3,}", line.strip()) is not None


def misspelt(content: str) -> tuple[str, str] | None:
    """The word before a colon and the setting it was probably meant to be."""
    match = _NAMED.match(content)
    if match is None or match[1].lower() in _KEYS:
        return None
    near = difflib.get_close_matches(match[1].lower(), _KEYS, n=1, cutoff=0.85)
    return (match[1], near[0]) if near else None


def _is_special(content: str, at_head: bool) -> bool:
    """Whether a line with this content is not prompt text; at_head: no prompt text came before it in its shot."""
    return bool(
        is_separator(content)
        or content.startswith("#")
        or SETTING.match(content)
        or TIME.match(content)
        or (at_head and misspelt(content))
    )


def _anatomy(line: str) -> tuple[str, str, str]:
    """Indentation, leading backslashes, and the rest of a line."""
    body = line.lstrip()
    rest = body.lstrip("\\")
    return line[: len(line) - len(body)], body[: len(body) - len(rest)], rest


def escape(line: str, at_head: bool) -> str:
    """The way to write a line of a prompt so that it is read as text."""
    indent, slashes, rest = _anatomy(line)
    return f"{indent}\\{slashes}{rest}" if _is_special(rest.rstrip(), at_head) else line


def unescape(line: str, at_head: bool) -> str:
    """The inverse of escape."""
    indent, slashes, rest = _anatomy(line)
    return f"{indent}{slashes[1:]}{rest}" if slashes and _is_special(rest.rstrip(), at_head) else line


def format_reference(name: str) -> str:
    """The way to write a reference's name, quoted only where it must be."""
    return name if _BARE_NAME.fullmatch(name) and name == name.strip() else json.dumps(name, ensure_ascii=False)


@dataclass
class SettingsLine:
    """Reads `name: value, name: value` from a line without the spaces around it; column: where that begins."""

    content: str
    line: int
    column: int
    position: int = 0

    def read_into(self, settings: dict[str, object]) -> None:
        """Adds the line's settings to those of the lines above it."""
        while True:
            start = self.position
            name = self._name()
            if name in settings:
                self._fail(f"`{name}` is set twice: remove one of them.", start)
            settings[name] = self._references() if name == "references" else self._value(name)
            if self.position == len(self.content):
                return
            self.position += 1  # the comma
            self._skip_spaces()

    def _fail(self, message: str, position: int) -> NoReturn:
        raise StoryboardError(message, self.line, self.column + position)

    def _skip_spaces(self) -> None:
        rest = self.content[self.position :]
        self.position += len(rest) - len(rest.lstrip())

    def _name(self) -> str:
        match = _NAMED.match(self.content, self.position)
        if match is None:
            self._fail(
                "A setting such as `seed: 3` is expected here: references are separated by semicolons, and a name "
                "with a comma in it stands in double quotes.",
                self.position,
            )
        if match[1].lower() not in _KEYS:
            self._fail(f"There is no setting `{match[1]}`: choose from {', '.join(_KEYS)}.", self.position)
        self.position = match.end()
        self._skip_spaces()
        return match[1].lower()

    def _value(self, name: str) -> object:
        at = self.position
        comma = self.content.find(",", at)
        self.position = len(self.content) if comma < 0 else comma
        value = self.content[at : self.position].strip()
        if name == "seconds":
            seconds = read_seconds(value, self.line, self.column + at, bare=True)
            if not 0 < seconds <= MAX_SECONDS:
                self._fail(f"The shot lasts {number(seconds)} s, but {SECONDS_RULE}.", at)
            return seconds
        if name == "seed":
            if not re.fullmatch(r"\d{1,20}", value, re.ASCII) or int(value) > MAX_SEED:
                self._fail(f'The seed is "{value}", but {SEED_RULE}.', at)
            return int(value)
        if value not in STARTS:
            self._fail(f'The shot\'s start is "{value}": choose cut or continue.', at)
        return value

    def _references(self) -> tuple[str, ...]:
        names: list[str] = []
        while True:
            names.append(self._reference())
            if self.content[self.position : self.position + 1] != ";":
                return tuple(names)
            self.position += 1
            self._skip_spaces()

    def _reference(self) -> str:
        at = self.position
        if self.content.startswith('"', at):
            try:
                name, self.position = json.JSONDecoder().raw_decode(self.content, at)
            except ValueError:
                self._fail("This quoted name cannot be read: close the quote and write backslashes twice.", at)
            self._skip_spaces()
            if self.content[self.position : self.position + 1] not in ("", ",", ";"):
                self._fail("A comma or a semicolon is expected after a quoted name.", self.position)
        else:
            match = _BARE_NAME.match(self.content, at)
            name = match[0].strip() if match else ""
            self.position = match.end() if match else at
            if self.content[self.position : self.position + 1] not in ("", ",", ";"):
                self._fail("A name with a quote or a tab in it stands in double quotes, escaped as in JSON.", at)
        if not name.strip():
            self._fail("A reference has no name: give the name of a picture or remove it.", at)
        try:
            check_characters(name)
        except StoryboardError as error:
            self._fail(error.message, at)
        return str(name)


def read_seconds(text: str, line: int, column: int, bare: bool) -> float:
    """A time in seconds; bare: a number without a unit is one."""
    plain = _SECONDS.fullmatch(text)
    if plain and (bare or plain["unit"]):
        return float(plain[1])
    clock = _CLOCK.fullmatch(text)
    if clock:
        return float(Decimal(clock["hours"] or 0) * 3600 + Decimal(clock["minutes"]) * 60 + Decimal(clock["seconds"]))
    if bare:
        raise StoryboardError(f'"{text}" is not a length of time: write seconds such as 2.5, or 0:02.5.', line, column)
    raise StoryboardError(f'"{text}" is not a time: write [2.5s] or [0:02.5], {KEEP}.', line, column)
