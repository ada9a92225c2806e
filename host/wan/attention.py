"""Self-attention over the KV memory: whose implementation runs, after what the user of ComfyUI has chosen.

Dense attention is ComfyUI's own choice, except that cuDNN comes first where it is known to be twice as fast and the
user chose no other. Our kernels run where LONGREEL_ATTENTION asks for them: their speed is not known yet
(benchmarks/frame_attention.py), and each falls back to its PyTorch twin with a line in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch

from ...film.kv_memory import Call, KVLayout, KVMemory
from ...kernels.backends import is_forced, wanted_backend
from ...kernels.dense import dense_attention, prefers_cudnn
from ...kernels.ops import frame_attention, qk_prep
from ...kernels.reference import rope_tables
from ...kernels.runs import slot_runs

__all__ = ["Tables", "attend", "prep_tables", "prepare"]

Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend(q: torch.Tensor, layer: int, memory: KVMemory, options: dict[str, Any]) -> torch.Tensor:
    """Attention of q [1, heads, n, head_dim] over the memory: [1, n, heads * head_dim].

    Under sparse activation the picked frames are copied beside the window and attention reads one range, or our kernel
    reads them where they lie.
    """
    arena, chosen = memory.arena, "optimized_attention_override" in options
    if memory.settings.active and is_forced() and not chosen:
        picks = memory.pick(layer, q)
        if picks is not None:
            slots = memory.window_slots()
            window = torch.arange(slots.start, slots.stop, device=q.device).expand(len(picks), -1)
            runs, count = slot_runs(torch.cat((picks, window), dim=1)[None, :, None], memory.layout.tokens)
            return frame_attention(q, arena.k[layer], arena.v[layer], runs, count).flatten(2)
    keys, values = memory.read(layer, q)
    attention = comfy.ldm.modules.attention.optimized_attention
    plain = attention is comfy.ldm.modules.attention.attention_pytorch
    if plain and not chosen and wanted_backend() == "auto" and prefers_cudnn(q):
        return dense_attention(q, keys, values)
    attended: torch.Tensor = attention(
        q, keys, values, heads=q.shape[1], skip_reshape=True, transformer_options=options
    )
    return attended


def prep_tables(
    call: Call,
    grid: torch.Size,
    layout: KVLayout,
    device: torch.device,
    options: dict[str, Any],
    phases: Sequence[float] = (),
) -> Tables | None:
    """The RoPE tables that QK preparation needs for a call over a grid of frames, rows and columns of tokens.

    phases: radians added to the temporal angles of each frame, if any.

    None where it must not run: not selected, or a patch of the user's needs the queries or other positions.
    """
    if not is_forced() or options.get("rope_options") or options.get("patches", {}).get("attn1_patch"):
        return None
    frames, rows, columns = grid
    return rope_tables(frames, rows, columns, layout.head_dim, layout.theta, device, first=call.place, phases=phases)


def prepare(attn: Any, layer: int, x: torch.Tensor, memory: KVMemory, tables: Tables) -> torch.Tensor | None:
    """Queries [1, heads, F * T, head_dim] of x [1, F * T, dim], keys and values written into the memory, in one kernel.

    None where this layer cannot: its norms are patched, or a frame of the call has no slot.
    """
    slots, norms = memory.write_slots(), (attn.norm_q, attn.norm_k)
    if slots is None or any(getattr(norm, "weight_function", ()) or norm.weight is None for norm in norms):
        return None
    q_weight, k_weight = (comfy.model_management.cast_to(norm.weight, dtype=x.dtype, device=x.device) for norm in norms)
    arena, layout = memory.arena, memory.layout
    at = torch.tensor(slots, dtype=torch.int32).to(x.device, non_blocking=True)
    frame = torch.arange(len(slots), dtype=torch.int32, device=x.device)
    means = torch.zeros((1, layout.heads, arena.slots, layout.head_dim), device=x.device)
    q, _ = qk_prep(
        attn.q(x), attn.k(x), attn.v(x), q_weight, k_weight, tables, frame, arena.k[layer], arena.v[layer], means, at,
        eps=attn.norm_q.eps,
    )  # fmt: skip
    memory.written(layer, means[0][:, at.long()])
    return q
