"""How long this machine takes to film: measured figures, kept in ComfyUI's user folder.

Of every way to film (models, sizes, steps) the file keeps what the last few shots took for each step. Nothing is
estimated from anything else: what was not filmed here yet is unknown.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths

from ..film.reel.atomic import whole_file
from ..film.reel.fingerprint import canonical_json

__all__ = ["device_name", "record", "seconds_per_step"]

_LAST = 5
"""Shots whose figures are kept: their median forgives one that loaded the models or shared the machine."""


def device_name() -> str:
    """The device that films, as its driver calls it."""
    return str(comfy.model_management.get_torch_device_name(comfy.model_management.get_torch_device()))


def record(settings: Mapping[str, Any], steps: int, seconds: float) -> None:
    """Note that filming so many steps took so long. settings: an engine's, without a picture.

    A figure that cannot be written is lost; the film goes on.
    """
    if steps < 1:
        return
    path, figures = _file(), _read()
    key = _key(settings)
    figures[key] = [*figures.get(key, [])[1 - _LAST :], seconds / steps]
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, unique=True) as part:
            part.write_text(json.dumps(figures, indent=1), encoding="ascii")


def seconds_per_step(settings: Mapping[str, Any]) -> float | None:
    """What a step took on this machine, the median of the last shots; None where none was filmed so."""
    figures = _read().get(_key(settings))
    return statistics.median(figures) if figures else None


def _key(settings: Mapping[str, Any]) -> str:
    content = canonical_json({"device": device_name(), "settings": dict(settings)})
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:32]


def _file() -> Path:
    return Path(folder_paths.get_user_directory()) / "longreel" / "figures.json"


def _read() -> dict[str, list[float]]:
    with suppress(OSError, ValueError):
        figures = json.loads(_file().read_text(encoding="ascii"))
        if isinstance(figures, dict):
            return figures
    return {}
