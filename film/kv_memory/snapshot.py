"""Save a KV memory as tensors and plain values, and restore it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .arena import KVLayout
from .kv import KVMemory
from .settings import MemorySettings

__all__ = ["MemoryMismatchError", "MemorySnapshot", "restore", "snapshot"]

_FORMAT = 1
_DAMAGED = "The saved memory is not whole: film the last shot of this reel again."
# settings that shape the arena; the others may change between two shots
_STRUCTURAL = ("window", "sink", "bank", "positions", "sink_from")


class MemoryMismatchError(ValueError):
    """A snapshot of another model, size or kind of memory; the message is one sentence that says which."""


@dataclass(frozen=True)
class MemorySnapshot:
    """A KV memory at rest. tensors: on the CPU, named; meta: JSON-able. Never changed after it was taken."""

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    meta: Mapping[str, Any]

    @property
    def position(self) -> int:
        """Latent frames filmed when it was taken."""
        return int(self.meta["position"])

    @property
    def nbytes(self) -> int:
        """Size of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def snapshot(memory: KVMemory) -> MemorySnapshot:
    """Copy everything a later block can depend on to the CPU. Only between blocks: raises RuntimeError inside one.

    Slots are kept where they are, not sorted, so that continuing sums the same keys in the same order.
    """
    if memory.in_block:
        raise RuntimeError("A KV memory can only be saved between blocks.")
    layers = range(memory.layout.layers)
    used = memory.arena.ring_base + memory.ring_count
    tensors = {}
    for name, side in (("k", 0), ("v", 1)):
        tensors[name] = torch.stack([memory.arena.span(layer, 0, used)[side][0].cpu() for layer in layers])
    tensors["text"] = memory.text.cpu().clone()
    tensors["sink.means"] = memory.sink_means.cpu().clone()
    if memory.sink_canonical is not None:
        tensors["sink.canonical"] = torch.stack([keys.cpu() for keys in memory.sink_canonical])
    if memory.bank is not None:
        tensors |= {f"bank.{name}": tensor.cpu().clone() for name, tensor in memory.bank.tensors().items()}
    clean = memory.clean_latents()
    if clean is not None:
        tensors["clean"] = clean.cpu().clone()
    meta = {
        "format": _FORMAT,
        "layout": memory.layout.to_json(),
        "settings": memory.settings.to_json(),
        "frames_per_block": memory.frames_per_block,
        "position": memory.position,
        "sink": list(memory.sink),
        "ring_start": memory.ring_start,
        "ring_count": memory.ring_count,
        "text_known": memory.text_known,
        "bank": memory.bank.meta() if memory.bank else None,
    }
    if memory.settings.sink_from == "shots":
        meta |= {"take": memory.take, "origin": memory.origin}
    return MemorySnapshot(tensors, meta)


def restore(
    saved: MemorySnapshot,
    layout: KVLayout,
    settings: MemorySettings,
    *,
    frames_per_block: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    capacity: int = 0,
) -> KVMemory:
    """A memory in the state of `saved`; the arguments are those of KVMemory and must describe the same memory.

    capacity: frames an unbounded window makes room for beyond those saved. Raises MemoryMismatchError.
    """
    check(saved, layout, settings, frames_per_block=frames_per_block)
    meta, tensors = saved.meta, saved.tensors
    memory = KVMemory(
        layout,
        settings,
        frames_per_block=frames_per_block,
        dtype=dtype,
        device=device,
        capacity=meta["ring_count"] + capacity,
    )
    used = memory.arena.ring_base + meta["ring_count"]
    keys = memory.arena.span(0, 0, used)[0][0]
    for name in ("k", "v"):
        _check_shape(tensors, name, (layout.layers, *keys.shape))
    _check_shape(tensors, "text", memory.text.shape)
    _check_shape(tensors, "sink.means", memory.sink_means.shape)
    if memory.sink_canonical is not None:
        _check_shape(tensors, "sink.canonical", (layout.layers, *memory.sink_canonical[0].shape))
    for layer in range(layout.layers):
        k, v = memory.arena.span(layer, 0, used)
        k[0].copy_(tensors["k"][layer])
        v[0].copy_(tensors["v"][layer])
        if memory.sink_canonical is not None:
            memory.sink_canonical[layer].copy_(tensors["sink.canonical"][layer])
    memory.text.copy_(tensors["text"])
    memory.sink_means.copy_(tensors["sink.means"])
    if memory.bank is not None:
        named = {name.removeprefix("bank."): t for name, t in tensors.items() if name.startswith("bank.")}
        for name, like in memory.bank.tensors().items():
            _check_shape(named, name, like.shape)
        if not isinstance(meta["bank"], Mapping):
            raise MemoryMismatchError(_DAMAGED)
        try:
            memory.bank.load(named, dict(meta["bank"]))
        except KeyError as error:
            raise MemoryMismatchError(f"The saved memory's bank lacks {error}: film that shot again.") from error
    if "clean" in tensors:
        memory.clean = [tensors["clean"].to(device)]
    memory.position, memory.sink = meta["position"], list(meta["sink"])
    memory.ring_start, memory.ring_count = meta["ring_start"], meta["ring_count"]
    memory.text_known = meta["text_known"]
    memory.take, memory.origin = meta.get("take", 0), meta.get("origin", 0)
    return memory


def check(saved: MemorySnapshot, layout: KVLayout, settings: MemorySettings, *, frames_per_block: int) -> None:
    """Raise MemoryMismatchError unless `saved` fits this model, latent size, block size and shape of memory."""
    if saved.meta.get("format") != _FORMAT:
        raise MemoryMismatchError("The saved memory has another format; film this reel again with this version.")
    if saved.meta["layout"] != layout.to_json():
        raise MemoryMismatchError(
            "The saved memory belongs to another model or picture size; use those the reel was filmed with."
        )
    if saved.meta["frames_per_block"] != frames_per_block:
        raise MemoryMismatchError(
            f"The saved memory was made with {saved.meta['frames_per_block']} frames per block, "
            f"not {frames_per_block}; set the same number again."
        )
    try:
        then = MemorySettings.from_json(saved.meta["settings"])
    except TypeError as error:
        raise MemoryMismatchError(_DAMAGED) from error
    keys = saved.tensors.get("k")
    # Of this many frames the memory is made, so no more than there are may be claimed.
    if keys is None or keys.ndim < 2 or saved.meta["ring_count"] * layout.tokens > keys.shape[-2]:
        raise MemoryMismatchError(_DAMAGED)
    for name in _STRUCTURAL:
        was, now = getattr(then, name), getattr(settings, name)
        if was != now:
            raise MemoryMismatchError(
                f"The saved memory has {name} {was}, the memory settings now say {now}; set {was} again or film anew."
            )


def _check_shape(tensors: Mapping[str, torch.Tensor], name: str, shape: Sequence[int]) -> None:
    if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
        raise MemoryMismatchError(_DAMAGED)
