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
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .atomic import claim, sweep, write_text
from .choice import TAKE_DIGITS, Decision, PlannedShot, decide, find_take
from .reel import FilmedShot, ReelError, human_size, load_shot_file, save_shot_file

__all__ = ["CLIPS", "ProjectStore", "Pruned", "folder_of", "numbered", "project_folder", "take_stem"]

CLIPS = "clips"
"""The folder of a project with its shots as videos; their names begin as those of the takes' files."""

_TAKE_FILE = re.compile(r"shot-[0-9a-f]{32}\.safetensors")
_MAX_NAME, _MAX_BYTES = 80, 240
_OPENING = 40
_PRUNED = "pruned"
# Names that Windows keeps for devices, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)


def project_folder(root: Path, name: str) -> Path:
    """The folder of the project `name`: always directly inside `root`, safe on every system.

    Different names never share a folder: a name that had to be changed gets a few digits of its hash. The folder is not
    made. Raises ReelError for a name without a letter or digit.
    """
    plain = unicodedata.normalize("NFC", name)
    safe = re.sub(r"[^\w\- ]+", "_", plain).strip(" _")[:_MAX_NAME]
    safe = safe.encode("utf-8", "ignore")[:_MAX_BYTES].decode("utf-8", "ignore").strip(" _")
    if not any(character.isalnum() for character in safe):
        raise ReelError(f'"{name}" cannot name a project: give it a name with at least one letter or digit.')
    if safe != plain or _DEVICE.fullmatch(safe):
        safe = f"{safe}-{hashlib.sha256(plain.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return root / safe


def take_stem(fingerprint: str) -> str:
    """What the names of a take's files have in common: its own behind `shot-`, those in CLIPS before `-`."""
    return fingerprint[:32]


def folder_of(filmed: FilmedShot) -> Path | None:
    """The folder of the project that a shot lies in, None where it is in no project."""
    path = filmed.file.path
    return path.parent if _TAKE_FILE.fullmatch(path.name) else None


def numbered(number: int, suffix: str) -> str:
    """The name for people of the video or the picture of a film's shot in its project. number: of the shot, from 1."""
    return f"{number:03}{suffix}"


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be. gone: file, its take (None: not whole) and its bytes. kept: takes that stay."""

    gone: tuple[tuple[Path, FilmedShot | None, int], ...]
    kept: int
    dry_run: bool

    def describe(self) -> str:
        """A line for each file, then how much that is in all."""
        lines = [
            f"take {path.stem.removeprefix('shot-')[:TAKE_DIGITS]}: "
            + ("damaged" if take is None else f"seed {take.shot.seed}, {_opening(take.shot.prompts[0].text)}")
            + f", {human_size(size)}"
            for path, take, size in self.gone
        ]
        count = "1 take" if len(self.gone) == 1 else f"{len(self.gone)} takes"
        size = human_size(sum(size for _, _, size in self.gone))
        does = "would be deleted (dry_run is on)" if self.dry_run else "deleted"
        return "\n".join([*lines, f"{count}, {size}, {does}; {self.kept} in use stay"])


def _opening(text: str) -> str:
    """The first words of a prompt, in quotes."""
    line = text.split("\n")[0]
    return f'"{line}"' if len(line) <= _OPENING else f'"{line[:_OPENING].rstrip()}..."'


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
        except ReelError:
            return None
        return filmed if filmed.fingerprint == fingerprint and _intact(filmed) else None

    def has(self, fingerprint: str) -> bool:
        """Whether there is a file of this fingerprint, whole or not."""
        return self._path(fingerprint).exists()

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

    def explain(self, planned: Sequence[PlannedShot], keep: bool = False) -> list[Decision]:
        """What is used again, kept and filmed, and why, in the order of the plan; see choice.decide.

        Takes that are used are read whole: one that is not as it was written is filmed again.
        """
        stored = self.shots()
        while True:
            decisions = decide(planned, stored, keep, self.has)
            damaged = {decision.take for decision in decisions if decision.filmed and not _intact(decision.filmed)}
            if not damaged:
                return decisions
            stored = [take for take in stored if take.fingerprint not in damaged]

    def take(self, name: str) -> FilmedShot:
        """The take whose fingerprint begins so. Raises ReelError where there is none, or several."""
        return find_take(name, self.shots())

    def prune(self, keep: Collection[str], *, dry_run: bool) -> Pruned:
        """Delete every take whose fingerprint is not in `keep`, and files that hold no whole one.

        dry_run: only say which. A file that cannot be deleted is left and not counted. A take's videos go with it.
        """
        stored = {take.file.path: take for take in self.shots()}
        gone: list[tuple[Path, FilmedShot | None, int]] = []
        for path in sorted(self.folder.glob("shot-*.safetensors")):
            take = stored.get(path)
            if take is not None and take.fingerprint in keep:
                continue
            with suppress(OSError):
                videos = list((self.folder / CLIPS).glob(f"{path.stem.removeprefix('shot-')}-*"))
                size = sum(file.stat().st_size for file in (path, *videos))
                if not dry_run:
                    for file in (path, *videos):
                        file.unlink()
                gone.append((path, take, size))
        if gone and not dry_run:
            write_text(self.folder / _PRUNED, uuid.uuid4().hex)
        kept = len({take.fingerprint for take in stored.values()} & set(keep))
        return Pruned(tuple(gone), kept, dry_run)

    @staticmethod
    def pruned(folder: Path) -> str:
        """Another text after each prune of the project in this folder, "" before the first."""
        try:
            return (folder / _PRUNED).read_text(encoding="ascii")
        except OSError:
            return ""

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"shot-{take_stem(fingerprint)}.safetensors"


def _intact(filmed: FilmedShot) -> bool:
    try:
        filmed.verify()
    except ReelError:
        return False
    return True
