"""What a reel of the causal engine remembers: woken for the next shot, looked at, asked, pinned and banned.

Pins and bans are kept as a note beside the memory they change and obeyed when the next shot wakes it, so that an edited
reel costs no second copy of its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy.sd import VAE
from torch import Tensor

from ..film.kv_memory import MemoryEditError, MemorySnapshot, check_edit, edit, recall
from ..film.kv_memory.recall import RetrievedFrame
from ..film.reel.reel import FilmedShot, Reel, ReelError

__all__ = ["MEMORY_LOG", "memory_log", "pictures", "pin_and_ban", "remembered", "wake"]

MEMORY_LOG = "memory_log"
"""Metadata group of a shot: what each of its blocks saw, see film.kv_memory.observe."""
_EDIT = "memory_edit"


def wake(filmed: FilmedShot) -> MemorySnapshot | None:
    """What a shot left to remember, pins and bans obeyed; None if it left nothing."""
    if not filmed.memory_meta:
        return None
    memory = MemorySnapshot(filmed.memory(), filmed.memory_meta)
    changes = _changes(filmed)
    return edit(memory, changes["pin"], changes["ban"])


def pin_and_ban(reel: Reel, pin: Iterable[int], ban: Iterable[int]) -> Reel:
    """The reel with latent frames of its memory bank pinned (they never leave it) and banned (they are forgotten).

    Given twice, the newer word holds. Raises MemoryEditError for frames the bank does not hold, ReelError for a reel
    without a causal memory.
    """
    last = _remembering(reel)
    pins, bans = set(pin), set(ban)
    if not pins and not bans:
        return reel
    if pins & bans:
        raise MemoryEditError(f"Latent frame {min(pins & bans)} is both pinned and banned: take it off one list.")
    before = _changes(last)
    pins |= set(before["pin"]) - bans
    bans |= set(before["ban"]) - pins
    held = last.file.load(["memory.bank.positions"]) if last.memory_meta["bank"] else {}
    check_edit(last.memory_meta, held.get("memory.bank.positions", torch.empty(0)), pins, bans)
    changes = {"pin": sorted(pins), "ban": sorted(bans)}
    settings = {**last.settings, _EDIT: changes}
    changed = replace(last, settings=settings, meta={**last.meta, _EDIT: changes})
    return replace(reel, shots=(*reel.shots[:-1], changed))


def remembered(reel: Reel, text: Tensor) -> list[RetrievedFrame]:
    """Sink and bank of the reel by how well they fit a prompt, best first, bans left out and pins marked.

    text: the prompt's mean cross-attention keys [layers, heads, head_dim] fp32. Raises ReelError.
    """
    last = _remembering(reel)
    named = ["sink.means"] + (["bank.means", "bank.positions"] if last.memory_meta["bank"] else [])
    tensors = {name: last.file.load([f"memory.{name}"])[f"memory.{name}"] for name in named}
    changes = _changes(last)
    found = [item for item in recall(tensors, last.memory_meta, text) if item.frame not in changes["ban"]]
    return [replace(item, pinned=True) if item.frame in changes["pin"] else item for item in found]


def pictures(vae: VAE, reel: Reel, frames: Iterable[int]) -> Tensor:
    """Latent frames of the film, each decoded alone as a still: [n, H, W, 3] in 0..1."""
    stills = []
    for frame in frames:
        shot, index = _where(reel, frame)
        image: Tensor = vae.decode(shot.latents(index, index + 1))
        stills.append(image.reshape(-1, *image.shape[-3:])[:1])
    return torch.cat(stills)


def memory_log(reel: Reel) -> list[dict[str, Any]]:
    """What every block of the reel's causal shots saw, oldest first; `shot` and `block`, from 1, are added."""
    lines = []
    for number, shot in enumerate(reel.shots, 1):
        blocks: list[Mapping[str, Any]] = shot.meta.get(MEMORY_LOG, [])
        lines += [{"shot": number, "block": block, **seen} for block, seen in enumerate(blocks, 1)]
    return lines


def _where(reel: Reel, frame: int) -> tuple[FilmedShot, int]:
    """The shot that holds latent frame `frame` of the film as the memory counts, and the frame's number in it."""
    for shot in reel.shots:
        if shot.memory_meta:
            index = frame - (int(shot.memory_meta["position"]) - shot.latent_frames)
            if 0 <= index < shot.latent_frames:
                return shot, index
    raise ReelError(f"Latent frame {frame} is no longer on this reel: film the story again from its start.")


def _remembering(reel: Reel) -> FilmedShot:
    last = reel.last_shot
    if last is None or not last.memory_meta:
        raise ReelError("Nothing is remembered yet: film a shot with the causal engine first.")
    return last


def _changes(filmed: FilmedShot) -> Mapping[str, list[int]]:
    changes: Mapping[str, list[int]] = filmed.meta.get(_EDIT, {"pin": [], "ban": []})
    return changes
