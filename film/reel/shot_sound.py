"""The sound of a shot on a reel. It decides nothing of how shots look, so it is no part of any fingerprint."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..decode import Value
from .stored_tensors import StoredTensors
from .tensor_file import FileHeader, TensorSlot, read_header, write_tensor_file

__all__ = ["ShotSound", "sounds_from", "sounds_to"]

_WAVEFORM = "waveform"
_MAX_RATE = 1 << 20


@dataclass(frozen=True, eq=False)
class ShotSound:
    """A take's sound; it goes where the take goes on reels. rate: samples a second. file: the waveform."""

    rate: int
    file: StoredTensors

    @classmethod
    def store(cls, waveform: torch.Tensor, rate: int, folder: Path | None = None) -> ShotSound:
        """Puts a waveform [2, samples] on disk, in a temporary file that lives as long as the result and its copies do.

        folder: for the file; the system's if None. Raises ReelError when it cannot be written.
        """
        section = {"uid": uuid.uuid4().hex, "prefix": "", "rate": rate}
        path = (folder or Path(tempfile.gettempdir())) / f"longreel-{section['uid']}.safetensors"
        info = {"kind": "sound", "shots": [], "sounds": [section]}
        write_tensor_file(path, info, {_WAVEFORM: waveform.to(torch.float32)}, durable=False)
        header = read_header(path)
        return _sound_from(Value(header.info["sounds"][0], "sounds[0]"), header, owned=True)

    def waveform(self) -> torch.Tensor:
        """[2, samples] fp32 on the CPU. Raises ReelError if its file is gone or not as written."""
        return self.file.load([_WAVEFORM])[_WAVEFORM]


def sounds_to(
    sounds: Sequence[ShotSound | None], slots: MutableMapping[str, torch.Tensor | TensorSlot]
) -> dict[str, Any]:
    """What a reel's file says of the sounds of its shots, nothing where all are silent; their tensors go to `slots`."""
    sections: list[dict[str, Any]] = []
    for shot, sound in enumerate(sounds):
        if sound is not None:
            prefix = f"sounds.{shot}."
            sections.append({"uid": sound.file.uid, "prefix": prefix, "rate": sound.rate, "shot": shot})
            slots.update({prefix + name: slot for name, slot in sound.file.slots.items()})
    return {"sounds": sections} if sections else {}


def sounds_from(header: FileHeader) -> dict[int, ShotSound]:
    """Inverse of sounds_to, by the shots' indices. Raises DecodeError, and ReelError for a file without a waveform."""
    told, shots = Value(header.info).get("sounds"), len(header.info["shots"])
    return {each["shot"].integer(0, shots - 1): _sound_from(each, header) for each in (told.list() if told else ())}


def _sound_from(section: Value, header: FileHeader, owned: bool = False) -> ShotSound:
    file = StoredTensors(header, section["uid"].text(200), owned)
    shape = file.shape(_WAVEFORM)
    if len(shape) != 2 or shape[0] != 2:
        raise section.fault("of a waveform of two channels")
    return ShotSound(section["rate"].integer(1, _MAX_RATE), file)
