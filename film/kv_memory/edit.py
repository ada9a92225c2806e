"""Edit the bank: pin frames so that they are never evicted, ban frames so that they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .snapshot import MemorySnapshot

__all__ = ["MemoryEditError", "check_edit", "edit"]


class MemoryEditError(ValueError):
    """Pins and bans that cannot be obeyed; the message is one sentence that says what to change."""


def check_edit(meta: Any, held: torch.Tensor, pin: Iterable[int], ban: Iterable[int]) -> None:
    """Raise MemoryEditError unless a memory with the snapshot metadata `meta` can be edited so.

    held: the snapshot's `bank.positions` [layers, bank]; pin, ban: latent frames of the film.
    """
    bank, pins, bans = meta["bank"], set(pin), set(ban)
    if bank is None:
        raise MemoryEditError("This film has no memory bank, so nothing can be pinned or banned: film it with a bank.")
    known = {frame for frame in held.flatten().tolist() if frame >= 0}
    strangers = sorted((pins | bans) - known)
    if strangers:
        raise MemoryEditError(
            f"Latent frame {strangers[0]} is not in the memory bank, which holds {', '.join(map(str, sorted(known)))}: "
            "choose among these."
        )
    if pins & bans:
        raise MemoryEditError(f"Latent frame {min(pins & bans)} is both pinned and banned: take it off one list.")
    pinned = torch.tensor(sorted((pins | set(bank.get("pinned", ()))) - bans))
    if torch.isin(held, pinned).all(dim=1).any():
        raise MemoryEditError(
            f"The pinned frames {', '.join(map(str, pinned.tolist()))} leave no room to remember in a bank of "
            f"{held.shape[1]}: pin fewer."
        )
    if pins and meta["settings"]["record"] == "single":
        raise MemoryEditError("Pins need a bank that records interactively: set record to interactive and film anew.")


def edit(saved: MemorySnapshot, pin: Iterable[int], ban: Iterable[int]) -> MemorySnapshot:
    """`saved` with frames pinned and banned; the original stays as it is.

    A layer that does not hold a banned frame gives up its newest one that is not pinned, because all layers remember
    equally many; the places that become free are filled by the next frames recorded. Raises MemoryEditError.
    """
    pins, bans = set(pin), set(ban)
    if not pins and not bans:
        return saved
    check_edit(saved.meta, saved.tensors.get("bank.positions", torch.empty(0)), pins, bans)
    bank = dict(saved.meta["bank"])
    meta = {**saved.meta, "bank": bank}
    bank["pinned"] = sorted((pins | set(bank.get("pinned", ()))) - bans)
    if bank["pending"] in bans or not bank["pending_is_new"]:
        # one that has been folded is in the bank already; offered again it would take a place of those kept
        bank["pending"], bank["pending_is_new"] = None, False
    tensors = dict(saved.tensors)
    positions, order, filled = tensors["bank.positions"], tensors["bank.order"], bank["filled"]
    layers, size = positions.shape
    rows = [[int(slot) for slot in order[layer, :filled]] for layer in range(layers)]
    most = max(sum(int(positions[layer, slot]) in bans for slot in row) for layer, row in enumerate(rows))
    left = bank["filled"] = filled - most
    bank["recorded"] = left + bank["pending_is_new"]
    if not most:
        return MemorySnapshot(saved.tensors, meta)
    kept = torch.tensor(
        [_kept(row, positions[layer], bans, set(bank["pinned"]), most) for layer, row in enumerate(rows)],
        dtype=torch.long,
    ).view(layers, left)
    # the original's slot i lies at arena slot size - 1 - i, so that what is filled ends at the sink
    places = torch.arange(size - 1, size - 1 - left, -1)
    layer = torch.arange(layers)[:, None]
    for name, empty in (("bank.positions", -1), ("bank.means", 0)):
        moved = torch.full_like(tensors[name], empty)
        moved[:, places] = tensors[name][layer, kept]
        tensors[name] = moved
    tensors["bank.order"] = torch.arange(size - 1, -1, -1).repeat(layers, 1)
    tokens = meta["layout"]["tokens"]
    for name, base in (("k", 1), ("v", 1), ("bank.canonical", 0)):
        if name not in tensors:
            continue
        old = tensors[name] if name == "bank.canonical" else tensors[name].unflatten(2, (-1, tokens))
        moved = old.clone()
        moved[layer, :, base + places] = old[layer, :, base + kept]
        tensors[name] = moved if name == "bank.canonical" else moved.flatten(2, 3)
    return MemorySnapshot(tensors, meta)


def _kept(row: list[int], positions: torch.Tensor, bans: set[int], pins: set[int], leave: int) -> list[int]:
    """The slots of `row` that stay when `leave` go: banned frames first, then the newest that are not pinned."""

    def keeps(slot: int) -> tuple[bool, bool, int]:
        frame = int(positions[slot])
        return frame not in bans, frame in pins, -frame

    going = set(sorted(row, key=keeps)[:leave])
    return [slot for slot in row if slot not in going]
