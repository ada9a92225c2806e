"""The KV memory of causal video models: sink, ring window, memory bank, sparse activation. Pure PyTorch.

Example:

    memory = KVMemory(layout, MEMFLOW, frames_per_block=3, dtype=torch.bfloat16, device="cuda")
    call = memory.begin_call(CallKind.DENOISE, 3)
    for layer in range(layout.layers):
        memory.write(layer, k, v)             # keys rotated at call.place
        keys, values = memory.read(layer, q)  # attend to these
    memory.end_call()
"""

from .arena import FrameArena, KVLayout
from .edit import MemoryEditError, check_edit, edit
from .kv import Call, CallKind, KVMemory
from .log import Observation, observe
from .recall import RetrievedFrame, recall
from .settings import (
    LONGLIVE,
    MEMFLOW,
    PRESETS,
    SELF_FORCING,
    SHOTSTREAM,
    UNBOUNDED,
    MemorySettings,
    MemorySettingsError,
)
from .snapshot import MemoryMismatchError, MemorySnapshot, restore, snapshot

__all__ = [
    "LONGLIVE",
    "MEMFLOW",
    "PRESETS",
    "SELF_FORCING",
    "SHOTSTREAM",
    "UNBOUNDED",
    "Call",
    "CallKind",
    "FrameArena",
    "KVLayout",
    "KVMemory",
    "MemoryEditError",
    "MemoryMismatchError",
    "MemorySettings",
    "MemorySettingsError",
    "MemorySnapshot",
    "Observation",
    "RetrievedFrame",
    "check_edit",
    "edit",
    "observe",
    "recall",
    "restore",
    "snapshot",
]
