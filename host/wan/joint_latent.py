"""A joint latent of appearance and motion through a stock Wan model.

The sampler carries [x, d], 2 C channels; conditionings, previews, masks and saved latents never see more than C. Two
wrappers do it: around the sampler (SAMPLER_SAMPLE) motion noise joins and leaves, and around the network
(DIFFUSION_MODEL) motion becomes tokens added to the first block's, and is read off the last one's. Everything is per
call; the model keeps its weights and its own forward. With layers that add nothing the appearance is the base model's,
bit for bit.

Source: VideoJAM (arXiv 2502.02492), section 4.1; ComfyUI's comfy/ldm/wan/model.py and comfy/samplers.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.nested_tensor
import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...film.motion import AdapterInfo, MotionError, MotionLayers
from ..families.wan import is_plain
from ..memory_graph import outside_memory_graph

__all__ = ["DROP", "JointLatent", "check_model", "drop_condition", "install", "joint_kwargs", "joint_of"]

DROP = "longreel_motion_drop"
"""The key of model_conds, and of the network's keyword arguments, that says whose motion input is zeroed: [B, 1]."""

_KEY = "longreel_motion"
_WRAPPERS = comfy.patcher_extension.WrappersMP

Options = dict[str, Any]


@dataclass(frozen=True, eq=False)
class JointLatent:
    """How one MODEL carries motion.

    layers: the added layers, with ComfyUI's operations. info: their file's. strength: factor on the motion tokens, 1 as
    trained, 0 for none. return_motion: whether the sampler returns a nested latent of appearance and motion.
    seed_offset: another motion noise for the same appearance noise. start: motion latents [B, C, T, h, w] in LATENT
    space to begin from instead of zeros, as a second stage does.
    """

    layers: MotionLayers
    info: AdapterInfo
    strength: float = 1.0
    return_motion: bool = False
    seed_offset: int = 0
    start: Tensor | None = None


def check_model(model: ModelPatcher, info: AdapterInfo, name: str = "The adapter") -> None:
    """Raises MotionError, naming both, unless an adapter that says `info` of itself fits the model."""
    base = model.model
    dit: Any = getattr(base, "diffusion_model", None)
    if not is_plain(model) or not isinstance(base.model_sampling, comfy.model_sampling.CONST):
        raise MotionError(
            f"{type(base).__name__} ({type(dit).__name__}) cannot carry motion beside appearance: load a plain Wan "
            "text-to-video or image-to-video model."
        )
    own = (dit.dim, base.latent_format.latent_channels, tuple(dit.patch_size))
    if own != (info.dim, info.latent_channels, info.patch):
        raise MotionError(
            f"{name} was made for {info.base_model or 'another model'} ({_said(info.dim, info.latent_channels)}, "
            f"patches {list(info.patch)}), and this is {type(base).__name__} ({_said(*own[:2])}, patches "
            f"{list(own[2])}): load that model, or an adapter made for this one."
        )


def install(model: ModelPatcher, layers: ModelPatcher, joint: JointLatent) -> ModelPatcher:
    """A clone of `model` that denoises appearance and motion together; `model` stays as it is.

    layers: the patcher of joint.layers, loaded and offloaded with the model. Raises MotionError as `check_model` does.
    """
    check_model(model, joint.info)
    clone = model.clone()
    clone.set_additional_models(_KEY, [layers])
    for kind, wrapper in ((_WRAPPERS.SAMPLER_SAMPLE, _sample), (_WRAPPERS.DIFFUSION_MODEL, _forward)):
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, partial(wrapper, joint))
    # First of all samplers' wrappers: what shuffles noise for context windows must shuffle both halves alike.
    wrappers = clone.wrappers[_WRAPPERS.SAMPLER_SAMPLE]
    clone.wrappers[_WRAPPERS.SAMPLER_SAMPLE] = {_KEY: wrappers[_KEY], **wrappers}
    return clone


def joint_of(model: ModelPatcher) -> JointLatent | None:
    """How the model carries motion, None for one that does not."""
    for wrapper in model.get_wrappers(_WRAPPERS.DIFFUSION_MODEL, _KEY):
        joint: JointLatent = wrapper.args[0]
        return joint
    return None


def joint_kwargs(joint: JointLatent, drop: Tensor | None = None) -> Options:
    """Keyword arguments for a bare network that is called with [x, d]; for trainers, which have no sampler.

    drop: [B, 1], 1 where the motion input is zeroed.
    """
    wrappers = {_WRAPPERS.DIFFUSION_MODEL: {_KEY: [partial(_forward, joint)]}}
    return {"transformer_options": {"wrappers": wrappers}} | ({} if drop is None else {DROP: drop})


def drop_condition(dropped: bool) -> Any:
    """The value under DROP in a conditioning's model_conds.

    All conditionings of a call need one, dropped or not: only those with the same keys run in one batch.
    """
    return comfy.conds.CONDRegular(torch.full((1, 1), float(dropped)))


def _sample(
    joint: JointLatent,
    executor: comfy.patcher_extension.WrapperExecutor,
    guider: Any,
    sigmas: Tensor,
    extra_args: Options,
    callback: Callable[..., Any] | None,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    disable_pbar: bool = False,
) -> Any:
    """SAMPLER_SAMPLE wrapper: noise and latent_image [B, C, T, h, w] in the model's latent space."""
    _check_run(executor, extra_args)
    base, count = guider.inner_model, noise.shape[1]
    start = joint.start
    later_stage = not bool(noise.any())
    if later_stage and start is None:
        # The stage before kept its motion for itself: without it the trunk runs as it learned to for dropped motion.
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
    if latent_image is None:
        latent_image = torch.zeros_like(noise)
    motion = torch.zeros_like(latent_image)
    if start is not None:
        if start.shape[1:] != latent_image.shape[1:]:
            raise MotionError(
                f"The motion latent is {list(start.shape)} and the latent {list(latent_image.shape)}: "
                "use the motion of a video of this size and length."
            )
        motion = base.process_latent_in(start.to(motion)).expand_as(motion) * joint.info.motion_latent_scale
    if denoise_mask is not None:
        denoise_mask = torch.cat([denoise_mask.expand_as(noise), torch.ones_like(noise)], dim=1)

    def halves(both: Tensor) -> Any:
        if not joint.return_motion:
            return both[:, :count]
        return comfy.nested_tensor.NestedTensor([both[:, :count], both[:, count:] / joint.info.motion_latent_scale])

    def report(step: int, x0: Tensor, x: Tensor, total: int) -> Any:
        return callback(step, halves(x0), halves(x), total) if callback is not None else None

    sampled = executor(
        guider,
        sigmas,
        extra_args,
        report if callback is not None else None,
        torch.cat([noise, torch.zeros_like(noise) if later_stage else _noise(joint, extra_args, noise)], dim=1),
        torch.cat([latent_image, motion], dim=1),
        denoise_mask,
        disable_pbar,
    )
    return halves(sampled)


def _noise(joint: JointLatent, extra_args: Options, like: Tensor) -> Tensor:
    """Motion noise of the run's seed: a stream of its own, so that the appearance keeps the base model's noise."""
    told = f"longreel motion {extra_args.get('seed') or 0} {joint.seed_offset}".encode()
    seed = int.from_bytes(hashlib.sha256(told).digest()[:7], "little")
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _check_run(executor: comfy.patcher_extension.WrapperExecutor, extra_args: Options) -> None:
    """What cannot be known before sampling: which sampler runs, and who else stands around the network."""
    if "easycache" in extra_args["model_options"].get("transformer_options", {}):
        raise MotionError(
            "EasyCache and LazyCache keep the appearance of earlier steps only: remove them, or the motion adapter."
        )
    function = getattr(executor.class_obj, "sampler_function", None)
    if getattr(function, "__name__", "") == "sample_ar_video":
        raise MotionError(
            "The autoregressive sampler cannot carry motion beside appearance: remove Apply Motion Adapter, or choose "
            "an ordinary sampler."
        )


def _forward(
    joint: JointLatent,
    executor: comfy.patcher_extension.WrapperExecutor,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Tensor | None = None,
    time_dim_concat: Tensor | None = None,
    transformer_options: Options | None = None,
    **kwargs: Any,
) -> Any:
    """DIFFUSION_MODEL wrapper: x [B, C of appearance | C of motion | channels of the model's own, T, h, w]."""
    dit, layers = executor.class_obj, joint.layers
    drop: Tensor | None = kwargs.pop(DROP, None)
    options = transformer_options if transformer_options is not None else {}
    count, own = layers.channels, dit.patch_embedding.weight.shape[1]
    if x.shape[1] == own:
        return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    if x.shape[1] != own + count:
        raise MotionError(
            f"The model got {x.shape[1]} channels where {own} for appearance and {count} for motion were expected: "
            "put Apply Motion Adapter directly before the sampler."
        )
    base, motion = torch.cat([x[:, :count], x[:, 2 * count :]], dim=1), x[:, count : 2 * count]
    keep = torch.full_like(motion[:, :1, :1, :1, :1], joint.strength)
    if drop is not None:
        keep = keep * (1 - drop.to(motion).view(-1, 1, 1, 1, 1))
    # Zeroed where dropped, not scaled: what was NaN or infinite must not come through either.
    with outside_memory_graph():  # they are read in the first block, and made before it
        tokens = layers.embed(torch.where(keep > 0, motion * keep, 0.0).float()).to(x.dtype)
    size = [-(-length // patch) for length, patch in zip(x.shape[2:], layers.patch)]
    last = _LastTokens(len(dit.blocks) - 1)
    options = _hooked(options, tokens, _reference_tokens(dit, kwargs), last)
    velocity = executor(base, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    if last.tokens is None:
        raise MotionError(
            "Another node skipped the model's blocks, and no motion came out of them: remove what caches or replaces "
            "whole steps, or the motion adapter."
        )
    modulation = comfy.model_management.cast_to(dit.head.modulation, dtype=x.dtype, device=x.device)
    found = last.tokens[:, last.offset : last.offset + tokens.shape[1]]
    predicted = layers.predict(found, last.time, modulation, (size[0], size[1], size[2]), dit.head.eps)
    frames, rows, columns = x.shape[2:]
    return torch.cat([velocity, predicted[:, :, :frames, :rows, :columns].to(velocity.dtype)], dim=1)


class _LastTokens:
    """A patch behind each block that keeps what the last one gives, [B, tokens, dim], and the time embedding."""

    def __init__(self, block: int) -> None:
        self.block, self.offset = block, 0
        self.tokens: Tensor | None = None
        self.time: Any = None

    def __call__(self, args: Options) -> Options:
        if args["block_index"] == self.block:
            self.tokens, self.time, self.offset = args["img"], args["vec"], args["img_offset"]
        return args


def _hooked(options: Options, tokens: Tensor, offset: int, last: _LastTokens) -> Options:
    """A copy of the options with motion added before the first block and the tokens kept after the last."""
    patches = dict(options.get("patches", {}))
    patches["double_block"] = [*patches.get("double_block", ()), last]
    replaced = dict(options.get("patches_replace", {}))
    blocks = dict(replaced.get("dit", {}))
    place = ("double_block", 0)
    previous = blocks.get(place)

    def add(args: Options, extra: Options) -> Options:
        img = args["img"]
        if img.shape[1] == tokens.shape[1]:
            joined = img + tokens
        else:
            end = offset + tokens.shape[1]
            joined = torch.cat([img[:, :offset], img[:, offset:end] + tokens, img[:, end:]], dim=1)
        args = {**args, "img": joined}
        out: Options = previous(args, extra) if previous is not None else extra["original_block"](args)
        return out

    blocks[place] = add
    return {**options, "patches": patches, "patches_replace": {**replaced, "dit": blocks}}


def _reference_tokens(dit: Any, kwargs: Options) -> int:
    """How many tokens of a reference picture stand before the video's."""
    reference = kwargs.get("reference_latent")
    if dit.ref_conv is None or reference is None:
        return 0
    rows, columns = (size // patch for size, patch in zip(reference.shape[-2:], dit.patch_size[1:]))
    return int(rows * columns)


def _said(dim: int, channels: int) -> str:
    return f"{dim} wide, {channels} latent channels"
