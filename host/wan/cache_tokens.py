"""In-context cache tokens on a stock Wan model: keyframes and earlier frames join the self-attention of a chunk.

A payload travels with the conditioning (`model_conds`), a DIFFUSION_MODEL wrapper turns it into tokens, and block
replacements append them behind the model's own before the first block and take them off after the last. Attention has
no order but positions, so behind is as good as before, and everything that counts tokens from the front stays right.
The model itself is never changed; without a payload the wrapper calls it as if it were not there.

Source: docs/methods/filmweaver.md, in a stock Wan model; ComfyUI's comfy/ldm/wan/model.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.conds
import comfy.ldm.wan.model
import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...film.dual_cache import CacheError, LayoutProfile, Payload, check_profile
from ...film.dual_cache.payload import Segment
from ..families.wan import MASK_CHANNELS, is_plain
from ..memory_graph import outside_memory_graph

__all__ = ["check_model", "install", "installed_profile", "payload_kwargs", "with_payload"]

_KEY = "longreel_cache"
_WRAPPERS = comfy.patcher_extension.WrappersMP
# Wan's embedding of time counts noise levels in thousandths.
_TIMESTEPS = 1000
_WINDOWS = (
    "Context windows would glue the remembered frames to the start of each window: "
    "remove the context window node and film in chunks."
)
_GRIDS = (
    "Another node changes the self-attention and takes all tokens for a grid of frames: "
    "remove it (Enhance-A-Video, MultiTalk, radial and other sparse attention)."
)

Options = dict[str, Any]
Block = Callable[[Options, Options], Options]


def with_payload(conditioning: Sequence[Any], payload: Payload | None) -> list[Any]:
    """CONDITIONING that carries the payload, to be sampled with a model from `install`; None: as it was given.

    Give positive and negative the same object, or the sampler runs them one after the other.
    """
    if payload is None:
        return list(conditioning)
    carried = comfy.conds.CONDConstant(payload)
    return [
        [tensor, {**options, "model_conds": {**options.get("model_conds", {}), _KEY: carried}}]
        for tensor, options in conditioning
    ]


def payload_kwargs(profile: LayoutProfile, payloads: Sequence[Payload]) -> Options:
    """Keyword arguments for a bare network, one payload for each sample of its batch; all of the same shape.

    For trainers, which have no sampler around the network. Without payloads the network runs as it is.
    """
    if not payloads:
        return {"transformer_options": {}}
    wrappers = {_WRAPPERS.DIFFUSION_MODEL: {_KEY: [partial(_attend, profile)]}}
    return {"transformer_options": {"wrappers": wrappers}, _KEY: tuple(payloads)}


def install(model: ModelPatcher, profile: LayoutProfile) -> ModelPatcher:
    """A clone of `model` that reads payloads laid out as `profile` says; `model` stays as it is.

    Raises CacheError for a model that cannot take cache tokens.
    """
    check_model(model, profile)
    clone = model.clone()
    for kind, wrapper in ((_WRAPPERS.DIFFUSION_MODEL, _attend), (_WRAPPERS.PREPARE_SAMPLING, _declare)):
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, partial(wrapper, profile))
    return clone


def installed_profile(model: ModelPatcher) -> LayoutProfile | None:
    """The profile that the model was installed with, None for one that was not."""
    for wrapper in model.get_wrappers(_WRAPPERS.DIFFUSION_MODEL, _KEY):
        profile: LayoutProfile = wrapper.args[0]
        return profile
    return None


def check_model(model: ModelPatcher, profile: LayoutProfile) -> None:
    """Raises CacheError, saying why and what to load instead, unless cache tokens can join this model's."""
    dit: Any = getattr(model.model, "diffusion_model", None)
    if isinstance(dit, comfy.ldm.wan.model.VaceWanModel):
        raise CacheError(
            "A VACE model adds to its tokens one by one and cannot take more of them: "
            "choose the vace backend, or load a plain Wan model."
        )
    if not is_plain(model):
        raise CacheError(
            f"{type(model.model).__name__} ({type(dit).__name__}) cannot take cache tokens: load a plain Wan model."
        )
    if tuple(dit.patch_size) != profile.patch:
        raise CacheError(
            f"The model's patches are {list(dit.patch_size)} and the layout's {list(profile.patch)}: "
            "use the profile of a LoRA made for this model."
        )
    # Both are looked at again when sampling, where a node that comes later may have brought them.
    if model.model_options.get("context_handler") is not None:
        raise CacheError(_WINDOWS)
    if model.model_options.get("transformer_options", {}).get("patches", {}).get("attn1_patch"):
        raise CacheError(_GRIDS)
    latent = model.model.latent_format.latent_channels
    extra = dit.patch_embedding.weight.shape[1] - latent
    if extra and profile.channel_fill == "known" and extra != latent + MASK_CHANNELS:
        raise CacheError(
            f"The model has {extra} input channels beside the latent's, which are not those of a known frame: "
            "load an image-to-video model, or a profile that fills them with zeros."
        )


def _declare(
    profile: LayoutProfile,
    executor: comfy.patcher_extension.WrapperExecutor,
    model: ModelPatcher,
    noise_shape: Sequence[int],
    conds: Mapping[str, Sequence[Mapping[str, Any]]],
    **kwargs: Any,
) -> Any:
    """PREPARE_SAMPLING wrapper: ComfyUI plans its memory as if the chunk were longer by what the cache tokens weigh."""
    payloads = [
        cond["model_conds"][_KEY].cond for group in conds.values() for cond in group if _KEY in cond["model_conds"]
    ]
    if payloads:
        if (kwargs.get("model_options") or {}).get("context_handler") is not None:
            raise CacheError(_WINDOWS)
        weight = max(_weight(payload, noise_shape) for payload in payloads)
        noise_shape = [*noise_shape[:2], noise_shape[2] + math.ceil(weight), *noise_shape[3:]]
    return executor(model, noise_shape, conds, **kwargs)


def _weight(payload: Payload, noise_shape: Sequence[int]) -> float:
    """Cache tokens in latent frames of the target; those of padding count."""
    rows, columns = payload.profile.grid(noise_shape[-2], noise_shape[-1])
    # A noise level of its own for each token makes the modulation as large as six activations.
    extra = noise_shape[2] if payload.profile.time_mode != "shared" else 0
    return payload.tokens / (rows * columns) + extra


def _attend(
    profile: LayoutProfile,
    executor: comfy.patcher_extension.WrapperExecutor,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Tensor | None = None,
    time_dim_concat: Tensor | None = None,
    transformer_options: Options | None = None,
    **kwargs: Any,
) -> Any:
    """DIFFUSION_MODEL wrapper: x [B, C, T, h, w], timestep [B] or [B, T]."""
    given: Payload | tuple[Payload, ...] | None = kwargs.pop(_KEY, None)
    options = transformer_options if transformer_options is not None else {}
    if given is None:
        return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    dit = executor.class_obj
    payloads = (given,) if isinstance(given, Payload) else given
    with outside_memory_graph():
        joined = _join(dit, payloads, profile, x, timestep, options)
    # Options are shared between calls: copied on the three levels that are written to.
    replaced = dict(options.get("patches_replace", {}))
    blocks: dict[Any, Block] = dict(replaced.get("dit", {}))
    for index in range(len(dit.blocks)):
        place = ("double_block", index)
        blocks[place] = partial(joined.block, blocks.get(place), index == 0, index == len(dit.blocks) - 1)
    options = {**options, "patches_replace": {**replaced, "dit": blocks}}
    return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)


def _join(
    dit: Any, payloads: tuple[Payload, ...], profile: LayoutProfile, x: Tensor, timestep: Tensor, options: Options
) -> _CacheTokens:
    """The tokens of one payload for the whole batch, or of one for each of its samples."""
    for payload in payloads:
        _check_call(dit, payload, profile, x, options)
    first = payloads[0].segments
    layout = [(segment.pool, segment.times, segment.phase) for segment in first]
    if any([(one.pool, one.times, one.phase) for one in payload.segments] != layout for payload in payloads):
        raise CacheError("The caches of one batch differ in their number of frames: run such samples one by one.")
    modulation = None
    if profile.time_mode != "shared" or (timestep.ndim > 1 and timestep.shape[1] > 1):
        counts = [segment.ids(profile).shape[0] for segment in first]
        parts = [timestep] if len(payloads) == 1 else timestep.split(1)
        levels = [
            torch.stack([_times(payload, segment, part) for segment in payload.segments], dim=1)
            for payload, part in zip(payloads, parts)
        ]
        modulation = _modulation(dit, torch.cat(levels), counts, x.dtype)
    return _CacheTokens(
        tokens=torch.cat(
            [
                torch.cat([_embed(dit, segment, profile, x) for segment in payload.segments], dim=1)
                for payload in payloads
            ]
        ),
        angles=torch.cat([_angles(dit, segment, profile, x.device, options) for segment in first], dim=1),
        modulation=modulation,
    )


class _CacheTokens:
    """The cache tokens of one forward pass, and the blocks that compute them beside the model's own.

    tokens [1 or B, n, dim]; angles [1, n, 1, pairs, 2, 2]; modulation [B, n, 6, dim], None where the cache tokens are
    modulated with the target's noise level and that is one for each sample.
    """

    def __init__(self, tokens: Tensor, angles: Tensor, modulation: Tensor | None) -> None:
        self.tokens, self.angles, self.modulation = tokens, angles, modulation
        self._each: Tensor | None = None

    def block(self, inner: Block | None, first: bool, last: bool, args: Options, extra: Options) -> Options:
        """A block replacement; before the first block the tokens join, after the last they leave.

        inner: a replacement of the same block by another node, which is called with the longer sequence.
        """
        img = args["img"]
        if first:
            img = torch.cat([img, self.tokens.expand(img.shape[0], -1, -1)], dim=1)
        own = img.shape[1] - self.tokens.shape[1]
        longer = {**args, "img": img, "pe": torch.cat([args["pe"], self.angles], dim=1)}
        if self.modulation is not None:
            longer["vec"] = self._vectors(args["vec"], own)
        out = inner(longer, extra) if inner is not None else extra["original_block"](longer)
        return {**out, "img": out["img"][:, :own]} if last else out

    def _vectors(self, vec: Tensor, own: int) -> Tensor:
        """A modulation for every token, [B, own + n, 6, dim]; the same in all blocks, so made in the first.

        The model's rule, tokens over frames, must count its own tokens only: with ours it would stretch every frame.
        """
        if self._each is None:
            assert self.modulation is not None
            with outside_memory_graph():
                each = comfy.ldm.wan.model.repeat_e(vec, torch.empty(1, own, 0)) if vec.shape[1] > 1 else vec
                self._each = torch.cat([each.expand(-1, own, -1, -1), self.modulation], dim=1)
        return self._each


def _embed(dit: Any, segment: Segment, profile: LayoutProfile, x: Tensor) -> Tensor:
    """Tokens of a segment [1, n, dim], embedded as the model embeds a chunk."""
    latent = segment.pooled(profile.patch).to(x.device)
    extra = dit.patch_embedding.weight.shape[1] - latent.shape[1]
    if extra and profile.channel_fill == "known":
        known = torch.ones_like(latent[:, :1]).expand(-1, MASK_CHANNELS, -1, -1, -1)
        latent = torch.cat([latent, known, latent], dim=1)
    elif extra:
        latent = torch.cat([latent, torch.zeros_like(latent[:, :1]).expand(-1, extra, -1, -1, -1)], dim=1)
    embedded: Tensor = dit.patch_embedding(latent).to(x.dtype)
    return embedded.flatten(2).transpose(1, 2)


def _angles(dit: Any, segment: Segment, profile: LayoutProfile, device: torch.device, options: Options) -> Tensor:
    """RoPE rotations of a segment [1, n, 1, pairs, 2, 2]; a ScaleROPE node moves them as it moves the chunk's."""
    rope = options.get("rope_options") or {}
    scale = torch.tensor([rope.get(f"scale_{axis}", 1.0) for axis in "tyx"])
    shift = torch.tensor([rope.get(f"shift_{axis}", 0.0) for axis in "tyx"])
    ids = (segment.ids(profile) * scale + shift).to(device)
    angles: Tensor = dit.rope_embedder(ids[None]).movedim(1, 2)
    if segment.phase:
        cos, sin = math.cos(segment.phase), math.sin(segment.phase)
        turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=angles.dtype, device=device)
        pairs = dit.rope_embedder.axes_dim[0] // 2
        angles = torch.cat([angles[..., :pairs, :, :] @ turn, angles[..., pairs:, :, :]], dim=-3)
    return angles


def _times(payload: Payload, segment: Segment, timestep: Tensor) -> Tensor:
    """Time [B] that a segment's tokens are modulated with. Of a chunk with given frames, "shared" is that of the
    others.
    """
    target = timestep.reshape(timestep.shape[0], -1).amax(dim=1)
    if payload.profile.time_mode == "shared":
        return target
    return torch.full_like(target, _TIMESTEPS * payload.modulation_sigma(segment, 0.0))


def _modulation(dit: Any, times: Tensor, counts: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Modulation [B, tokens, 6, dim] of cache tokens, as the model makes it of times [B, segments]."""
    wave = comfy.ldm.wan.model.sinusoidal_embedding_1d(dit.freq_dim, times.flatten()).to(dtype)
    embedded = dit.time_embedding(wave).unflatten(0, tuple(times.shape))
    projected: Tensor = dit.time_projection(embedded).unflatten(2, (6, dit.dim))
    return projected.repeat_interleave(torch.tensor(counts, device=projected.device), dim=1)


def _check_call(dit: Any, payload: Payload, profile: LayoutProfile, x: Tensor, options: Options) -> None:
    """What cannot be known before sampling: which payload comes, and what other nodes do to the attention."""
    check_profile(payload.profile, profile)
    if "context_window" in options:
        raise CacheError(_WINDOWS)
    # They reshape the tokens of self-attention to the frames' grid, which ours are not in.
    replaced = getattr(dit.forward_orig, "__func__", None) is not comfy.ldm.wan.model.WanModel.forward_orig
    if options.get("patches", {}).get("attn1_patch") or replaced:
        raise CacheError(_GRIDS)
    for segment in payload.segments:
        size = segment.latent.shape[2:]
        if size != x.shape[3:]:
            raise CacheError(
                f"The remembered latents are {size[1]}x{size[0]} and the shot's {x.shape[4]}x{x.shape[3]}: "
                "film at the size of the story."
            )
