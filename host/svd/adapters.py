"""AID's adapters on ComfyUI's Stable Video Diffusion UNet, through its `forward_timestep_embed_patch` hook.

For every layer of a block whose type matches, ComfyUI calls a handler in place of the layer. Two are registered: one
for VideoResBlock (short-term adapter behind it), one for SpatialVideoTransformer, which runs the layer with patches of
its own: the first self-attention of a call is the spatial one, the second the temporal one, as depth is 1 and the order
fixed. Spatial and temporal calls are never told apart by shape: at 256 x 256 and 16 frames both are (32, 16, c) in the
middle block. Which site a layer is follows from ComfyUI's running count of transformers and the block's name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...film.instruction import InstructionError
from ...film.instruction.adapters import AidAdapter, CrossFull
from ...film.instruction.settings import AdapterSettings, Site
from ...film.weights_file import weights_fault

__all__ = ["AdapterFile", "Strengths", "apply_adapter", "check_svd", "load_adapter", "save_adapter", "sites_of"]

_KEY = "longreel_aid"
_MASK = "longreel_aid_mask"
IMAGE_TOKENS = 1
"""Tokens of SVD's own context: the picture's embedding. In decoupled mode the text's stand behind."""


@dataclass(frozen=True)
class Strengths:
    """How much of each part counts: 0 leaves it out, 1 is as trained. text: cross-attention to the instruction."""

    spatial: float = 1.0
    short: float = 1.0
    long: float = 1.0
    text: float = 1.0


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """An adapter in memory.

    patcher: ComfyUI's handle on its modules, which moves them to the GPU with the model. notes: what else its file
    says. name: of the file.
    """

    patcher: ModelPatcher
    notes: Mapping[str, str]
    name: str = ""

    @property
    def adapter(self) -> AidAdapter:
        """The modules."""
        adapter: AidAdapter = self.patcher.model
        return adapter

    @property
    def settings(self) -> AdapterSettings:
        """What they are and were trained with."""
        return self.adapter.settings

    @classmethod
    def of(cls, adapter: AidAdapter, notes: Mapping[str, str] | None = None, name: str = "") -> AdapterFile:
        """Modules that were made in memory."""
        load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        return cls(ModelPatcher(adapter, load_device=load, offload_device=offload), notes or {}, name)


def check_svd(model: ModelPatcher) -> UNetModel:
    """The UNet of a Stable Video Diffusion model. Raises InstructionError for any other."""
    base = model.model
    unet = getattr(base, "diffusion_model", None)
    if type(base) is not comfy.model_base.SVD_img2vid or not isinstance(unet, UNetModel):
        raise InstructionError(
            f"{type(base).__name__} is not Stable Video Diffusion, which AID adapts: load svd or svd_xt with core's "
            "Image Only Checkpoint Loader, or use the instruction engine, which films with any model."
        )
    return unet


def sites_of(unet: UNetModel) -> tuple[Site, ...]:
    """The layers that AID adapts, in the order in which they run: 16 of Stable Video Diffusion."""
    blocks = [(f"input_blocks.{number}", block) for number, block in enumerate(unet.input_blocks)]
    blocks.append(("middle_block", unet.middle_block))
    blocks += [(f"output_blocks.{number}", block) for number, block in enumerate(unet.output_blocks)]
    sites = []
    for name, block in blocks:
        for layer in block:
            if isinstance(layer, SpatialVideoTransformer):
                attention = layer.transformer_blocks[0].attn2
                sites.append(Site(name, attention.to_q.out_features, attention.heads))
    return tuple(sites)


def transformer_at(unet: UNetModel, site: Site) -> SpatialVideoTransformer:
    """The layer of a site."""
    layers = [layer for layer in unet.get_submodule(site.name) if isinstance(layer, SpatialVideoTransformer)]
    return layers[0]


# Files


def load_adapter(path: Path) -> AdapterFile:
    """Read an adapter's file.

    Raises InstructionError for a file of another kind, a newer format, or one that lacks tensors or has unknown ones.
    """
    if fault := weights_fault(path):
        raise InstructionError(fault)
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # safetensors, torch and pickle raise what they like
        raise InstructionError(f"{path.name} cannot be read, it may be cut off: download it again.") from error
    metadata = metadata or {}
    settings = AdapterSettings.from_metadata(metadata)
    dtype = torch.float32 if any(value.dtype == torch.float32 for value in weights.values()) else torch.bfloat16
    adapter = AidAdapter(settings, comfy.ops.manual_cast, dtype=dtype, device="cpu")
    wanted = adapter.state_dict()
    if odd := sorted(wanted.keys() ^ weights.keys()):
        raise InstructionError(f"{path.name} has no tensor or an unknown one called {odd[0]}: use another copy of it.")
    if odd := sorted(key for key, value in weights.items() if value.shape != wanted[key].shape):
        raise InstructionError(f"{path.name} has a tensor of another shape, {odd[0]}: use another copy of it.")
    adapter.load_state_dict(weights)
    fields = settings.to_metadata().keys()
    notes = {key: value for key, value in metadata.items() if key not in fields}
    return AdapterFile.of(adapter.eval().requires_grad_(False), notes, path.stem)


def save_adapter(adapter: AidAdapter, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write an adapter with its settings; notes: further metadata. Tensors keep their dtype."""
    weights = {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(weights, part, metadata=adapter.settings.to_metadata(notes))
    part.replace(path)


# On a model


def apply_adapter(model: ModelPatcher, file: AdapterFile, strengths: Strengths | None = None) -> ModelPatcher:
    """A clone of the model that runs with the adapter. Parts of strength 0, or whose last layer is zero, are left out.

    Raises InstructionError for a model that is not Stable Video Diffusion, or of other sizes than the adapter's.
    """
    strengths = strengths or Strengths()
    check_fits(model, file.settings)
    handlers = Handlers(file.adapter, strengths, skip=_dormant(file.adapter, strengths))
    patched = install(model, handlers)
    patched.set_additional_models(_KEY, [file.patcher])
    return patched


def install(model: ModelPatcher, handlers: Handlers) -> ModelPatcher:
    """A clone of the model with handlers on it; the caller sees to it that their modules are on the model's device."""
    patched = model.clone()
    for kind, handler in ((VideoResBlock, handlers.residual), (SpatialVideoTransformer, handlers.transformer)):
        others = patched.model_options["transformer_options"].get("patches", {}).get("forward_timestep_embed_patch", [])
        if any(issubclass(kind, other) for other, _ in others):
            logging.warning("Longreel: another extension already handles %s; AID's adapters stay out.", kind.__name__)
        patched.set_model_forward_timestep_embed_patch((kind, handler))
    if handlers.adapter.mask_in is not None:
        patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, _KEY, _split_mask)
        patched.set_model_input_block_patch(handlers.mask)
    return patched


def check_fits(model: ModelPatcher, settings: AdapterSettings) -> None:
    """Raises InstructionError unless the adapter was made for a UNet of these sizes."""
    unet = check_svd(model)
    if sites_of(unet) != settings.sites:
        raise InstructionError(
            "The adapter was made for another Stable Video Diffusion model, its sizes differ: load the model that it "
            "was trained on."
        )
    width = transformer_at(unet, settings.sites[0]).transformer_blocks[0].attn2.to_k.in_features
    if width != settings.context_dim:
        raise InstructionError(
            f"The model's cross-attention reads {width} numbers a token and the adapter gives {settings.context_dim}: "
            "load the model that it was trained on."
        )


def _dormant(adapter: AidAdapter, strengths: Strengths) -> frozenset[tuple[str, str]]:
    """Parts and sites that change nothing: 0 * inf is NaN, so an overflow before a zero layer would show up."""
    skip = set()
    for site in adapter.settings.sites:
        for part in ("spatial", "short", "long", "text"):
            module = adapter.at(part, site.name)
            last = getattr(module, "to_out" if part == "text" else "up", None)
            zero = last is not None and not any(bool(value.any()) for value in last.parameters())
            if zero or getattr(strengths, part) == 0:
                skip.add((part, site.name))
        if strengths.text == 0:
            skip.add(("cross", site.name))
    return frozenset(skip)


class Handlers:
    """What ComfyUI calls in place of a layer. Keeps no activation after a call.

    adapter: the modules. strengths: of its parts. skip: parts and sites that are left out. recompute: layers are
    computed again in the backward pass instead of kept, for training.
    """

    def __init__(
        self,
        adapter: AidAdapter,
        strengths: Strengths,
        skip: frozenset[tuple[str, str]] = frozenset(),
        recompute: bool = False,
    ) -> None:
        self.adapter = adapter
        self.strengths = strengths
        self.skip = skip
        self.recompute = recompute

    def residual(
        self, layer: VideoResBlock, x: Tensor, emb: Tensor, _context: Any, options: dict[str, Any], _shape: Any,
        _time_context: Any, frames: int, image_only: Any,
    ) -> Tensor:  # fmt: skip
        """A residual block, then the short-term adapter if a transformer of ours comes next in the same block."""
        sites, number = self.adapter.settings.sites, options["transformer_index"]
        ours = number < len(sites) and sites[number].block == tuple(options["block"])
        module = self._module("short", sites[number]) if ours else None

        def run(x: Tensor, emb: Tensor) -> Tensor:
            x = layer(x, emb, frames, image_only)
            return x if module is None else _added(x, self.strengths.short, lambda y: module(y, frames))

        return self._run(run, x, emb)

    def transformer(
        self, layer: SpatialVideoTransformer, x: Tensor, _emb: Tensor, context: Tensor, options: dict[str, Any],
        _shape: Any, time_context: Tensor | None, frames: int, image_only: Any,
    ) -> Tensor:  # fmt: skip
        """A spatial and a temporal transformer with the adapters beside their self-attention and the text's attention.

        Raises InstructionError for a context of fewer or more rows than frames, which ComfyUI would repeat or cut.
        """
        if len(layer.transformer_blocks) != 1:
            raise InstructionError("This model's transformers are more than one layer deep: load plain svd or svd_xt.")
        if context.shape[0] != x.shape[0]:
            raise InstructionError(
                f"There is a condition for {context.shape[0]} frames and the clip has {x.shape[0]}: make the "
                "conditioning for this number of frames."
            )
        site = self.adapter.settings.sites[options["transformer_index"]]
        now = dict(options)  # as it is at this layer, also when the layer runs again

        def run(x: Tensor, context: Tensor) -> Tensor:
            call = _Call(self, site, layer.transformer_blocks[0].attn2)
            patches = dict(now.get("patches", {}))
            for name, patch in call.patches().items():
                patches[name] = [*patches.get(name, []), patch]
            made: Tensor = layer(x, context, time_context, frames, image_only, {**now, "patches": patches})
            return made

        x = self._run(run, x, context)
        options["transformer_index"] += 1
        return x

    def mask(self, hidden: Tensor, options: dict[str, Any]) -> Tensor:
        """The mask's share of the first convolution: by linearity the same as nine input channels."""
        mask = options.get(_MASK)
        if mask is None or tuple(options["block"]) != ("input", 0):
            return hidden
        return hidden + self.adapter.mask_in(mask).to(hidden.dtype)  # type: ignore[misc]

    def _run(self, layer: Any, *inputs: Tensor) -> Tensor:
        made: Tensor = checkpoint(layer, *inputs, use_reentrant=False) if self.recompute else layer(*inputs)
        return made

    def _module(self, part: str, site: Site) -> Any:
        return None if (part, site.name) in self.skip else self.adapter.at(part, site.name)


class _Call:
    """The patches of one run of one transformer layer: spatial attention comes first, temporal second."""

    def __init__(self, handlers: Handlers, site: Site, frozen: Any) -> None:
        self.frozen = frozen
        self.strengths = handlers.strengths
        self.beside = [handlers._module("spatial", site), handlers._module("long", site)]
        self.strength = [self.strengths.spatial, self.strengths.long]
        self.text, self.cross = handlers._module("text", site), handlers._module("cross", site)
        self.decoupled = handlers.adapter.settings.has_text and handlers.adapter.settings.context_mode == "decoupled"
        self.temporal = False
        self.tokens: Tensor | None = None
        self.context: Tensor | None = None

    def patches(self) -> dict[str, Any]:
        """By the names under which BasicTransformerBlock looks for them."""
        return {
            "attn1_patch": self.before_self,
            "attn1_output_patch": self.after_self,
            "attn2_patch": self.before_cross,
            "attn2_output_patch": self.after_cross,
        }

    def before_self(self, n: Tensor, context: Any, value: Any, _extra: Any) -> tuple[Any, Any, Any]:
        self.tokens = n
        return n, context, value

    def after_self(self, attended: Tensor, _extra: Any) -> Tensor:
        module, strength, tokens = self.beside[self.temporal], self.strength[self.temporal], self.tokens
        self.tokens = None
        return attended if module is None else attended + _scaled(module(_wide(tokens)), strength, attended)

    def before_cross(self, n: Tensor, context: Tensor, value: Tensor, _extra: Any) -> tuple[Any, Any, Any]:
        if not self.temporal:
            self.tokens, self.context = n, context
        if not self.decoupled:
            return n, context, value
        if not self.temporal:
            self.context = context[:, IMAGE_TOKENS:]
        image = context[:, :IMAGE_TOKENS].contiguous()  # as a context of one token lies in memory
        return n, image, image

    def after_cross(self, attended: Tensor, _extra: Any) -> Tensor:
        temporal, self.temporal = self.temporal, True
        tokens, context = self.tokens, self.context
        self.tokens = self.context = None
        if temporal or context is None or context.shape[1] == 0:
            return attended
        if self.text is not None:
            query = _wide(self.frozen.to_q(tokens))
            return attended + _scaled(self.text(query, _wide(context)), self.strengths.text, attended)
        if self.cross is not None:
            tuned = self.cross(self.frozen, _wide(tokens), _wide(context)).to(attended.dtype)
            return tuned if self.strengths.text == 1 else torch.lerp(attended, tuned, self.strengths.text)
        return attended


def _wide(x: Any) -> Tensor:
    """fp16 has too small a range for layers that were trained in bf16 or fp32."""
    wide: Tensor = x.float() if x.dtype == torch.float16 else x
    return wide


def _scaled(x: Tensor, strength: float, like: Tensor) -> Tensor:
    return (x if strength == 1 else x * strength).to(like.dtype)


def _added(x: Tensor, strength: float, module: Any) -> Tensor:
    return x + _scaled(module(_wide(x)), strength, x)


def _split_mask(
    executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor, control: Any, transformer_options: Any,
    **others: Any,
) -> Tensor:  # fmt: skip
    """Takes the mask, the last input channel, off the input and passes it on in transformer_options."""
    channels = executor.class_obj.in_channels
    if x.shape[1] > channels:
        transformer_options = {**transformer_options, _MASK: x[:, channels:]}
    result: Tensor = executor(x[:, :channels], timesteps, context, y, control, transformer_options, **others)
    return result


def begin_cross(adapter: AidAdapter, unet: UNetModel) -> None:
    """Let tuned cross-attention begin as the UNet's own, for context mode "full"."""
    for site in adapter.settings.sites:
        module = adapter.at("cross", site.name)
        if isinstance(module, CrossFull):
            module.begin_as(transformer_at(unet, site).transformer_blocks[0].attn2)
