"""Fingerprints: what a filmed shot depends on, in 64 characters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..storyboard.json_form import shot_to_dict
from ..storyboard.shot import Shot

__all__ = ["canonical_json", "shot_fingerprint"]


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values: keys sorted, no spaces, ASCII, 5.0 written as 5.

    Raises TypeError for what is not JSON-able and ValueError for NaN and infinity.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def shot_fingerprint(previous: str, shot: Shot, settings: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of everything that decides how a shot looks.

    previous: fingerprint of the shot before it in the film, "" for the first; so a change refilms what follows it.
    settings: what the engine contributes, JSON-able: model, VAE and LoRA fingerprints, sampler, memory, size, and a
        digest of the content of each picture the shot refers to (the shot itself holds only their names).
    """
    # Which take a storyboard asks for decides whether the shot is filmed, not how it looks.
    asked = shot_to_dict(replace(shot, take=""))
    content = {"version": 1, "previous": previous, "shot": asked, "settings": settings}
    return hashlib.sha256(canonical_json(content).encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
