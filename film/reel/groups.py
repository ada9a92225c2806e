"""The groups of a reel: what rides on a shot or an edit beside the latents, under which name, and how to read it.

A group is tensors and JSON metadata under one name (see reel.py). Engines write them, reports and nodes read them; the
names stand nowhere else. A method that keeps something of its own on a reel adds its group here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from typing_extensions import Self

from .stored_tensors import StoredTensors
from .tensor_file import ReelError

__all__ = [
    "Carrier",
    "Group",
    "GroupTensors",
    "KVLogGroup",
    "KVMemoryGroup",
    "KVPinsGroup",
    "KeyframeGroup",
    "ShownKeyframesGroup",
    "StatesGroup",
    "TransitionGroup",
    "groups_until",
]

GroupTensors = dict[str, dict[str, torch.Tensor]]
"""Tensors by group and name, as FilmedShot.store and Edit.store take them."""


class Carrier(Protocol):
    """What groups ride on: a FilmedShot or an Edit."""

    @property
    def meta(self) -> Mapping[str, Any]: ...
    @property
    def file(self) -> StoredTensors: ...


@dataclass(frozen=True, eq=False)
class Group:
    """A group of a shot or an edit. meta: its metadata, JSON-able. file: where its tensors are."""

    NAME: ClassVar[str]
    """The key in the file, a public format."""

    meta: Any
    file: StoredTensors

    @classmethod
    def of(cls, carrier: Carrier) -> Self | None:
        """The group that a shot or an edit carries, None if it carries none."""
        meta = carrier.meta.get(cls.NAME)
        return None if meta is None else cls(_told(meta, cls.NAME), carrier.file)

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Its tensors of these names, on the CPU; all if None. Raises as StoredTensors.load."""
        if names is None:
            return self.file.group(self.NAME)
        loaded = self.file.load([f"{self.NAME}.{name}" for name in names])
        return {name.removeprefix(f"{self.NAME}."): tensor for name, tensor in loaded.items()}


class _Told(dict[str, Any]):
    """Metadata of a file: what is missing is the file's fault and not the reader's."""

    group: str

    def __missing__(self, key: str) -> Any:
        raise ReelError(f"The {self.group} of a filmed shot has no {key!r}: film that shot again, or use another copy.")


def _told(value: Any, group: str) -> Any:
    if isinstance(value, Mapping):
        told = _Told({key: _told(item, group) for key, item in value.items()})
        told.group = group
        return told
    return [_told(item, group) for item in value] if isinstance(value, list) else value


class KVMemoryGroup(Group):
    """The KV memory as it was after a causal shot: a film.kv_memory.MemorySnapshot's tensors and metadata."""

    NAME = "memory"

    @property
    def position(self) -> int:
        """Latent frames that the memory had counted when the shot was done."""
        return int(self.meta["position"])

    @property
    def has_bank(self) -> bool:
        """Whether it holds a bank, filled or not."""
        return bool(self.meta["bank"])


class KVLogGroup(Group):
    """What each block of a causal shot attended to, see film.kv_memory.observe; no tensors."""

    NAME = "memory_log"

    @property
    def blocks(self) -> Sequence[Mapping[str, Any]]:
        """One entry for each block, in order."""
        blocks: Sequence[Mapping[str, Any]] = self.meta
        return blocks


class KVPinsGroup(Group):
    """Latent frames of the bank that the user pinned and banned, on an edit; no tensors.

    Reels of before there were edits carry it on the shot whose memory it changes.
    """

    NAME = "memory_edit"

    @property
    def pinned(self) -> set[int]:
        """Latent frames that never leave the bank."""
        return set(self.meta["pin"])

    @property
    def banned(self) -> set[int]:
        """Latent frames that are evicted at once."""
        return set(self.meta["ban"])


class KeyframeGroup(Group):
    """Keyframes that a shot or an edit brought: what film.dual_cache.pack made."""

    NAME = "cache"
    _PARTS = ("luma", "chroma", "latent", "embedding")

    @property
    def shot(self) -> int:
        """Number, from 0, under which the shot was filmed."""
        return int(self.meta["shot"])

    @property
    def covers(self) -> Sequence[int]:
        """How many shots back lie those without keyframes of their own, whose keyframes are among these."""
        covers: Sequence[int] = self.meta.get("covers", ())
        return covers

    @property
    def own(self) -> set[str]:
        """Uids of keyframes that the shot itself is remembered by."""
        return {entry["uid"] for entry in self.meta["bank"] if entry["shot"] == self.shot}

    def until(self, latent_frames: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and metadata of the group without the shot's own keyframes from that latent frame on."""
        entries = self.meta["bank"]
        stays = [i for i, entry in enumerate(entries) if entry["shot"] != self.shot or entry["frame"] < latent_frames]
        tensors = self.tensors()
        kept = {f"{new}.{part}": tensors[f"{old}.{part}"] for new, old in enumerate(stays) for part in self._PARTS}
        return kept, {**self.meta, "bank": [entries[i] for i in stays]}


class ShownKeyframesGroup(Group):
    """Which keyframes each chunk of a shot was conditioned on; no tensors."""

    NAME = "told"

    @property
    def uids(self) -> list[str]:
        """Of all chunks, each once, in the order of first use."""
        return list(dict.fromkeys(uid for chunk in self.meta for uid in chunk))


class StatesGroup(Group):
    """The states that an instruction was filmed by: for each chunk of the shot a list of sentences."""

    NAME = "states"

    @property
    def chunks(self) -> list[list[str]]:
        """The sentences, chunk by chunk."""
        return [list(map(str, chunk)) for chunk in self.meta]


class TransitionGroup(Group):
    """Where a shot that was filmed from a composed first frame begins; no tensors."""

    NAME = "transition"

    @property
    def lead(self) -> int:
        """Frames at the beginning of the take that are trimmed."""
        return int(self.meta.get("lead", 0))


def groups_until(shot: Carrier, latent_frames: int) -> tuple[GroupTensors, dict[str, Any]]:
    """Tensors and metadata of what still holds of a shot that is cut short to so many latent frames.

    Its keyframes up to there and its transition; the KV memory was taken after its last frame, so it does not.
    """
    tensors: GroupTensors = {}
    meta: dict[str, Any] = {}
    if keyframes := KeyframeGroup.of(shot):
        tensors[KeyframeGroup.NAME], meta[KeyframeGroup.NAME] = keyframes.until(latent_frames)
    if transition := TransitionGroup.of(shot):
        meta[TransitionGroup.NAME] = transition.meta
    return tensors, meta
