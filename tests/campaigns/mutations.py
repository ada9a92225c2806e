"""Hostile variants of a good file: what bad disks, other versions, other tools and bad people make of it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

HOSTILE: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None,
    lambda rng: "",
    lambda rng: "x" * rng.choice([1, 300, 70_000]),
    lambda rng: "../" * 40 + "etc/passwd",
    lambda rng: "\ud800",
    lambda rng: rng.choice([0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 10**400]),
    lambda rng: rng.choice([0.5, -0.0, 1e308, -1e308, 1e-320]),
    lambda rng: float(rng.choice(["nan", "inf", "-inf"])),
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([[], {}, [[]], [{}], {"": ""}]),
    lambda rng: [0] * rng.choice([1, 3, 17, 2000]),
    lambda rng: _nested(rng.choice([3, 70, 200])),
)


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    found = [path]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        found += places(item, (*path, key))
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three faults."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(value))
        if not path:
            if rng.random() < 0.1:
                return rng.choice(HOSTILE)(rng)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key, kind = path[-1], rng.random()
        if kind < 0.6:
            holder[key] = rng.choice(HOSTILE)(rng)
        elif kind < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        else:
            holder[rng.choice(["", "a", "version", "shots"])] = holder.pop(key)
    return value


def text_of(value: Any) -> str:
    """As JSON, or what passes for it with some parsers."""
    return json.dumps(value)


def broken(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one fault: a flipped bit, a cut, a piece that is lost, doubled or foreign."""
    if not data:
        return data
    at = rng.randrange(len(data))
    piece = rng.randrange(1, 40)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + piece :]
    if kind == 3:
        return data[:at] + data[at : at + piece] + data[at:]
    if kind == 4:
        return data[:at] + rng.randbytes(piece) + data[at + piece :]
    return data[:at] + rng.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"<html>", b"\0" * 64]) + data[at:]
