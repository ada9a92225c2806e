"""The KV memory on a reel of the causal engine: restored for the next shot, retrieved from, pinned and banned.

Pins and bans are an edit of the reel, applied when the next shot restores the memory, so that an edited reel costs no
second copy of its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from comfy.sd import VAE
from torch import Tensor

from ..film.kv_memory import MemoryEditError, MemorySnapshot, check_edit, edit, recall
from ..film.kv_memory.recall import RetrievedFrame
from ..film.reel.edit import Edit
from ..film.reel.groups import Carrier, KVLogGroup, KVMemoryGroup, KVPinsGroup
from ..film.reel.reel import FilmedShot, Reel, ReelError
from ..host.files.paths import spill_folder
from .engine import Engine, EngineError

__all__ = ["KVBankEngine", "decode_stills", "kv_bank_engine", "memory_log", "pin_and_ban", "restore", "retrieve"]


class KVBankEngine(Engine, Protocol):
    """An engine with a KV memory bank."""

    def retrieve(self, reel: Reel, prompt: str, top: int) -> tuple[list[RetrievedFrame], Tensor]: ...


def kv_bank_engine(engine: Engine) -> KVBankEngine:
    """The engine, if it says that it has a KV memory bank. Raises EngineError otherwise."""
    if "kv_bank" not in engine.capabilities.edits:
        raise EngineError("Only the causal engine has this kind of memory: connect a Causal Engine.")
    return cast(KVBankEngine, engine)


def restore(reel: Reel) -> MemorySnapshot | None:
    """The KV memory after the reel's last shot, pins and bans applied; None if that shot left none."""
    group = None if reel.last_shot is None else KVMemoryGroup.of(reel.last_shot)
    if group is None:
        return None
    return edit(MemorySnapshot(group.tensors(), group.meta), *_pins_and_bans(reel))


def pin_and_ban(reel: Reel, pin: Iterable[int], ban: Iterable[int]) -> Reel:
    """The reel with latent frames of its memory bank pinned (they never leave it) and banned (they are evicted).

    Given twice, the newer word holds. Raises MemoryEditError for frames the bank does not hold, ReelError for a reel
    without a KV memory.
    """
    group = _memory(reel)
    pins, bans = set(pin), set(ban)
    if not pins and not bans:
        return reel
    if pins & bans:
        raise MemoryEditError(f"Latent frame {min(pins & bans)} is both pinned and banned: take it off one list.")
    pinned, banned = _pins_and_bans(reel)
    held = group.tensors(["bank.positions"])["bank.positions"] if group.has_bank else torch.empty(0)
    check_edit(group.meta, held, pins | (pinned - bans), bans | (banned - pins))
    changes = {KVPinsGroup.NAME: {"pin": sorted(pins), "ban": sorted(bans)}}
    return reel.edited(Edit.store(len(reel.shots), {}, changes, spill_folder()))


def retrieve(reel: Reel, text: Tensor) -> list[RetrievedFrame]:
    """Sink and bank of the reel by how well they fit a prompt, best first, banned frames left out and pinned marked.

    text: the prompt's mean cross-attention keys [layers, heads, head_dim] fp32. Raises ReelError.
    """
    group = _memory(reel)
    tensors = group.tensors(["sink.means", *(["bank.means", "bank.positions"] if group.has_bank else [])])
    pinned, banned = _pins_and_bans(reel)
    found = [item for item in recall(tensors, group.meta, text) if item.frame not in banned]
    return [replace(item, pinned=True) if item.frame in pinned else item for item in found]


def decode_stills(vae: VAE, reel: Reel, frames: Iterable[int]) -> Tensor:
    """Latent frames of the film, as the KV memory counts them, each decoded alone: [n, H, W, 3] in 0..1."""
    stills = []
    for frame in frames:
        shot, index = _where(reel, frame)
        image: Tensor = vae.decode(shot.latents(index, index + 1))
        stills.append(image.reshape(-1, *image.shape[-3:])[:1])
    return torch.cat(stills)


def memory_log(reel: Reel) -> list[dict[str, Any]]:
    """What every block of the reel's causal shots attended to, oldest first; `shot` and `block`, from 1, are added."""
    lines = []
    for number, shot in enumerate(reel.shots, 1):
        log = KVLogGroup.of(shot)
        lines += [{"shot": number, "block": block, **seen} for block, seen in enumerate(log.blocks if log else (), 1)]
    return lines


def _where(reel: Reel, frame: int) -> tuple[FilmedShot, int]:
    """The shot that holds latent frame `frame` of the film as the memory counts, and the frame's number in it."""
    for number, shot in enumerate(reel.shots):
        memory = KVMemoryGroup.of(shot)
        if memory is None:
            continue
        index = frame - (memory.position - shot.latent_frames)
        if 0 <= index < shot.latent_frames:
            return shot, index
        # The memory may begin with the last frames of a shot that another engine filmed.
        for before in reversed(reel.shots[:number]):
            if index >= 0 or KVMemoryGroup.of(before):
                break
            index += before.latent_frames
            if index >= 0:
                return before, index
    raise ReelError(f"Latent frame {frame} is no longer on this reel: film the story again from its start.")


def _memory(reel: Reel) -> KVMemoryGroup:
    group = None if reel.last_shot is None else KVMemoryGroup.of(reel.last_shot)
    if group is None:
        raise ReelError("Nothing is remembered yet: film a shot with the causal engine first.")
    return group


def _pins_and_bans(reel: Reel) -> tuple[set[int], set[int]]:
    """Latent frames pinned and banned since the reel's last shot, which may carry those of an older version itself."""
    pins: set[int] = set()
    bans: set[int] = set()
    carriers: list[Carrier] = [*reel.shots[-1:], *reel.edits_after(len(reel.shots))]
    for carrier in carriers:
        if group := KVPinsGroup.of(carrier):
            pins = (pins - group.banned) | group.pinned
            bans = (bans - group.pinned) | group.banned
    return pins, bans
