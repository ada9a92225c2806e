"""How a storyboard's lines are parsed: text, settings and times. The grammar is in text.py."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

from .shot import (
    MAX_SECONDS,
    MAX_SEED,
    SECONDS_RULE,
    SEED_RULE,
    STARTS,
    TAKE,
    TAKE_RULE,
    StoryboardError,
    check_characters,
    number,
)

__all__ = [
    "KEEP",
    "SETTING",
    "TIME",
    "SettingsLine",
    "column_of",
    "content_of",
    "escape",
    "format_reference",
    "is_separator",
    "near_miss",
    "read_range",
    "setting_spans",
    "settings_content",
    "unescape",
]

_KEYS = ("seconds", "seed", "start", "references", "take")

# What editors and chat programs leave at a line's ends, invisible to whoever wrote it: byte order mark, zero-width
# characters, direction marks, soft hyphen.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_ENDS = (
    _INVISIBLE
    + "".join(map(chr, range(0x21)))
    + "\x7f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
# Signs as East Asian keyboards write them.
_WIDE = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20, 0x3010: 0x5B, 0x3011: 0x5D, 0x3001: 0x2C}
_QUOTES = {"\u201c": "\u201d\u201c", "\u201e": "\u201c\u201d", "\u201d": "\u201d", "\u00ab": "\u00bb"}
"""Typographic opening quotes, and what closes each."""

# Separators, comments, settings and times are recognised on a line without spaces and invisible characters around it.
SETTING = re.compile(rf"({'|'.join(_KEYS)})\s*:", re.ASCII | re.IGNORECASE)
# Wider than a valid time, so that [2,5s] and [3] are reported instead of being filmed as words.
_TIME = r"[-+]?[\d.,:]*\d[\d.,:]*\s*(?:s|sec|secs|seconds?|ms|m|min)?"
TIME = re.compile(
    rf"\[\s*(?P<time>{_TIME})(?:\s*(?:-+>?|[\u2010-\u2015\u2212\u2192\u301c~]|to|until)\s*(?P<end>{_TIME}))?\s*\]",
    re.ASCII | re.IGNORECASE,
)
_NAMED = re.compile(r"([a-z_]+)\s*:", re.ASCII | re.IGNORECASE)
_SECONDS = re.compile(r"(\d+\.?\d*|\.\d+)(?P<unit>\s*(?:s|sec|secs|seconds?))?", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"(?:(?P<hours>\d{1,2}):(?=\d\d:))?(?P<minutes>\d{1,4}):(?P<seconds>[0-5]\d(?:\.\d*)?)", re.ASCII)
_BARE_NAME = re.compile(r'[^",;\x00-\x1f\x7f]+')
KEEP = "or begin the line with a backslash to keep it as words"

_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2500\u2501"
_RULE = re.compile(rf"(?:[{_DASHES}]+|_{{2,}}|\*{{2,}}|={{2,}}|~{{2,}}|\+{{2,}}|[\u2022\u00b7]{{2,}})")
_CLOCK_TIME, _UNIT_TIME = r"\d+:[0-5]\d(?:[.:]\d+)*", r"\d+(?:\.\d+)?\s?(?:s|secs?|seconds?)"
_TIMED_WORDS = re.compile(
    rf"[\[({{<]\s*(?:{_CLOCK_TIME}|{_UNIT_TIME})(?:\s*[\])}}>:,-]|\s|$)|{_CLOCK_TIME}(?:\s|\s*[-:]|$)|{_UNIT_TIME}\s*[:-]\s",
    re.ASCII | re.IGNORECASE,
)
_OTHER_TIME = re.compile(r"\[\s*(?:at|from|after|until|@|t\s*=|f|frame)?\s*\d[^\]]*\]", re.ASCII | re.IGNORECASE)
_SHOT_LABEL = re.compile(
    r"[#*_\[({-]*\s*(?:shot|scene|take|clip|\u955c\u5934)\s*(?:#\s*)?\d+\s*(?:[:.)\]}*_\u2013\u2014-]|$)",
    re.IGNORECASE,
)
_OTHER_SETTING = re.compile(
    rf"[\"'`*_\u201c\u201d\u2018\u2019]*(?:{'|'.join(_KEYS)})[\"'`*_\u201c\u201d\u2018\u2019]*\s*[:=]", re.IGNORECASE
)
_JSON = re.compile(r"""[\[{]\s*(?:["\[{]|$)""")
# What other programs end a line with, and ComfyUI's text field does not: vertical tab, form feed, NEL, LS, PS.
_OTHER_BREAKS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
# Letters and signs without ink that are no format characters: variation selectors, fillers, the empty Braille sign.
_NO_INK = "".join(map(chr, range(0xFE00, 0xFE10))) + "\u115f\u1160\u2800\u3164\uffa0"
_LABEL = re.compile(r"[a-z_]+(?:\s+\d+)?\s*:(?:\s|$|\d)", re.ASCII | re.IGNORECASE)
_SUBTITLE = re.compile(r"(?:\d\d?:)?\d\d:\d\d[.,]\d+\s*-->", re.ASCII)
_SCREENPLAY = re.compile(r"(?:INT|EXT|EST|I/E)(?:\./?(?:INT|EXT)?\.?|/EXT\.?)\s+\S", re.ASCII)
_TABLE_COLUMNS = {"prompt", "text", "seconds", "duration", "seed", "shot", "scene", "description", "start"}


def content_of(line: str) -> str:
    """A line as it is recognised: without spaces and invisible characters around it, with plain signs for wide ones.

    It has a character for each of the line from `column_of` on, so a place in it is a place in the line.
    """
    return line.strip(_ENDS).translate(_WIDE)


def column_of(line: str) -> int:
    """Where a line's content begins, from 1."""
    return len(line) - len(line.lstrip(_ENDS)) + 1


def is_separator(line: str) -> bool:
    """Whether a line ends a shot."""
    return re.fullmatch(r"-{3,}", content_of(line)) is not None


def near_miss(content: str, at_head: bool) -> str | None:
    """What a line of a prompt was probably meant to be, as a sentence that says what to write; None for plain words.

    at_head: no prompt text came before it in its shot, so that a comment `# Shot 2` there is one.
    """
    bare = content.replace(" ", "")
    if _RULE.fullmatch(bare) and (len(bare) > 1 or bare != "-"):
        return f"Shots are separated by a line of three dashes, and this one only looks like it: write ---, {KEEP}."
    if re.match(r"#{2,}\s*\S", content) or (not at_head and content.startswith("#") and _SHOT_LABEL.match(content)):
        return "A heading does not begin a shot: write a line --- above it, and a single # to keep it as a comment."
    if content.startswith("#"):
        return None
    visible = "".join(sign for sign in content if unicodedata.category(sign) != "Cf" and sign not in _NO_INK)
    if visible != content and _is_special(visible, at_head):
        return f"Invisible characters hide what this line is: type it anew, {KEEP}."
    first, *behind = _OTHER_BREAKS.split(content)
    kept = content.startswith("\\")
    if behind and not kept and any(_is_special(content_of(part), at_head) for part in (first, *behind)):
        return f"Another program's line breaks join lines here: begin each on a line of its own, {KEEP}."
    if not kept and re.search(r"\s-{3,}$", content):
        return f"A line of three dashes that separates shots has nothing else on it: write --- by itself, {KEEP}."
    if _SUBTITLE.match(content):
        return f"This is a line of subtitles: write [2.5s] and the words after it, {KEEP}."
    if _SCREENPLAY.match(content):
        return f"This is a screenplay's heading: write a line --- and say the place in words, {KEEP}."
    if content.startswith("```"):
        return f"The fence of a block of code is no part of a storyboard: remove this line, {KEEP}."
    if at_head and _JSON.match(content):
        return f"This is JSON: save it as a .json file for Storyboard From File, {KEEP}."
    if at_head and _OTHER_SETTING.match(content):
        return f"A setting is written as in `seconds: 10`, without quotes or other signs, {KEEP}."
    if _TIMED_WORDS.match(content) or _OTHER_TIME.match(content):
        return f"A time stands alone in square brackets before its words: write [2.5s] and what is seen, {KEEP}."
    if content.startswith("|") or (content.endswith("|") and not kept):
        return f"A bar does not separate shots or prompts: write a line --- or a time such as [2.5s], {KEEP}."
    if _SHOT_LABEL.match(content):
        return f"Shots have no label: separate them by a line --- and write what is seen, {KEEP}."
    columns = [name.strip(' "').lower() for name in re.split(r"[,;\t]", content)]
    if at_head and len(columns) > 1 and all(name in _TABLE_COLUMNS for name in columns):
        return f"This is the head of a table: save it as a .csv file for Storyboard From File, {KEEP}."
    if at_head and _LABEL.match(content):
        word = content.split(":")[0].strip()
        near = difflib.get_close_matches(word.lower(), _KEYS, n=1, cutoff=0.85)
        known = {"sec": "seconds", "secs": "seconds", "duration": "seconds", "length": "seconds", "time": "seconds"}
        meant = near[0] if near else known.get(word.lower())
        advice = f"write `{meant}`" if meant else f"choose from {', '.join(_KEYS)}, say it in the prompt's words"
        return f"There is no setting `{word}`: {advice}, {KEEP}."
    return None


def _is_special(content: str, at_head: bool) -> bool:
    """Whether a line with this content is not prompt text; at_head: no prompt text came before it in its shot."""
    return bool(
        re.fullmatch(r"-{3,}", content)
        or content.startswith("#")
        or SETTING.match(content)
        or TIME.match(content)
        or near_miss(content, at_head)
    )


def _anatomy(line: str) -> tuple[str, str, str]:
    """Indentation, leading backslashes, and the rest of a line."""
    body = line.lstrip(_ENDS)
    rest = body.lstrip("\\")
    return line[: len(line) - len(body)], body[: len(body) - len(rest)], rest


def escape(line: str, at_head: bool) -> str:
    """The way to write a line of a prompt so that it is read as text."""
    indent, slashes, rest = _anatomy(line)
    return f"{indent}\\{slashes}{rest}" if _is_special(content_of(rest), at_head) else line


def unescape(line: str, at_head: bool) -> str:
    """The inverse of escape."""
    indent, slashes, rest = _anatomy(line)
    return f"{indent}{slashes[1:]}{rest}" if slashes and _is_special(content_of(rest), at_head) else line


def format_reference(name: str) -> str:
    """The way to write a reference's name, quoted only where it must be."""
    plain = _BARE_NAME.fullmatch(name) and name.isprintable() and name == name.strip() and name[0] not in _QUOTES
    return name if plain and name.translate(_WIDE) == name else json.dumps(name, ensure_ascii=False)


def settings_content(line: str) -> str:
    """A line of settings with plain signs for wide ones, but for what stands in double quotes."""
    text = line.strip(_ENDS)
    parts = re.split(r'("(?:[^"\\]|\\.)*"?)', text)
    return "".join(part if part.startswith('"') else part.translate(_WIDE) for part in parts)


_QUOTED = r'"(?:[^"\\]|\\.)*"|[\u201c\u201e\u201d][^\u201c\u201d]*[\u201c\u201d]|\u00ab[^\u00bb]*\u00bb'
_SPAN = re.compile(
    rf"(?:^|,)\s*(?P<name>{'|'.join(_KEYS)})\s*:"
    rf"(?P<value>(?:\s*(?:{_QUOTED})?(?:[^,;]|,(?!\s*[a-z_]+\s*:))*;?)*)",
    re.ASCII | re.IGNORECASE,
)


def setting_spans(line: str) -> list[tuple[str, int, int, int]]:
    """Where a line's settings stand, readable or not, in its order: name, then where in the line the setting, its
    value and what is behind it begin. A setting but the first begins with its comma.
    """
    offset = column_of(line) - 1
    return [
        (
            found["name"].lower(),
            offset + found.start(),
            offset + found.end() - len(found["value"].lstrip()),
            offset + found.start("value") + len(found["value"].rstrip()),
        )
        for found in _SPAN.finditer(settings_content(line))
    ]


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
        if name == "take":
            if not TAKE.fullmatch(value.lower()):
                self._fail(f'The take is "{value}", but {TAKE_RULE}.', at)
            return value.lower()
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
        elif closing := _QUOTES.get(self.content[at : at + 1]):
            end = min(
                (self.content.find(sign, at + 1) for sign in closing if sign in self.content[at + 1 :]), default=0
            )
            if not end:
                self._fail("This quoted name cannot be read: close the quote.", at)
            name, self.position = self.content[at + 1 : end], end + 1
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


def read_range(time: re.Match[str], line: int, column: int) -> tuple[float, float | None]:
    """Where a match of TIME begins, and where it says that it ends (None: it does not say), in seconds.

    column: of the match. Raises StoryboardError.
    """
    start, end = time["time"], time["end"]
    if end is None:
        return read_seconds(start, line, column + time.start("time"), bare=False), None
    # In [0-5s] the unit stands once.
    return (
        read_seconds(
            start, line, column + time.start("time"), bare=re.search(r"[a-z]$", end, re.IGNORECASE) is not None
        ),
        read_seconds(end, line, column + time.start("end"), bare=False),
    )
