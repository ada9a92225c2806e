"""The reel: everything filmed so far and what is remembered of it, as an immutable value.

A reel holds no tensor. Each shot is one entry: what was asked for, what it depends on, how many frames it has, and a
handle to a file with its tensors: `latents` [1, C, T, h, w] in fp32, and groups of others under a prefix (`memory.` for
what the causal engine remembers after the shot). So a reel of any length weighs a few kilobytes, can be kept in
ComfyUI's cache, and at most one shot's memory is in RAM at a time. Filming writes a temporary file that goes when no
reel refers to it; files of a project or of the user are never deleted.

A group of tensors has JSON metadata under the same name in `FilmedShot.meta`; groups.py knows their names and reads
them. New groups need no change of the format, and groups that this version does not know are kept through Save Reel.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..decode import DecodeError, Value
from ..storyboard.json_form import shot_from_dict, shot_to_dict
from ..storyboard.shot import Shot, StoryboardError
from .atomic import Place
from .edit import Edit, edit_from, edit_section
from .fingerprint import shot_fingerprint
from .group_schema import check_groups
from .groups import TransitionGroup
from .latent_space import WAN, LatentSpace
from .layout import ReelLayout
from .shot_sound import ShotSound, sounds_from, sounds_to
from .stored_tensors import StoredTensors
from .tensor_file import FileHeader, ReelError, TensorSlot, foreign, link_file, read_header, write_tensor_file

__all__ = [
    "FOLLOWS",
    "FilmedShot",
    "Reel",
    "ReelError",
    "ReelLayout",
    "check_fit",
    "check_layout",
    "load_reel",
    "load_shot_file",
    "save_reel",
    "save_shot_file",
]

LATENTS = "latents"
FOLLOWS = "follows"
"""Of a shot's metadata: the uid of the shot it was filmed after."""


@dataclass(frozen=True, eq=False)
class FilmedShot:
    """A finished shot.

    shot: what was asked for. previous: fingerprint of the shot before, "" for the first. settings: the engine's part of
    the fingerprint. latent_frames: T. take_start: it begins a take, so the VAE starts afresh and its first latent is
    one frame. frames: frames of the finished film that belong to it. meta: JSON-able, by group. file: its tensors.
    family: whose latents they are. sound: its own, if it was given one; it lives on reels and not in projects.
    """

    shot: Shot
    previous: str
    settings: Mapping[str, Any]
    latent_frames: int
    take_start: bool
    frames: int
    meta: Mapping[str, Any]
    file: StoredTensors
    family: str = WAN
    sound: ShotSound | None = None

    @classmethod
    def store(
        cls,
        shot: Shot,
        latents: torch.Tensor,
        *,
        previous: str,
        settings: Mapping[str, Any],
        take_start: bool,
        frames: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        meta: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        family: str = WAN,
    ) -> FilmedShot:
        """Puts a shot just filmed on disk, in a temporary file that lives as long as the result and its copies do.

        latents: [1, C, T, h, w], stored in fp32. tensors: by group and name, on any device, stored as they are, one at
        a time; see groups.py for reading them back. meta: JSON-able, by group. folder: for the temporary file; the
        system's if None. family: of the engine's models. Raises ReelError when it cannot be written.
        """
        named: dict[str, torch.Tensor | TensorSlot] = {LATENTS: latents.to(torch.float32)}
        for group, members in (tensors or {}).items():
            named.update({f"{group}.{name}": tensor for name, tensor in members.items()})
        section = {
            "uid": uuid.uuid4().hex,
            "prefix": "",
            "shot": shot_to_dict(shot),
            "previous": previous,
            "settings": dict(settings),
            "latent_frames": latents.shape[2],
            "take_start": take_start,
            "frames": frames,
            "meta": dict(meta or {}),
            **_family_section(family),
        }
        path = (folder or Path(tempfile.gettempdir())) / f"longreel-{section['uid']}.safetensors"
        write_tensor_file(path, {"kind": "shot", "shots": [section]}, named, durable=False)
        header = read_header(path)
        return _filmed(header.info["shots"][0], header, owned=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decided how this shot looks."""
        return shot_fingerprint(self.previous, self.shot, self.settings)

    @property
    def seconds(self) -> float:
        """Planned length."""
        return self.shot.seconds

    @property
    def lead(self) -> int:
        """Frames at the beginning of the take, which it then begins, that are trimmed."""
        return transition.lead if (transition := TransitionGroup.of(self)) else 0

    def verify(self) -> None:
        """Raises ReelError if the latents are not what was written; what is remembered is verified when it is read."""
        self.file.verify(LATENTS)

    def latents(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Latent frames start .. stop (exclusive; to the end if None), [1, C, frames, h, w] fp32 on the CPU."""
        return self.file.frames(LATENTS, start, self.latent_frames if stop is None else stop)


@dataclass(frozen=True, eq=False)
class Reel:
    """Filmed shots of one layout, in order, and edits of what is remembered of them, in order.

    Adding either gives a new reel and leaves this one as it is.
    """

    layout: ReelLayout
    shots: tuple[FilmedShot, ...] = ()
    edits: tuple[Edit, ...] = ()

    @classmethod
    def empty(cls, layout: ReelLayout) -> Reel:
        """A reel with nothing on it."""
        return cls(layout)

    def append(self, filmed: FilmedShot) -> Reel:
        """This reel and one shot more. Raises ReelError if the shot does not fit it."""
        if filmed.previous != self.fingerprint:
            raise ReelError("The shot was filmed after another one than this reel's last: film it again on this reel.")
        check_fit(self.layout, filmed, self.last_shot)
        return replace(self, shots=(*self.shots, filmed))

    def branch(self, shots: int) -> Reel:
        """A reel of the first `shots` shots. Raises ReelError if there are not that many."""
        if not 0 <= shots <= len(self.shots):
            raise ReelError(f"The reel has {len(self.shots)} shots, so it cannot be cut after {shots}: choose fewer.")
        return replace(self, shots=self.shots[:shots], edits=tuple(edit for edit in self.edits if edit.after <= shots))

    def edited(self, edit: Edit) -> Reel:
        """This reel, remembering otherwise from here on. edit.after must be the number of its shots."""
        assert edit.after == len(self.shots)
        return replace(self, edits=(*self.edits, edit))

    def joined(self, layout: ReelLayout) -> Reel:
        """This reel, once check_layout has let an engine of that layout take a turn: what it remembers is bound too."""
        joined = self.layout.joined(layout)
        if not joined.engine:
            return replace(self, layout=replace(joined, engine=layout.engine, model=layout.model))
        return replace(self, layout=replace(joined, engine={**layout.engine, **joined.engine}))

    def with_sound(self, shot: int, sound: ShotSound | None) -> Reel:
        """This reel with another sound of a shot (from 0), None for none. No fingerprint changes."""
        shots = (*self.shots[:shot], replace(self.shots[shot], sound=sound), *self.shots[shot + 1 :])
        return replace(self, shots=shots)

    def latent_space(self, shot: int) -> LatentSpace:
        """Of a shot's latents."""
        layout = self.layout.of_family(self.shots[shot].family)
        assert layout is not None
        return layout.latents

    def edits_after(self, shots: int) -> tuple[Edit, ...]:
        """The edits made when so many shots were filmed, in order."""
        return tuple(edit for edit in self.edits if edit.after == shots)

    @property
    def last_shot(self) -> FilmedShot | None:
        """The newest shot, None if nothing is filmed."""
        return self.shots[-1] if self.shots else None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the newest shot and the edits after it, which covers all before; "" if there is nothing."""
        last = self.shots[-1].fingerprint if self.shots else ""
        for edit in self.edits_after(len(self.shots)):
            last = hashlib.sha256(f"{last} {edit.digest}".encode("ascii")).hexdigest()
        return last

    @property
    def frames(self) -> int:
        """Frames of the finished film."""
        return sum(filmed.frames for filmed in self.shots)

    @property
    def seconds(self) -> float:
        """Length of the finished film."""
        return self.frames / self.layout.fps

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        files = [shot.file for shot in self.shots] + [edit.file for edit in self.edits]
        files += [shot.sound.file for shot in self.shots if shot.sound is not None]
        return sum(file.nbytes for file in files)

    def latents(self, shot: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Latent frames of a shot, [1, C, frames, h, w] fp32 on the CPU; see FilmedShot.latents."""
        return self.shots[shot].latents(start, stop)

    def tail(self, latent_frames: int) -> torch.Tensor | None:
        """The newest latent frames of the last take [1, C, n, h, w], n as many as asked for or all; None if empty."""
        pieces: list[torch.Tensor] = []
        for filmed in reversed(self.shots):
            start = max(0, filmed.latent_frames - latent_frames)
            pieces.insert(0, filmed.latents(start))
            latent_frames -= filmed.latent_frames - start
            if filmed.take_start or not latent_frames:
                break
        return torch.cat(pieces, dim=2) if pieces else None

    def describe(self) -> str:
        """One line for the user: shots, length, frame size, size on disk."""
        shots = "1 shot" if len(self.shots) == 1 else f"{len(self.shots)} shots"
        layout = self.layout
        return (
            f"{shots}, {self.seconds:.1f} s ({self.frames} frames at {layout.fps:g} fps), "
            f"{layout.width}x{layout.height}, {human_size(self.nbytes)} on disk"
        )


def human_size(nbytes: int) -> str:
    """Bytes as text: 999 B, 1.5 kB, 4.2 GB (powers of 1000)."""
    if nbytes < 1000:
        return f"{nbytes} B"
    size = float(nbytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def check_layout(reel: Reel, layout: ReelLayout) -> None:
    """Raises ReelError, saying what differs and what to do, if an engine of this layout cannot go on with the reel."""
    reel.layout.check(layout)


def check_fit(layout: ReelLayout, filmed: FilmedShot, before: FilmedShot | None) -> None:
    """Raises ReelError for a shot that cannot stand behind `before` (None: first) on a reel of this layout."""
    own = layout.of_family(filmed.family)
    if own is None:
        raise ReelError(f"A shot's latents are those of {filmed.family} and the reel has none such: film it again.")
    expected = own.latents.shape(filmed.latent_frames, layout.width, layout.height)
    found = filmed.file.shape(LATENTS)
    if found != expected:
        raise ReelError(f"A shot's latents are {list(found)} and the reel's are {list(expected)}: film the shot again.")
    if not filmed.take_start and before is None:
        raise ReelError("The first shot of a reel continues nothing: start it with a cut.")
    if not filmed.take_start and before is not None and before.family != filmed.family:
        raise ReelError("The shot before was filmed by a model of another family: start this one with a cut.")


def save_reel(reel: Reel, path: Path, place: Place | None = None) -> None:
    """Writes a reel as one safetensors file, whole or not at all, without loading its tensors.

    place: see write_tensor_file. Raises ReelError when it cannot be written; a file that was at `path` then stays as it
    was.
    """
    sections: list[dict[str, Any]] = []
    slots: dict[str, torch.Tensor | TensorSlot] = {}
    for i, filmed in enumerate(reel.shots):
        sections.append({**_section(filmed), "prefix": f"shots.{i}."})
        slots.update({f"shots.{i}.{name}": slot for name, slot in filmed.file.slots.items()})
    edits: list[dict[str, Any]] = []
    for i, edit in enumerate(reel.edits):
        edits.append(edit_section(edit, f"edits.{i}."))
        slots.update({f"edits.{i}.{name}": slot for name, slot in edit.file.slots.items()})
    info = {"kind": "reel", "layout": reel.layout.to_json(), "shots": sections, "edits": edits}
    info |= sounds_to([filmed.sound for filmed in reel.shots], slots)
    write_tensor_file(path, info, slots, place=place)


def load_reel(path: Path) -> Reel:
    """The reel in a file; tensors stay in the file until they are read.

    Raises ReelError if the file is absent, cut short, damaged, or not a reel.
    """
    header = read_header(path)
    if header.info["kind"] != "reel":
        raise ReelError(f"{path} holds one shot of a project and not a reel: choose a file made by Save Reel.")
    info = Value(header.info)
    try:
        layout = ReelLayout.from_json(info["layout"])
        edits = info.get("edits")
        for edit in edits.list() if edits else ():  # files of before there were edits have none
            edit["after"].integer(0, len(header.info["shots"]))
            check_groups(edit["meta"])
        sounds = sounds_from(header)
    except DecodeError as error:
        raise foreign(path, error) from error
    filmed_shots = (_filmed(section, header) for section in header.info["shots"])
    shots = tuple(replace(filmed, sound=sounds.get(i)) for i, filmed in enumerate(filmed_shots))
    for before, filmed in zip((None, *shots), shots):
        check_fit(layout, filmed, before)
    return Reel(layout, shots, tuple(edit_from(section, header) for section in header.info.get("edits", ())))


def save_shot_file(filmed: FilmedShot, path: Path, place: Place | None = None) -> None:
    """Puts one shot into a file of its own, as a project keeps it, whole or not at all.

    A file that is that already and lies on the same disk gets a second name and is not copied.
    place: see write_tensor_file. Raises ReelError when it cannot be written; a file that was at `path` then stays as it
    was.
    """
    section = {**_section(filmed), "prefix": ""}
    slots = filmed.file.slots
    info = read_header(filmed.file.path).info
    if info["kind"] == "shot" and info["shots"] == [section] and link_file(filmed.file.path, path, place):
        return
    write_tensor_file(path, {"kind": "shot", "shots": [section]}, slots, place=place)


def load_shot_file(path: Path) -> FilmedShot:
    """The shot in a file of a project. Raises ReelError if the file is not whole or holds something else."""
    header = read_header(path)
    if header.info["kind"] != "shot" or not header.info["shots"]:
        raise ReelError(f"{path} holds a reel and not one shot: load it with Load Reel.")
    return _filmed(header.info["shots"][0], header)


def _section(filmed: FilmedShot) -> dict[str, Any]:
    return {
        "uid": filmed.file.uid,
        "shot": shot_to_dict(filmed.shot),
        "previous": filmed.previous,
        "settings": dict(filmed.settings),
        "latent_frames": filmed.latent_frames,
        "take_start": filmed.take_start,
        "frames": filmed.frames,
        "meta": dict(filmed.meta),
        **_family_section(filmed.family),
    }


def _family_section(family: str) -> dict[str, str]:
    """Shots of before there were families say none."""
    return {} if family == WAN else {"family": family}


def _filmed(section: Mapping[str, Any], header: FileHeader, owned: bool = False) -> FilmedShot:
    told = Value(section, "shot")
    try:
        family = told.get("family")
        check_groups(told["meta"])
        filmed = FilmedShot(
            shot=shot_from_dict(told["shot"].raw, "shot"),
            previous=told["previous"].text(64),
            settings=told["settings"].object(),
            latent_frames=told["latent_frames"].integer(1, 10**7),
            take_start=told["take_start"].flag(),
            frames=told["frames"].integer(1, 10**8),
            meta=told["meta"].object(),
            file=StoredTensors(header, told["uid"].text(200), owned),
            family=family.text(200) if family else WAN,
        )
    except DecodeError as error:
        raise foreign(header.path, error) from error
    except StoryboardError as error:
        raise ReelError(f"{header.path} has a shot that is none: {error}") from error
    return filmed
