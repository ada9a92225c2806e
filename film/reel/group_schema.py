"""What the metadata of a reel's groups must be like: a file from elsewhere is checked when it is opened."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..decode import Value

__all__ = ["check_groups"]

# Frames of before a film, such as the blank pictures of a first take, count downwards.
_LEAST = -(10**9)


def check_groups(meta: Value) -> None:
    """Raises DecodeError for metadata that no version has written. Groups of unknown names are let through."""
    for name, group in meta.fields().items():
        if name in _CHECKS and group.raw is not None:
            _CHECKS[name](group)


def _memory(meta: Value) -> None:
    meta["position"].integer()
    version = meta.get("format")
    if version is None or version.raw != 1:
        return  # of another version, which is refused when it is restored
    for name in ("frames_per_block", "ring_start", "ring_count"):
        meta[name].integer()
    for name in ("layout", "settings"):
        meta[name].object()
    meta["settings"]["record"].text()
    meta["layout"]["tokens"].integer(1)
    meta["text_known"].flag()
    _frames(meta["sink"])
    bank = meta["bank"]
    if bank.raw is None:
        return
    for name in ("recorded", "pending"):
        if bank[name].raw is not None:
            bank[name].integer(_LEAST)
    bank["pending_is_new"].flag()
    bank["filled"].integer()
    if pinned := bank.get("pinned"):
        _frames(pinned)


def _log(meta: Value) -> None:
    for block in meta.list():
        block["position"].integer()
        for name in ("sink", "window"):
            _frames(block[name])
        for layer in block["bank"].list():
            _frames(layer)
        for name in ("scores", "picks"):
            for layer in block[name].list():
                for frame, value in layer.fields().items():
                    if not re.fullmatch(r"-?[0-9]{1,12}", frame):
                        raise layer.fault("numbers by latent frame")
                    value.number()


def _pins(meta: Value) -> None:
    _frames(meta["pin"])
    _frames(meta["ban"])


def _keyframes(meta: Value) -> None:
    for name in ("vae", "clip"):
        meta[name].text()
    for name in ("shot", "chunk", "latents"):
        meta[name].integer(_LEAST)
    if covers := meta.get("covers"):
        _frames(covers)
    for uid in meta["removed"].list():
        uid.text()
    for entry in meta["bank"].list():
        entry["uid"].text(200)
        entry["shot"].integer(_LEAST)
        entry["frame"].integer(_LEAST)
        entry["quality"].number()
        entry["source"].choice(("generated", "user"))
        entry["noise_seed"].integer(-(2**63), 2**64)
        for name in ("pinned", "banned"):
            entry[name].flag()
        for who in entry["characters"].list():
            who.text()


def _texts(meta: Value) -> None:
    for chunk in meta.list():
        for text in chunk.list():
            text.text()


def _transition(meta: Value) -> None:
    if lead := meta.get("lead"):
        lead.integer(0, 10**6)


def _frames(numbers: Value) -> None:
    for number in numbers.list():
        number.integer(_LEAST)


_CHECKS: dict[str, Callable[[Value], None]] = {
    "memory": _memory,
    "memory_log": _log,
    "memory_edit": _pins,
    "cache": _keyframes,
    "told": _texts,
    "states": _texts,
    "transition": _transition,
}
