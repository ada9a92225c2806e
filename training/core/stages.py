"""Work in stages whose results are kept: any of them can be killed, run again alone, or made again after a change.

A result is one JSON file, `<folder>/<stage>/<unit>.json`, written whole, with what it was made from. It counts as long
as it would be made from the same again; a stage's inputs include the results of another that it reads, so a change runs
down the chain and stops where nothing changes any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ...film.reel.atomic import write_text
from ...film.reel.fingerprint import canonical_json


class StageCache:
    """The kept results of one folder. again: stages whose results are made anew."""

    def __init__(self, folder: Path, again: Collection[str] = ()):
        self.folder, self.again = folder, frozenset(again)
        self.made: dict[str, int] = {}
        """How many results each stage has made, not found."""

    def get(
        self,
        stage: str,
        unit: str,
        inputs: Any,
        make: Callable[[], Any],
        is_complete: Callable[[Any], bool] = lambda result: True,
    ) -> Any:
        """The result of `make()`, JSON-able: the kept one if it was made from `inputs`, else made and kept.

        unit: what the stage works on, a file's name. inputs: all that decides the result, JSON-able. is_complete:
        whether the files that a kept result names are still there.
        """
        path = self.folder / stage / f"{unit}.json"
        fingerprint = hashlib.sha256(canonical_json(inputs).encode()).hexdigest()
        kept = None if stage in self.again else _read(path)
        if kept is not None and kept["from"] == fingerprint and is_complete(kept["result"]):
            return kept["result"]
        result = json.loads(json.dumps(make()))
        write_text(path, json.dumps({"from": fingerprint, "result": result}, indent=1))
        self.made[stage] = self.made.get(stage, 0) + 1
        return result

    def keep(self, stage: str, units: Collection[str]) -> None:
        """Remove a stage's results for all other units: what they were made for is no longer there."""
        for path in sorted((self.folder / stage).glob("*.json")):
            if path.stem not in units:
                path.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """A result file; None if it is missing or no result, for example because a disk was full."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"from", "result"} <= kept.keys() else None
