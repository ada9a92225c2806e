"""Projects: finished shots on disk, found again after a crash, a restart or an edit.

A project is a folder with one file for each shot ever filmed in it, named by the shot's fingerprint. The fingerprint
covers everything that decides how a shot looks, the shots before it included, so a shot whose file is there is simply
used again. There is no index that could disagree with the files: a file is written beside its name and renamed when
whole, and everything else that a project reports is read from the files' headers.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..storyboard.shot import Shot
from .atomic import claim, sweep
from .fingerprint import canonical_json, shot_fingerprint
from .reel import FilmedShot, ReelError, load_shot_file, save_shot_file

__all__ = [
    "Decision",
    "PlannedShot",
    "ProjectStore",
    "fingerprint_story",
    "project_folder",
    "shot_fingerprint",
]

_MAX_NAME = 80
# Names that Windows keeps for devices, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class PlannedShot:
    """A shot with everything its fingerprint covers. previous: fingerprint of the shot before it, "" for the first."""

    shot: Shot
    previous: str
    settings: Mapping[str, Any]
    fingerprint: str


class Decision(NamedTuple):
    """What is done with a planned shot. shot: its index, from 0. reason: why, in a few words for the user."""

    shot: int
    action: Literal["reused", "filmed"]
    reason: str


def fingerprint_story(
    shots: Sequence[Shot], settings: Mapping[str, Any], previous: str = ""
) -> tuple[PlannedShot, ...]:
    """Shots that follow one another, with their fingerprints. previous: of the reel that they continue, "" for none."""
    planned: list[PlannedShot] = []
    for shot in shots:
        planned.append(PlannedShot(shot, previous, settings, shot_fingerprint(previous, shot, settings)))
        previous = planned[-1].fingerprint
    return tuple(planned)


def project_folder(root: Path, name: str) -> Path:
    """The folder of the project `name`: always directly inside `root`, safe on every system.

    Different names never share a folder: a name that had to be changed gets a few digits of its hash. The folder is not
    made. Raises ReelError for a name without a letter or digit.
    """
    plain = unicodedata.normalize("NFC", name)
    safe = re.sub(r"[^\w\- ]+", "_", plain).strip(" _")[:_MAX_NAME].strip(" _")
    if not any(character.isalnum() for character in safe):
        raise ReelError(f'"{name}" cannot name a project: give it a name with at least one letter or digit.')
    if safe != plain or _DEVICE.fullmatch(safe):
        safe = f"{safe}-{hashlib.sha256(plain.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return root / safe


class ProjectStore:
    """The finished shots of one project. Every method reads the folder anew, so reels and queues may share it."""

    def __init__(self, folder: Path) -> None:
        """Opens or makes the project in `folder` and clears away what a killed process left half-written.

        Raises ReelError if the folder cannot be made.
        """
        self.folder = folder
        self._make_folder()
        sweep(folder, ours=True)

    def find(self, fingerprint: str) -> FilmedShot | None:
        """The finished shot of this fingerprint, None if it is absent or its file is not whole or not as written."""
        try:
            filmed = load_shot_file(self._path(fingerprint))
            filmed.verify()
        except ReelError:
            return None
        return filmed if filmed.fingerprint == fingerprint else None

    def add(self, filmed: FilmedShot) -> FilmedShot:
        """Puts a shot into the project, whole or not at all, and returns it as the project keeps it.

        A file on the same disk is linked, not copied. A shot that the project has already is not written again, nor one
        that another server puts there meanwhile, since reels refer to it. The folder is made again if it has gone.
        Raises ReelError when it cannot be written; the shot passed in stays usable.
        """
        path = self._path(filmed.fingerprint)
        present = self.find(filmed.fingerprint)
        if present is not None:
            return present
        self._make_folder()
        damaged = path.exists()
        try:
            save_shot_file(filmed, path, None if damaged else lambda part: claim(part, path))
        except FileExistsError:
            present = self.find(filmed.fingerprint)
            if present is not None:
                return present
            save_shot_file(filmed, path)
        return load_shot_file(path)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReelError(
                f"The project folder {self.folder} cannot be made ({error.strerror}): choose another."
            ) from error

    def shots(self) -> list[FilmedShot]:
        """All whole shots of the project, the newest first. Only headers are read."""
        paths = sorted(self.folder.glob("shot-*.safetensors"), key=lambda path: -path.stat().st_mtime_ns)
        found: list[FilmedShot] = []
        for path in paths:
            with suppress(ReelError):
                found.append(load_shot_file(path))
        return found

    def explain(self, planned: Sequence[PlannedShot]) -> list[Decision]:
        """What is used again and what must be filmed, and why, in the order of the plan."""
        stored = self.shots()
        whole = {filmed.fingerprint for filmed in stored}
        wanted = {_content(plan.shot, plan.settings) for plan in planned}
        # A stored shot that the plan has elsewhere was not changed into another one.
        replaced = [filmed for filmed in stored if _content(filmed.shot, filmed.settings) not in wanted]
        decisions: list[Decision] = []
        upstream_changed = False
        for index, plan in enumerate(planned):
            if plan.fingerprint in whole and self.find(plan.fingerprint) is not None:
                decisions.append(Decision(index, "reused", "nothing changed"))
                continue
            reason = self._reason(plan, stored, replaced, upstream_changed)
            upstream_changed = upstream_changed or reason not in (_NEW, _DAMAGED)
            decisions.append(Decision(index, "filmed", reason))
        return decisions

    def _reason(
        self, plan: PlannedShot, stored: Sequence[FilmedShot], replaced: Sequence[FilmedShot], upstream_changed: bool
    ) -> str:
        if self._path(plan.fingerprint).exists():
            return _DAMAGED
        content = _content(plan.shot, plan.settings)
        if upstream_changed or any(_content(filmed.shot, filmed.settings) == content for filmed in stored):
            return _UPSTREAM
        for filmed in replaced:
            if filmed.previous == plan.previous:
                return _first_change(filmed, plan)
        return _NEW

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"shot-{fingerprint[:32]}.safetensors"


_NEW = "not filmed before"
_DAMAGED = "its file is damaged"
_UPSTREAM = "an earlier shot changed"
_SHOT_PARTS = {"prompts": "prompt", "seconds": "seconds", "seed": "seed", "start": "start", "references": "references"}


def _first_change(filmed: FilmedShot, plan: PlannedShot) -> str:
    """The first difference between a filmed shot and a plan after the same shots: shot first, then settings."""
    for attribute, name in _SHOT_PARTS.items():
        if getattr(filmed.shot, attribute) != getattr(plan.shot, attribute):
            return f"{name} changed"
    path = _first_difference(filmed.settings, plan.settings)
    return f"{'.'.join(path) or 'settings'} changed"


def _first_difference(old: Any, new: Any) -> list[str]:
    """Keys that lead to the first value that differs, in the order of the names."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return []
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            return [key]
        if canonical_json(old[key]) != canonical_json(new[key]):
            return [key, *_first_difference(old[key], new[key])]
    return []


def _content(shot: Shot, settings: Mapping[str, Any]) -> str:
    return shot_fingerprint("", shot, settings)
