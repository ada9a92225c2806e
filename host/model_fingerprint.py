"""Fingerprints: do two MODELs, VAEs or CLIPs film the same picture?

A project reuses a finished shot only if nothing that made it has changed, also after a restart and on another machine.
So a fingerprint is made of what a model *is*, never of object ids, file names or where the weights happen to lie: class
and configuration, name, shape and dtype of every weight with 256 of its values, every weight patch with its
strengths, object patches, the sampling shift, and the model options of other nodes. Nothing is loaded: of weights still
in a memory-mapped file a few pages are read. Weights that are patched in place while loaded are taken as they
were before.

What it does not cover:
- a change of a weight that touches none of its sampled values (a fine-tune changes nearly all of them; a single edited
  row of an embedding may be missed);
- the code of a patch function of another pack, and state it keeps in globals or in attributes that begin with `_`; its
  name, its closure and its other attributes are covered;
- the state kept by attachments of other packs (only their names are covered), the device, the attention backend.

It may differ although the picture does not: when a patch of another pack counts calls in a public attribute, or when
the same checkpoint is loaded with another dtype.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from types import MethodType
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy.sd import CLIP, VAE
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

_SAMPLES = 256
_RUNS = 4  # the samples lie in this many runs: a mapped file then needs few pages
_DEPTH = 8  # how deep the objects of other packs are followed
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def fingerprint_model(patcher: ModelPatcher) -> str:
    """Fingerprint of a MODEL with everything that nodes have hung on it.

    patcher: any loader's MODEL, loaded or not. Returns 64 hexadecimal digits.
    """
    return _patcher_digest(patcher).hex()


def fingerprint_vae(vae: VAE) -> str:
    """Fingerprint of a VAE: its network, weights and the dtype it runs in. 64 hexadecimal digits."""
    return _digest(["vae", str(vae.vae_dtype), _patcher_digest(vae.patcher)]).hex()


def fingerprint_clip(clip: CLIP) -> str:
    """Fingerprint of a CLIP: its network, weights, patches, tokenizer class and options. 64 hexadecimal digits."""
    parts = [type(clip.tokenizer).__qualname__, clip.layer_idx, clip.tokenizer_options, clip.use_clip_schedule]
    return _digest(["clip", *parts, _digest(clip.apply_hooks_to_conds), _patcher_digest(clip.patcher)]).hex()


def fingerprint_image(image: Tensor) -> str:
    """Fingerprint of a picture or clip, every value of it: [..., H, W, C]. 64 hexadecimal digits."""
    head = repr((image.dtype, tuple(image.shape))).encode()
    return _hash("image", head, image.cpu().contiguous().numpy().tobytes()).hex()


def _patcher_digest(patcher: ModelPatcher) -> bytes:
    model = patcher.model
    replaced = {**patcher.object_patches, **patcher.object_patches_backup}
    names = set(patcher.object_patches) | {n for n in ("model_sampling", "manual_cast_dtype") if hasattr(model, n)}
    hidden = tuple(name + "." for name in {*replaced, "model_sampling"})
    config = getattr(model, "model_config", None)
    with patcher.use_ejected():
        weights = {key: _digest(value) for key, value in _weights(patcher) if not key.startswith(hidden)}
    return _digest(
        {
            "class": type(model),
            "network": type(getattr(model, "diffusion_model", None)),
            "config": getattr(config, "unet_config", None),
            "prediction": getattr(model, "model_type", None),
            "latents": type(getattr(model, "latent_format", None)),
            "weights": weights,
            "patches": patcher.patches,
            "objects": {name: _object_digest(patcher.get_model_object(name)) for name in names},
            "weight wrappers": patcher.weight_wrapper_patches,
            "options": patcher.model_options,
            "wrappers": patcher.wrappers,
            "callbacks": patcher.callbacks,
            "injections": patcher.injections,
            "hooks": [patcher.hook_patches, patcher.forced_hooks],
            "attachments": sorted(patcher.attachments),
            "models": {key: [_patcher_digest(p) for p in group] for key, group in patcher.additional_models.items()},
        }
    )


def _weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name, as it is without the patcher's patches."""
    for prefix, module in patcher.model.named_modules():
        saved = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for name, value in (*module._parameters.items(), *saved.items()):
            key = f"{prefix}.{name}" if prefix else name
            if key in patcher.hook_backup:
                value = patcher.hook_backup[key][0]
            elif key in patcher.backup:
                value = patcher.backup[key].weight
            elif key in patcher.backup_buffers:
                value = patcher.backup_buffers[key]
            if value is not None:
                yield key, value


def _object_digest(value: Any) -> bytes:
    """Digest of an object patch; a module counts with its weights and settings."""
    if not isinstance(value, torch.nn.Module):
        return _digest(value)
    tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
    return _digest([[base.__qualname__ for base in type(value).__mro__], _attributes(value), tensors])


def _digest(value: Any, depth: int = _DEPTH) -> bytes:
    """SHA-256 of a value, the same in every process; empty for None and empty containers.

    A container that holds nothing counts as not there, because nodes leave such behind when they copy options.
    """
    if value is None or (isinstance(value, (Mapping, list, tuple, set, frozenset)) and not value):
        return b""
    if isinstance(value, bytes):
        return _hash("bytes", value)
    if isinstance(value, Enum):
        return _hash(type(value).__qualname__, value.name.encode())
    if isinstance(value, (bool, int, float, str, torch.dtype)):
        return _hash(type(value).__name__, repr(value).encode())
    if isinstance(value, Tensor):
        return _tensor_digest(value)
    if isinstance(value, type):
        return _hash("type", value.__qualname__.encode())
    if depth == 0 or isinstance(value, ModelPatcher):
        return _hash("object", type(value).__qualname__.encode())
    inner = partial(_digest, depth=depth - 1)
    if isinstance(value, Mapping):
        items = [(inner(key) or inner(repr(key)), inner(item)) for key, item in value.items()]
        return _hash("map", *(part for pair in sorted(items) if pair[1] for part in pair))
    if isinstance(value, (list, tuple)):
        return _hash("list", *map(inner, value))
    if isinstance(value, (set, frozenset)):
        return _hash("set", *sorted(map(inner, value)))
    if isinstance(value, WeightAdapterBase):
        return _hash("adapter", inner(type(value)), inner(value.weights))
    if isinstance(value, partial):
        return _hash("partial", *map(inner, (value.func, value.args, value.keywords)))
    if isinstance(value, MethodType):
        return _hash("method", inner(value.__func__), inner(value.__self__))
    if hasattr(value, "__code__"):
        return _hash("function", value.__qualname__.encode(), *map(inner, _closure(value)))
    return _hash("object", type(value).__qualname__.encode(), inner(_attributes(value)))


def _closure(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that was never assigned
            yield None


def _attributes(value: Any) -> dict[str, Any]:
    """Public attributes. `training` only depends on calls of eval()."""
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_") and k != "training"}


def _tensor_digest(tensor: Tensor) -> bytes:
    if isinstance(tensor, QuantizedTensor):
        fields = {f.name: getattr(tensor.params, f.name) for f in dataclasses.fields(tensor.params)}
        return _hash("quantized", tensor.layout_cls.__name__.encode(), _digest(tensor._qdata), _digest(fields))
    # GGUF and other subclasses report another shape than that of the bytes they hold; the bytes are what counts.
    plain = tensor.detach().as_subclass(Tensor)
    head = repr((plain.dtype, tuple(plain.shape))).encode()
    bits = plain.view(_BITS[plain.element_size()])
    if plain.numel() > _SAMPLES:
        index = _sample_positions(plain.numel()).to(plain.device)
        # Never a copy of the whole: a tensor that is not contiguous is picked from by coordinates.
        bits = bits.view(-1)[index] if bits.is_contiguous() else bits[torch.unravel_index(index, bits.shape)]
    return _hash("tensor", head, bits.cpu().contiguous().numpy().tobytes())


def _sample_positions(count: int) -> Tensor:
    """_SAMPLES of `count` positions: runs spread evenly from the first value to the last."""
    length = _SAMPLES // _RUNS
    starts = torch.arange(_RUNS) * (count - length) // (_RUNS - 1)
    return (starts[:, None] + torch.arange(length)).flatten()


def _hash(kind: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()
