"""Run a stock Wan model block by block with our KV memory instead of full attention.

Only the layers the model already has are called, so LoRA patches, fp8 and GGUF weights, offloading and hooks work as in
ComfyUI. The forward pass is put in place for one sampling run by a DIFFUSION_MODEL wrapper in transformer_options; the
model itself is never changed. Facts: docs/methods/memflow.md and ComfyUI's comfy/ldm/wan/model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import comfy.ldm.common_dit
import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.model_management
import comfy.patcher_extension
import comfy.quant_ops
import torch

from ...film.kv_memory import CallKind, KVMemory
from ..memory_graph import outside_memory_graph
from .attention import Tables, attend, prep_tables, prepare, wants_prep, with_slots
from .causal_models import UnsupportedModelError
from .other_nodes import forward_fault, is_compiled
from .positions import rotation_matrices, sinusoids, time_frequencies
from .weak_guidance import take_value_attention

__all__ = [
    "CausalPass",
    "causal_forward",
    "install",
    "mean_text_keys",
]

_KEY = "longreel_causal"

TransformerOptions = dict[str, Any]
_Kept = TypeVar("_Kept")


@dataclass
class CausalPass:
    """What a forward pass needs beyond its usual inputs; one object serves a whole rollout.

    memory: the KV memory; kind and frames: of the coming pass; given: leading frames of it that are already clean, at
    timestep 0; calls: forward passes of the prompt since begin(); batches: evaluations of conditionings since begin(),
    the later ones for guidance; text: keys and values of the current prompt per layer, dropped by new_prompt();
    context: that prompt [1, rows, text width]; tables: what a kernel of ours needs that applies RoPE in the current
    pass; phases: radians added to the temporal angles of each frame of the coming pass, if any; rows: the rows of the
    prompt that each frame of it reads (the first, and how many), all where empty; kept: what passes share, the last
    value by name with what it was made for.
    """

    memory: KVMemory
    kind: CallKind = CallKind.DENOISE
    frames: int = 0
    given: int = 0
    calls: int = 0
    batches: int = 0
    text: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    context: torch.Tensor | None = None
    tables: Tables | None = None
    phases: list[float] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    kept: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)

    def keep(self, name: str, key: Hashable, make: Callable[[], _Kept]) -> _Kept:
        """What `make` gives, made anew only when `key` is another than last time."""
        found = self.kept.get(name)
        if found is None or found[0] != key:
            found = self.kept[name] = (key, make())
        kept: _Kept = found[1]
        return kept

    def begin(self, kind: CallKind, frames: int) -> None:
        """The next evaluation of the prompt is of this kind, over so many frames."""
        self.kind, self.frames, self.calls, self.batches = kind, frames, 0, 0

    def new_prompt(self) -> None:
        """Drop the keys of the last prompt."""
        self.text, self.context = [], None
        self.memory.forget_text()


def install(transformer_options: TransformerOptions, state: CausalPass) -> None:
    """Route the forward passes of one sampling run through `state`; `transformer_options` must be that run's own."""
    transformer_options[_KEY] = state
    # Positions and the memory change with every pass: compiling would only begin again and again.
    forward = torch.compiler.disable(_causal_wrapper) if is_compiled(transformer_options) else _causal_wrapper
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in ((kinds.CALC_COND_BATCH, _count_batch), (kinds.DIFFUSION_MODEL, forward)):
        comfy.patcher_extension.add_wrapper_with_key(kind, _KEY, wrapper, transformer_options)


def _count_batch(
    executor: comfy.patcher_extension.WrapperExecutor,
    model: Any,
    conds: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    model_options: dict[str, Any],
) -> Any:
    """CALC_COND_BATCH wrapper: the first evaluation is the film's, later ones are what guidance compares it with."""
    model_options["transformer_options"][_KEY].batches += 1
    return executor(model, conds, x, timestep, model_options)


def _causal_wrapper(
    executor: comfy.patcher_extension.WrapperExecutor,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None = None,
    time_dim_concat: torch.Tensor | None = None,
    transformer_options: TransformerOptions | None = None,
    **_: Any,
) -> torch.Tensor:
    options = transformer_options if transformer_options is not None else {}
    state: CausalPass = options[_KEY]
    if fault := forward_fault(executor.class_obj, options):
        raise UnsupportedModelError(fault)
    # An extra pass for guidance reads the same memory; what it writes of this block the next pass writes anew.
    extra = state.batches > 1
    if x.shape[0] != 1 or x.shape[2] != state.frames or (state.calls and not extra):
        raise UnsupportedModelError(
            "A causal film takes one picture, one prompt and no second conditioning at a time; "
            "remove batches, areas, masks and combined conditionings."
        )
    if clip_fea is not None or time_dim_concat is not None:
        raise UnsupportedModelError("A causal film takes text conditioning only; remove the image conditioning nodes.")
    if extra and state.kind is not CallKind.DENOISE:
        return torch.zeros_like(x)
    if extra and not _same_prompt(context, state):
        raise UnsupportedModelError("A causal film has one prompt at a time; remove what guides it by another prompt.")
    state.calls += not extra
    with outside_memory_graph():  # the memory outlives the pass
        return causal_forward(executor.class_obj, x, timestep, context, state, options)


def causal_forward(
    dit: comfy.ldm.wan.model.WanModel,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    state: CausalPass,
    options: TransformerOptions,
) -> torch.Tensor:
    """One pass over the frames of a block: x [B, C, F, h, w], timestep [1], context [B, rows, text width].

    B is 1 with a KVMemory. Returns the flow [B, C, F, h, w]; zeros where the pass only had to write the memory.
    """
    frames, height, width = x.shape[2:]
    x = comfy.ldm.common_dit.pad_to_patch_size(x, dit.patch_size)
    latents = x
    x = dit.patch_embedding(x.float()).to(x.dtype)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)

    times = timestep.reshape(1, 1).repeat(1, frames)
    times[:, : state.given] = 0
    speeds = state.keep("speeds", x.device, lambda: time_frequencies(dit.freq_dim, x.device))
    wave = sinusoids(times.flatten(), speeds)
    time = dit.time_embedding(wave.to(x.dtype)).unsqueeze(0)
    modulation = dit.time_projection(time).unflatten(2, (6, dit.dim))

    _cache_text(dit, context, state)
    call = state.memory.begin_call(state.kind, frames)
    # the passes of a block are at one place: what depends on that is made once for them
    scales = options.get("rope_options") or {}
    place = (call.place, frames, height, width, tuple(state.phases), tuple(sorted(scales.items())), x.device)
    state.tables = None
    if wants_prep(options):
        made = state.keep("tables", place, lambda: prep_tables(call, grid, state.memory.layout, x.device, state.phases))
        state.tables = with_slots(made, state.memory)
    pairs = state.memory.layout.temporal_channels // 2
    rotation = state.keep(
        "rotation",
        place,
        lambda: rotation_matrices(dit, call.place, (frames, height, width), x.device, options, state.phases, pairs),
    )
    text = dit.text_embedding(context) if "dit" in options.get("patches_replace", {}) else None
    only_writes = state.kind is not CallKind.DENOISE

    patches = options.get("patches", {}).get("double_block", ())
    replaced = options.get("patches_replace", {}).get("dit", {})
    options |= {"grid_sizes": grid, "total_blocks": len(dit.blocks), "block_type": "double"}
    for layer, block in enumerate(dit.blocks):
        options["block_index"] = layer
        last = only_writes and layer == len(dit.blocks) - 1
        if ("double_block", layer) in replaced:
            arguments = {"img": x, "txt": text, "vec": modulation, "pe": rotation, "transformer_options": options}
            original = {"original_block": _replaceable(block, layer, state)}
            x = replaced["double_block", layer](arguments, original)["img"]
        else:
            x = _block(block, layer, x, modulation, rotation, state, options, last)
        for patch in patches:
            arguments = {"img": x, "x": latents, "vec": time, "block_index": layer, "img_offset": 0}
            x = patch(arguments | {"transformer_options": options})["img"]
    state.memory.end_call()
    if only_writes:
        return torch.zeros_like(latents[:, :, :, :height, :width])
    return dit.unpatchify(dit.head(x, time), grid)[:, :, :, :height, :width]


def _replaceable(block: Any, layer: int, state: CausalPass) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """The block as a `patches_replace` function may call it. Cross-attention keeps to the cached prompt."""

    def original_block(args: dict[str, Any]) -> dict[str, torch.Tensor]:
        options = args["transformer_options"]
        return {"img": _block(block, layer, args["img"], args["vec"], args["pe"], state, options, last=False)}

    return original_block


def _block(
    block: Any,
    layer: int,
    x: torch.Tensor,
    modulation: torch.Tensor,
    rotation: torch.Tensor,
    state: CausalPass,
    options: TransformerOptions,
    last: bool,
) -> torch.Tensor:
    """One transformer block: x [1, F*T, dim], modulation [1, F, 6, dim]. `last` stops once the memory is written."""
    own = comfy.model_management.cast_to(block.modulation, dtype=x.dtype, device=x.device)
    # per frame, broadcast over its tokens: [1, F, 1, dim] each
    shift1, scale1, gate1, shift2, scale2, gate2 = (own.unsqueeze(0) + modulation).unsqueeze(3).unbind(2)
    frames = modulation.shape[1]

    def add(base: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(base.unflatten(1, (frames, -1)), y.unflatten(1, (frames, -1)), gate).flatten(1, 2)

    x = x.contiguous()
    normed = _modulated(block.norm1, x, shift1, scale1)
    attended = _self_attention(block.self_attn, layer, normed, rotation, state, options, last)
    if attended is None:
        return x
    x = add(x, attended, gate1)

    cross = block.cross_attn
    q = cross.norm_q(cross.q(block.norm3(x)))
    x = x + cross.o(_read_text(cross, layer, q, state, options))
    for patch in options.get("patches", {}).get("attn2_patch", ()):
        x = patch({"x": x, "transformer_options": options})

    return add(x, block.ffn(_modulated(block.norm2, x, shift2, scale2)), gate2)


def _read_text(cross: Any, layer: int, q: torch.Tensor, state: CausalPass, options: TransformerOptions) -> torch.Tensor:
    """Cross-attention of q [1, F * T, dim] over the prompt, frames that have rows of their own over these alone."""
    k, v = state.text[layer]
    attention = comfy.ldm.modules.attention.optimized_attention
    attended = []
    for frame, (first, count) in enumerate(state.rows or [(0, k.shape[1])]):
        own = q if not state.rows else q.unflatten(1, (len(state.rows), -1))[:, frame]
        read = (own, k[:, first : first + count], v[:, first : first + count])
        attended.append(attention(*read, heads=cross.num_heads, transformer_options=options))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


def _modulated(norm: Any, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive layer norm of x [B, F * T, dim] by shift and scale [B, F, 1, dim], in one kernel where there is one."""
    by_frame = x.unflatten(1, (shift.shape[1], -1))
    if _has_fused_norm(x):
        fused: torch.Tensor = comfy.quant_ops.ck.adaln(by_frame, scale, shift, norm.eps)
        return fused.flatten(1, 2)
    return torch.addcmul(shift, norm(by_frame), 1 + scale).flatten(1, 2)


def _has_fused_norm(x: torch.Tensor) -> bool:
    """Whether comfy-kitchen may have a kernel for it: on a CPU it has none, and its eager code is the slower one."""
    return x.is_cuda and hasattr(getattr(comfy.quant_ops, "ck", None), "adaln")


def _self_attention(
    attn: Any,
    layer: int,
    x: torch.Tensor,
    rotation: torch.Tensor,
    state: CausalPass,
    options: TransformerOptions,
    last: bool,
) -> torch.Tensor | None:
    """Self-attention of x [1, F*T, dim] over the memory; None when only the memory's keys were wanted."""
    if take_value_attention(options):
        return cast(torch.Tensor, attn.o(attn.v(x)))
    if state.tables is not None and not last:
        prepared = prepare(attn, layer, x, state.memory, state.tables)
        if prepared is not None:
            return cast(torch.Tensor, attn.o(attend(prepared, layer, state.memory, options)))
    heads = (attn.num_heads, attn.head_dim)
    k = comfy.ldm.flux.math.apply_rope1(attn.norm_k(attn.k(x)).unflatten(2, heads), rotation)
    v = attn.v(x).unflatten(2, heads)
    state.memory.write(layer, k.transpose(1, 2), v.transpose(1, 2))
    if last:
        return None
    q = comfy.ldm.flux.math.apply_rope1(attn.norm_q(attn.q(x)).unflatten(2, heads), rotation)
    y = attend(q.transpose(1, 2), layer, state.memory, options)
    for patch in options.get("patches", {}).get("attn1_patch", ()):
        y = patch({"x": y, "q": q, "k": k, "transformer_options": options})
    projected: torch.Tensor = attn.o(y)
    return projected


def _cache_text(dit: comfy.ldm.wan.model.WanModel, context: torch.Tensor, state: CausalPass) -> None:
    """Compute the prompt's cross-attention keys and values once, and give the memory their mean per head."""
    if state.text:
        return
    text, state.context = dit.text_embedding(context), context
    weight = _row_weights(context, state.memory.settings.mask_padding)
    for layer, block in enumerate(dit.blocks):
        cross = block.cross_attn
        k = cross.norm_k(cross.k(text))
        state.text.append((k, cross.v(text)))
        state.memory.set_text(layer, _mean_key(k, weight, cross))


def _same_prompt(context: torch.Tensor, state: CausalPass) -> bool:
    known = state.context
    return known is not None and known.shape == context.shape and torch.equal(known, context)


def mean_text_keys(dit: comfy.ldm.wan.model.WanModel, context: torch.Tensor, mask_padding: bool) -> torch.Tensor:
    """What the memory bank is scored with: mean cross-attention keys [layers, heads, head_dim] fp32 of a prompt.

    context: [1, rows, text width] on the model's device, in its dtype; the model must be loaded.
    """
    text = dit.text_embedding(context)
    weight = _row_weights(context, mask_padding)
    crosses = [block.cross_attn for block in dit.blocks]
    return torch.cat([_mean_key(cross.norm_k(cross.k(text)), weight, cross) for cross in crosses])


def _row_weights(context: torch.Tensor, mask_padding: bool) -> torch.Tensor:
    """Which rows of a prompt count, [1, rows, 1]: all, as in the original, or all that are not empty."""
    weight = torch.ones_like(context[..., :1], dtype=torch.float32)
    if not mask_padding:
        return weight
    # padding rows are exactly zero in ComfyUI's Wan text encoding; an empty prompt keeps them all
    filled = context.ne(0).any(dim=-1, keepdim=True).float()
    return filled if filled.any() else weight


def _mean_key(k: torch.Tensor, weight: torch.Tensor, cross: Any) -> torch.Tensor:
    """The mean over the rows that count, [B, heads, head_dim]."""
    mean: torch.Tensor = (k.float() * weight).sum(dim=1) / weight.sum(dim=1)
    return mean.unflatten(-1, (cross.num_heads, cross.head_dim))
