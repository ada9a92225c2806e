"""Self-attention over the KV memory: whose implementation runs, after what the user of ComfyUI has chosen.

Dense attention is ComfyUI's own choice, except that cuDNN comes first where it is known to be twice as fast and the
user chose no other. On a GPU that has them, sparse activation's two kernels pick and copy frames; the others run where
LONGREEL_ATTENTION asks for them. Each falls back to its PyTorch twin with a line in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch

from ...film.kv_memory import Call, KVLayout, KVMemory
from ...kernels.backends import is_forced, wanted_backend
from ...kernels.dense import dense_attention, prefers_cudnn
from ...kernels.ops import frame_attention, qk_prep
from ...kernels.reference import rope_tables
from ...kernels.sparse import copy_frames, has_kernel, pick_frames, sparse_runs
from ..transfer import to_device

__all__ = ["Tables", "attend", "prep_tables", "prepare", "wants_prep", "with_slots"]


@dataclass(frozen=True)
class Tables:
    """What QK preparation needs beside a layer's tensors, on the device.

    rope: of `reference.rope_tables`; frames, slots int32 [F]: each frame's row of the first of these, and where its
    keys and values go.
    """

    rope: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    frames: torch.Tensor
    slots: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))


def attend(q: torch.Tensor, layer: int, memory: KVMemory, options: dict[str, Any]) -> torch.Tensor:
    """Attention of q [1, heads, n, head_dim] over the memory: [1, n, heads * head_dim].

    Under sparse activation the picked frames are copied beside the window and attention reads one range, or our kernel
    reads them where they lie.
    """
    chosen = "optimized_attention_override" in options
    found = memory.candidates(layer) if memory.settings.active and (is_forced() or has_kernel(q)) else None
    if found is None:
        keys, values = memory.read(layer, q)
    else:
        (first, means), window, tokens = found, memory.window_slots(), memory.layout.tokens
        arena = (memory.arena.k[layer], memory.arena.v[layer])
        picks = pick_frames(q, means, memory.settings.active)
        memory.note_picks(layer, picks)
        if is_forced() and not chosen:
            return frame_attention(q, *arena, *sparse_runs(picks, first, window, tokens)).flatten(2)
        copy_frames(*arena, picks, first, window.stop, tokens)
        keys, values = memory.read_picked(layer)
    attention = comfy.ldm.modules.attention.optimized_attention
    plain = attention is comfy.ldm.modules.attention.attention_pytorch
    if plain and not chosen and wanted_backend() == "auto" and prefers_cudnn(q):
        return dense_attention(q, keys, values)
    attended: torch.Tensor = attention(
        q, keys, values, heads=q.shape[1], skip_reshape=True, transformer_options=options
    )
    return attended


def wants_prep(options: dict[str, Any]) -> bool:
    """Whether QK preparation is selected, and no patch of the user's needs the queries or other positions."""
    return is_forced() and not options.get("rope_options") and not options.get("patches", {}).get("attn1_patch")


def prep_tables(
    call: Call, grid: torch.Size, layout: KVLayout, device: torch.device, phases: Sequence[float] = ()
) -> Tables:
    """What QK preparation needs for a call over a grid of frames, rows and columns of tokens, but the slots.

    phases: radians added to the temporal angles of each frame, if any.
    """
    frames, rows, columns = grid
    made = rope_tables(frames, rows, columns, layout.head_dim, layout.theta, first=call.place, phases=phases)
    time, row, column = (to_device(table, device) for table in made)
    return Tables((time, row, column), torch.arange(frames, dtype=torch.int32, device=device))


def with_slots(tables: Tables, memory: KVMemory) -> Tables | None:
    """The tables with the slots of the current call; None where a frame of it has none."""
    slots = memory.write_slots()
    if slots is None:
        return None
    return replace(tables, slots=to_device(torch.tensor(slots, dtype=torch.int32), tables.frames.device))


def prepare(attn: Any, layer: int, x: torch.Tensor, memory: KVMemory, tables: Tables) -> torch.Tensor | None:
    """Queries [1, heads, F * T, head_dim] of x [1, F * T, dim], keys and values written into the memory, in one kernel.

    None where this layer cannot: its norms are patched.
    """
    norms, at = (attn.norm_q, attn.norm_k), tables.slots
    if any(getattr(norm, "weight_function", ()) or norm.weight is None for norm in norms):
        return None
    q_weight, k_weight = (comfy.model_management.cast_to(norm.weight, dtype=x.dtype, device=x.device) for norm in norms)
    arena, layout = memory.arena, memory.layout
    means = torch.zeros((1, layout.heads, arena.slots, layout.head_dim), device=x.device)
    made = (attn.q(x), attn.k(x), attn.v(x), q_weight, k_weight, tables.rope, tables.frames)
    q, _ = qk_prep(*made, arena.k[layer], arena.v[layer], means, at, eps=attn.norm_q.eps)
    memory.written(layer, means[0][:, at.long()])
    return q
