"""A film's shots as video files of their own beside their tensors: a shot that has its file is not decoded again.

What a clip shows depends on the latents of its shot and of those before it in the same take, whose frames the VAE
remembers, and on how it is decoded and encoded; its name covers all of that. So a clip is never out of date, and one
that is not there is made. A take is decoded from its first frame on, as whenever a film is decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import av
from comfy.sd import VAE
from torch import Tensor

from ...film.pixels import to_pil
from ...film.reel.atomic import whole_file
from ...film.reel.choice import take_of
from ...film.reel.fingerprint import canonical_json
from ...film.reel.project import CLIPS, folder_of, numbered, take_stem
from ...film.reel.reel import Reel
from ...film.reel.takes import takes
from ..files.join import frame_order
from ..files.paths import spill_folder
from ..files.video import VideoWriter
from ..model_fingerprint import fingerprint_vae
from .decode import decoding_steps, film_frames

__all__ = ["Clip", "clip_steps", "clips_of", "decode_clips", "number_clips"]

Watch = Callable[[int, Tensor], object]
"""Gets every piece of the film that is decoded: the film's frame at which it begins, and frames [t, H, W, 3]."""


@dataclass(frozen=True)
class Clip:
    """A shot's own video. shot: index on the reel. start, frames: of the film. path: its file, made or not."""

    shot: int
    start: int
    frames: int
    path: Path

    @property
    def poster(self) -> Path:
        """A picture from its middle."""
        return self.path.with_suffix(".jpg")

    def is_whole(self) -> bool:
        """Whether video and picture are there, with every frame."""
        return self.poster.exists() and len(frame_order(self.path)) == self.frames


def clips_of(reel: Reel, vaes: Sequence[VAE], shots: range, suffix: str, fps: float) -> list[Clip]:
    """The clips of some shots of a reel. suffix: ".mp4" or ".webm". fps: of the video."""
    written = {
        "version": 1,
        "vae": sorted(fingerprint_vae(vae) for vae in vaes),
        "size": [reel.layout.width, reel.layout.height],
        "fps": fps,
        "suffix": suffix,
        # What another encoder writes may not join with this one's.
        "encoder": [av.__version__, *map(list, av.library_versions.values())],
    }
    clips: list[Clip] = []
    for take in takes(reel.shots):
        start, before = take.start, list[list[Any]]()
        for shot in take.shots:
            filmed = reel.shots[shot]
            before.append([filmed.file.uid, filmed.latent_frames, filmed.frames, filmed.lead])
            if shot in shots:
                key = hashlib.sha256(canonical_json({**written, "take": before}).encode("ascii")).hexdigest()[:16]
                name = f"{take_stem(take_of(filmed))}-{key}{suffix}"
                clips.append(Clip(shot, start, filmed.frames, _folder(reel, shot) / name))
            start += filmed.frames
    return clips


def clip_steps(reel: Reel, vaes: Sequence[VAE], clips: Sequence[Clip]) -> int:
    """About how many chunks `decode_clips` decodes, for a progress bar."""
    return sum(decoding_steps(reel, vaes, part[0].start, _end(part)) for part in _by_take(reel, clips))


def decode_clips(reel: Reel, vaes: Sequence[VAE], clips: Sequence[Clip], fps: float, watch: Watch) -> None:
    """Makes clips, in the reel's order; each take is decoded once.

    watch: gets what is decoded, as soon as it is, and may raise to stop; clips that are finished then stay. Raises as
    film_frames and VideoWriter do.
    """
    for part in _by_take(reel, clips):
        wanted = {clip.shot: clip for clip in part}
        shots = range(part[0].shot, part[-1].shot + 1)
        pieces = _cut(film_frames(reel, vaes, part[0].start, _end(part)), [reel.shots[shot].frames for shot in shots])
        position = part[0].start
        for index, shown in groupby(pieces, key=itemgetter(0)):
            clip = wanted.get(shots[index])
            frames = (frames for _, frames in shown)
            with closing(frames if clip is None else _written(clip, frames, reel, fps)) as passed:
                for piece in passed:
                    watch(position, piece)
                    position += len(piece)


def number_clips(reel: Reel, clips: Sequence[Clip]) -> None:
    """Gives the clips of shots that lie in a project the names that a person looks for: 001.mp4 and 001.jpg in
    the project's folder, the film as it was written last. They are links where the disk has them, else copies. What
    a longer film left behind the last shot goes.
    """
    for clip in clips:
        folder = folder_of(reel.shots[clip.shot])
        if folder is None:
            continue
        with suppress(OSError):  # a name is a convenience
            for old in folder.glob(f"{clip.shot + 1:03}.*"):
                if old.suffix in _SHOWN:
                    old.unlink()
            for file in (clip.path, clip.poster):
                _link(file, folder / numbered(clip.shot + 1, file.suffix))
            if clip.shot + 1 == len(reel.shots):
                _drop_behind(folder, len(reel.shots))


_SHOWN = (".mp4", ".webm", ".jpg")


def _drop_behind(folder: Path, shots: int) -> None:
    for path in folder.glob("[0-9]*"):
        if path.suffix in _SHOWN and path.stem.isdecimal() and int(path.stem) > shots:
            path.unlink()


def _link(source: Path, name: Path) -> None:
    try:
        os.link(source, name)
    except OSError:
        with whole_file(name, unique=True) as part:
            part.write_bytes(source.read_bytes())


def _folder(reel: Reel, shot: int) -> Path:
    """Where a shot's clip lies: in its project; without one that can be written, until ComfyUI ends."""
    project = folder_of(reel.shots[shot])
    return (project if project is not None and os.access(project, os.W_OK) else spill_folder()) / CLIPS


def _by_take(reel: Reel, clips: Sequence[Clip]) -> list[list[Clip]]:
    take_of_shot = {shot: number for number, take in enumerate(takes(reel.shots)) for shot in take.shots}
    return [list(part) for _, part in groupby(clips, key=lambda clip: take_of_shot[clip.shot])]


def _end(part: Sequence[Clip]) -> int:
    return part[-1].start + part[-1].frames


def _cut(pieces: Iterable[Tensor], counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Frames cut where shots end: the shot's place in `counts`, and frames of it."""
    index, left = 0, counts[0]
    for piece in pieces:
        while len(piece):
            if not left:
                index, left = index + 1, counts[index + 1]
            yield index, piece[:left]
            piece, left = piece[left:], left - len(piece[:left])


def _written(clip: Clip, pieces: Iterable[Tensor], reel: Reel, fps: float) -> Generator[Tensor, None, None]:
    """Passes frames on and writes them into the clip, with its poster first."""
    with VideoWriter(clip.path, reel.layout.width, reel.layout.height, fps) as writer:
        for piece in pieces:
            middle = clip.frames // 2 - writer.frames
            writer.write(piece)
            if 0 <= middle < len(piece):
                with whole_file(clip.poster, unique=True) as part:
                    to_pil(piece[middle, ..., :3]).save(part, "JPEG", quality=90)
            yield piece
