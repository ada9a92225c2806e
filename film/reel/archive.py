"""A project as one file, to take elsewhere: a zip of its takes, their videos and its review, each with its SHA-256.

`project.json` in it says the project's name and, of each file, name, bytes, SHA-256 and time. Files are stored as they
are: tensors and videos do not shrink, and what is stored cannot unpack to more than it is. An archive comes from
anywhere, so nothing in it is believed: names must be those of a project's files, sizes those that are stated, and a
project appears under its name only when all of it is as it was packed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..decode import DecodeError, Value, parse

__all__ = [
    "ArchiveError",
    "PackedFile",
    "open_archive",
    "pack_project",
    "project_files",
    "read_contents",
    "steps_of",
]

_CONTENTS = "project.json"
_VERSION = 1
_MAX_FILES = 100_000
_MAX_CONTENTS = 32 << 20
_FILE = re.compile(
    r"shot-[0-9a-f]{32}\.safetensors|review\.json|clips/[0-9a-f]{32}-[0-9a-f]{16}\.(?:mp4|webm|jpg|pictures)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 8 << 20
_OPENING = ".opening-"
_ABANDONED_SECONDS = 24 * 3600.0

Watch = Callable[[int], object]
"""Gets the bytes of every piece that is done; it may raise to stop."""


class ArchiveError(ValueError):
    """An archive that cannot be written or opened; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class PackedFile:
    """A file of an archive. modified: when it was written, in nanoseconds since 1970."""

    name: str
    size: int
    sha256: str
    modified: int

    @classmethod
    def from_json(cls, value: Value) -> PackedFile:
        """As `project.json` has it. Raises DecodeError."""
        name, sha256 = value["name"].text(200), value["sha256"].text(64)
        if not _FILE.fullmatch(name):
            raise value["name"].fault("a file of a project")
        if not _SHA256.fullmatch(sha256):
            raise value["sha256"].fault("64 hexadecimal digits")
        return cls(name, value["bytes"].integer(), sha256, value["modified"].integer())


def project_files(folder: Path) -> list[Path]:
    """The files of a project that an archive takes along, in the order of their names."""
    found = [path for path in (*folder.glob("*"), *folder.glob("clips/*")) if path.is_file()]
    return sorted(path for path in found if _FILE.fullmatch(path.relative_to(folder).as_posix()))


def steps_of(sizes: Iterable[int]) -> int:
    """How many pieces files of so many bytes are copied in, for a progress bar; at least one."""
    return max(1, sum(-(-size // _PIECE) for size in sizes))


def pack_project(folder: Path, name: str, target: Path, watch: Watch = lambda _: None) -> list[PackedFile]:
    """Writes a project into the file `target`, which the caller names when it is whole.

    Raises ArchiveError for a project without takes, and where the disk refuses.
    """
    files = project_files(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ArchiveError(f"The project {name!r} has no takes to pack: film something first, or correct the name.")
    packed: list[PackedFile] = []
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in files:
                member = path.relative_to(folder).as_posix()
                with path.open("rb") as source, archive.open(zipfile.ZipInfo(member), "w", force_zip64=True) as copy:
                    size, sha256 = _copy(source, copy, watch)
                packed.append(PackedFile(member, size, sha256, path.stat().st_mtime_ns))
            files_json = [
                {"name": each.name, "bytes": each.size, "sha256": each.sha256, "modified": each.modified}
                for each in packed
            ]
            contents = {"version": _VERSION, "project": name, "files": files_json}
            archive.writestr(_CONTENTS, json.dumps(contents, indent=1))
    except OSError as error:
        raise ArchiveError(
            f"The project {name!r} cannot be packed ({error.strerror}): free some space, or choose another folder."
        ) from error
    return packed


def read_contents(path: Path) -> tuple[str, list[PackedFile]]:
    """The name of the packed project and its files, as stated. Raises ArchiveError for what is no whole archive."""
    with _opened(path) as archive:
        return _contents(archive)


def open_archive(path: Path, folder: Path, watch: Watch = lambda _: None) -> list[PackedFile]:
    """Makes the project in `folder` out of an archive: all of it, or nothing. One that has its takes stays as it is.

    Raises ArchiveError where there is another project in the folder, the archive is damaged, or the disk refuses.
    """
    if folder.exists() and any(folder.iterdir()):
        _, files = read_contents(path)
        if all((folder / each.name).exists() for each in files if each.name.endswith(".safetensors")):
            return files
        raise ArchiveError(f"There is a project {folder.name!r} already: open the archive under another name.")
    _clear_abandoned(folder.parent)
    place = folder.parent / f"{_OPENING}{uuid.uuid4().hex[:12]}"
    try:
        with _opened(path) as archive:
            _, files = _contents(archive)
            folder.parent.mkdir(parents=True, exist_ok=True)
            needed, free = sum(each.size for each in files), shutil.disk_usage(folder.parent).free
            if needed > free:
                raise ArchiveError(f"{path.name} holds {needed} bytes and the disk has room for {free}: free some.")
            for each in files:
                _extract(archive, each, place / folder.name, watch)
        if folder.exists():
            folder.rmdir()
        os.rename(place / folder.name, folder)
    except OSError as error:
        raise ArchiveError(
            f"{path.name} cannot be opened ({error.strerror}): free some space, or choose another name."
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return files


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip; what is wrong with its inside becomes an ArchiveError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, DecodeError, RuntimeError, KeyError) as error:
        raise ArchiveError(f"{path.name} is no whole archive of a project ({error}): pack it again.") from error


def _contents(archive: zipfile.ZipFile) -> tuple[str, list[PackedFile]]:
    members = {member.filename: member for member in archive.infolist()}
    if _CONTENTS not in members or not len(members) == len(archive.infolist()) <= _MAX_FILES:
        raise DecodeError(f"it has no {_CONTENTS}, or files twice")
    if members[_CONTENTS].compress_type != zipfile.ZIP_STORED or members[_CONTENTS].file_size > _MAX_CONTENTS:
        raise DecodeError(f"its {_CONTENTS} is compressed or too large")
    value = parse(archive.read(_CONTENTS), _MAX_CONTENTS)
    value["version"].integer(_VERSION, _VERSION)
    files = [PackedFile.from_json(each) for each in value["files"].list(_MAX_FILES)]
    if {_CONTENTS, *(each.name for each in files)} != members.keys() or len(files) + 1 != len(members):
        raise DecodeError("it holds other files than it says")
    for each in files:
        member = members[each.name]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != each.size:
            raise DecodeError(f"{each.name} has another size than it says")
    return value["project"].text(200), files


def _extract(archive: zipfile.ZipFile, file: PackedFile, folder: Path, watch: Watch) -> None:
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(file.name) as source, path.open("wb") as copy:
        size, sha256 = _copy(source, copy, watch)
    if (size, sha256) != (file.size, file.sha256):
        raise DecodeError(f"{file.name} is not as it was packed")
    os.utime(path, ns=(file.modified, file.modified))


def _copy(source: IO[bytes], target: IO[bytes], watch: Watch) -> tuple[int, str]:
    """Copies to the end; returns bytes and SHA-256."""
    size, digest = 0, hashlib.sha256()
    while piece := source.read(_PIECE):
        target.write(piece)
        digest.update(piece)
        size += len(piece)
        watch(len(piece))
    return size, digest.hexdigest()


def _clear_abandoned(root: Path) -> None:
    """Removes what a process that was killed a day ago or longer had begun to open."""
    for place in root.glob(f"{_OPENING}*"):
        with suppress(OSError):
            if time.time() - place.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(place)
