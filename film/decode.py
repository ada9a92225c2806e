"""Typed reading of JSON that others wrote: each value with its type and bounds, each fault a sentence with its place.

A file from another person, version or disk can hold anything: text where a number belongs, numbers that are infinite or
as long as the file, lists a thousand deep. `parse` reads text within bounds, and `Value` gives what is in it by type;
both raise DecodeError, and whoever reads a kind of file makes of it the error of that kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DecodeError", "Value", "parse", "parse_file", "quoted", "shortened"]

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_ITEMS = 1_000_000
MAX_INTEGER = 2**63 - 1


class DecodeError(ValueError):
    """What is not as it must be; the message is one sentence without its full stop, to be put behind a file's name."""


def parse(text: str | bytes, most: int = MAX_BYTES) -> Value:
    """JSON text, with or without a byte order mark, of at most `most` bytes. Raises DecodeError."""
    if len(text) > most:
        raise DecodeError(f"it has {len(text)} bytes where {most} are the most")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        value = json.loads(decoded, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise DecodeError(f"it is not JSON: {error.msg} in line {error.lineno}") from error
    except UnicodeDecodeError as error:
        raise DecodeError("it is not text in UTF-8") from error
    except RecursionError as error:
        raise DecodeError("its lists are too deep") from error
    except DecodeError:
        raise
    except ValueError as error:
        raise DecodeError("it has a number with too many digits") from error
    _check_depth(value)
    return Value(value)


def parse_file(path: Path, most: int = MAX_BYTES) -> Value:
    """A JSON file. Raises DecodeError, also for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return parse(file.read(most + 1), most)
    except OSError as error:
        raise DecodeError(f"it cannot be read ({error.strerror})") from error


class Value:
    """A JSON value and where it stands, such as `shots[2].meta`."""

    def __init__(self, raw: Any, where: str = "") -> None:
        """raw: as json.loads gives it, within the bounds that `parse` checks."""
        self.raw = raw
        self.where = where

    def __getitem__(self, key: str) -> Value:
        """A field of an object, which must be there."""
        found = self.get(key)
        if found is None:
            raise DecodeError(f"{self._name} has no {quoted(key)}")
        return found

    def get(self, key: str) -> Value | None:
        """A field of an object, None where there is none."""
        fields = self.object()
        return Value(fields[key], f"{self.where}.{key}" if self.where else key) if key in fields else None

    def object(self) -> dict[str, Any]:
        """An object as it is."""
        if not isinstance(self.raw, dict):
            raise self.fault("an object")
        return self.raw

    def fields(self) -> dict[str, Value]:
        """An object's fields."""
        return {key: self[key] for key in self.object()}

    def list(self, most: int = MAX_ITEMS, least: int = 0) -> list[Value]:
        """The items of a list."""
        if not isinstance(self.raw, list) or not least <= len(self.raw) <= most:
            raise self.fault("a list" if least == 0 and most == MAX_ITEMS else f"a list of {_range(least, most)} items")
        return [Value(item, f"{self.where}[{number}]") for number, item in enumerate(self.raw)]

    def integer(self, least: int = 0, most: int = MAX_INTEGER) -> int:
        """A whole number, also where it is written 3.0."""
        found = self.raw
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            raise self.fault(f"a whole number {_range(least, most)}")
        return found

    def number(self, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number."""
        found = self.raw
        if isinstance(found, bool) or not isinstance(found, int | float) or abs(found) > 1e300:
            raise self.fault("a finite number")
        if not least <= found <= most:
            raise self.fault(f"a number {_range(least, most)}")
        return float(found)

    def text(self, most: int = 1_000_000) -> str:
        """Text that every encoding has a form for."""
        if not isinstance(self.raw, str) or len(self.raw) > most or not _encodes(self.raw):
            raise self.fault("text")
        return self.raw

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.raw, bool):
            raise self.fault("true or false")
        return self.raw

    def choice(self, options: Mapping[str, Any] | tuple[str, ...]) -> str:
        """One of some words."""
        if not isinstance(self.raw, str) or self.raw not in options:
            raise self.fault(f"one of {', '.join(options)}")
        return self.raw

    def fault(self, wanted: str) -> DecodeError:
        """What to raise where it is something else than is wanted."""
        return DecodeError(f"{self._name} must be {wanted}, not {_shown(self.raw)}")

    @property
    def _name(self) -> str:
        return shortened(self.where, 200) if self.where else "it"


def quoted(word: object) -> str:
    """A word of a file, as a sentence about it quotes it: as Python writes it, cut where it is long."""
    return shortened(ascii(word), 60)


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, cut where it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _refuse(name: str) -> Any:
    raise DecodeError(f"it has the number {name}, which JSON does not have")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DecodeError(f"it has the number {text[:20]}, which is too large")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise DecodeError(f"its lists are more than {MAX_DEPTH} deep")


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _range(least: float, most: float) -> str:
    if most in (math.inf, MAX_INTEGER, MAX_ITEMS):
        return f"of {least:g} or more"
    return f"from {least:g} to {most:g}"


def _shown(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "nothing"}
    if type(value) in kinds:
        return kinds[type(value)]
    try:
        text = json.dumps(value)
    except ValueError:  # more digits than may be printed
        return "a number of very many digits"
    return text if len(text) <= 40 else f"{text[:37]}..."
