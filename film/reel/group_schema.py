"""What the metadata of a reel's groups must be like: a file from elsewhere is checked when it is opened.

Only what is there is checked, since versions and engines write more or less of it; what is missing is noticed by
whoever needs it (groups.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..decode import Value

__all__ = ["check_groups"]

Check = Callable[[Value], object]

# Frames of before a film, such as the blank pictures of a first take, count downwards.
_LEAST = -(10**9)


def check_groups(meta: Value) -> None:
    """Raises DecodeError for metadata that no version has written. Groups of unknown names are let through."""
    _fields(_GROUPS)(Value({name: group for name, group in meta.object().items() if group is not None}, meta.where))


def _fields(checks: Mapping[str, Check]) -> Check:
    """An object whose fields of these names, where they are there, are as they must be."""

    def check(value: Value) -> None:
        for name in checks.keys() & value.object().keys():
            checks[name](value[name])

    return check


def _list(check: Check) -> Check:
    def check_list(value: Value) -> None:
        for item in value.list():
            check(item)

    return check_list


def _or_nothing(check: Check) -> Check:
    return lambda value: None if value.raw is None else check(value)


def _frame(value: Value) -> None:
    value.integer(_LEAST)


def _by_frame(value: Value) -> None:
    for frame, number in value.fields().items():
        if not re.fullmatch(r"-?[0-9]{1,12}", frame):
            raise value.fault("numbers by latent frame")
        number.number()


def _at_least_one(value: Value) -> None:
    value.integer(1)


def _lead(value: Value) -> None:
    value.integer(0, 10**6)


_COUNT, _TEXT, _FLAG = Value.integer, Value.text, Value.flag
_FRAMES = _list(_frame)
_BANK: dict[str, Check] = {
    "recorded": _or_nothing(_frame),
    "pending": _or_nothing(_frame),
    "pending_is_new": _FLAG,
    "filled": _COUNT,
    "pinned": _FRAMES,
}
_MEMORY: dict[str, Check] = {
    "position": _COUNT,
    "frames_per_block": _COUNT,
    "ring_start": _COUNT,
    "ring_count": _COUNT,
    "layout": _fields({"tokens": _at_least_one}),
    "settings": _fields({"record": _TEXT}),
    "text_known": _FLAG,
    "sink": _FRAMES,
    "take": _frame,
    "origin": _frame,
    "bank": _or_nothing(_fields(_BANK)),
}
_BLOCK: dict[str, Check] = {
    "position": _COUNT,
    "sink": _FRAMES,
    "window": _FRAMES,
    "bank": _list(_FRAMES),
    "scores": _list(_by_frame),
    "picks": _list(_by_frame),
}
_KEYFRAME: dict[str, Check] = {
    "uid": _TEXT,
    "shot": _frame,
    "frame": _frame,
    "quality": Value.number,
    "source": lambda value: value.choice(("generated", "user")),
    "noise_seed": lambda value: value.integer(_LEAST, 2**64),
    "pinned": _FLAG,
    "banned": _FLAG,
    "characters": _list(_TEXT),
}
_CACHE: dict[str, Check] = {
    "vae": _TEXT,
    "clip": _TEXT,
    "shot": _frame,
    "chunk": _frame,
    "latents": _frame,
    "covers": _FRAMES,
    "removed": _list(_TEXT),
    "bank": _list(_fields(_KEYFRAME)),
}
_GROUPS: dict[str, Check] = {
    "memory": _fields(_MEMORY),
    "memory_log": _list(_fields(_BLOCK)),
    "memory_edit": _fields({"pin": _FRAMES, "ban": _FRAMES}),
    "cache": _fields(_CACHE),
    "told": _list(_list(_TEXT)),
    "states": _list(_list(_TEXT)),
    "transition": _fields({"lead": _lead}),
}
