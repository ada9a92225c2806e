"""A few frames of a film as they were decoded, kept beside its clips, so that they need no second decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from comfy.sd import VAE
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...film.reel.atomic import whole_file
from ...film.reel.reel import Reel
from .clips import Clip
from .decode import film_frames

__all__ = ["Pictures"]

_MOST = 16
"""Pictures that are kept on disk, at most; 4.8 MB each at 832x480."""
_NAME = "pictures"


class Pictures:
    """Frames start .. stop (exclusive) of a film that the clips show."""

    def __init__(self, clips: Sequence[Clip], start: int, stop: int) -> None:
        """Takes them from disk, where they were kept."""
        self._start, self._stop = start, stop
        self._pieces: list[Tensor] = []
        self._have = 0
        shown = [clip for clip in clips if clip.start < stop and clip.start + clip.frames > start]
        named = " ".join([*(clip.path.name for clip in shown), str(start - shown[0].start), str(stop - start)])
        take = shown[0].path.name.partition("-")[0]
        name = f"{take}-{hashlib.sha256(named.encode()).hexdigest()[:16]}.{_NAME}"
        self._file: Path | None = shown[0].path.with_name(name) if stop - start <= _MOST else None
        self.kept = self._file is not None and self._load(self._file)
        """Whether they were on disk."""

    def see(self, position: int, frames: Tensor) -> None:
        """Takes what is wanted from frames [t, H, W, 3] that begin at this frame of the film."""
        first = self._start + self._have
        if position <= first < min(self._stop, position + len(frames)):
            self._add(frames[first - position : self._stop - position].float().cpu())

    def finish(self, reel: Reel, vaes: Sequence[VAE]) -> Tensor:
        """The frames [n, H, W, 3] in 0..1; what was not seen is decoded. Raises as film_frames does."""
        if self._have < self._stop - self._start:
            for frames in film_frames(reel, vaes, self._start + self._have, self._stop):
                self._add(frames.float().cpu())
        pictures = torch.cat(self._pieces)
        if self._file is not None and not self.kept:
            with suppress(OSError), whole_file(self._file, unique=True) as part:
                save_file({_NAME: pictures}, part)
        return pictures

    def _add(self, frames: Tensor) -> None:
        self._pieces.append(frames.clone())
        self._have += len(frames)

    def _load(self, file: Path) -> bool:
        try:
            pictures = load_file(file)[_NAME]
        except (OSError, SafetensorError, KeyError):
            return False
        self._add(pictures)
        return self._have == self._stop - self._start
