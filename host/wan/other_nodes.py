"""What nodes of other packs did to a Wan model: whatever a film would ignore or get wrong is refused by its name.

Patches of a model that its forward pass never reads change nothing, and ComfyUI says nothing. A causal film has its own
forward pass, no negative prompt, and few steps for each block, so there is more that it cannot do. What works, and what
is refused: docs/other-nodes.md, whose table the tests read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.patcher_extension
import torch

__all__ = ["causal_fault", "forward_fault", "inference_dtype", "is_compiled", "patch_fault"]

_READ = {"double_block", "attn1_patch", "attn2_patch"}
_TITLES = {
    "APG": "Adaptive Projected Guidance",
    "EasyCacheHolder": "EasyCache",
    "FreSca": "FreSca",
    "LazyCacheHolder": "LazyCache",
    "Mahiro": "Positive-Biased Guidance",
    "NAGuidance": "Normalized Attention Guidance",
    "PerturbedAttentionGuidance": "Perturbed-Attention Guidance",
    "SelfAttentionGuidance": "Self-Attention Guidance",
    "SkipLayerGuidanceDiTSimple": "Skip Layer Guidance (DiT, simple)",
    "TCFG": "Tangential Damping CFG",
}
"""Core's nodes by the class that their functions are made in, where a person sees another name on the node."""
_NEGATIVE = {"CFGZeroStar", "Mahiro", "PerturbedAttentionGuidance"}
"""Nodes whose function behind guidance does nothing to a Wan without a negative prompt."""
_SPARSE = re.compile(r"sparse_?attention", re.IGNORECASE)
"""In the name of an attention that reads a part of the tokens, or of the module it is made in."""
_OWN_FORWARD = re.compile(
    r"diffusion_model(\.blocks(\.\d+(\.(self_attn|cross_attn))?)?)?(\.(forward|_forward|forward_orig))?"
)
"""What a causal film runs itself: the network, its blocks and their attention. Their layers it calls as they are."""


def inference_dtype(model: comfy.model_patcher.ModelPatcher) -> torch.dtype:
    """The dtype that `model` computes in, whichever model's patches lie on the shared weights at the moment."""
    cast: torch.dtype | None = model.get_model_object("manual_cast_dtype")
    return model.model.get_dtype() if cast is None else cast


def patch_fault(model: comfy.model_patcher.ModelPatcher) -> str:
    """What no film of a Wan model can honour, as one sentence that says what to remove; empty without such, and for
    models of other families, which read other patches.
    """
    if not isinstance(getattr(model.model, "diffusion_model", None), comfy.ldm.wan.model.WanModel):
        return ""
    if model.model_options.get("context_handler") is not None:
        return (
            "Context Windows splits what is denoised, and an engine films it whole, in pieces of its own: remove the "
            "node from this model."
        )
    options = model.model_options.get("transformer_options", {})
    for name, functions in options.get("patches", {}).items():
        if name not in _READ and functions:
            return _unread(name, _origin(functions[0]))
    for name, functions in options.get("patches_replace", {}).items():
        if name != "dit" and functions:
            return _unread(name, _origin(next(iter(functions.values()))))
    return ""


def causal_fault(model: comfy.model_patcher.ModelPatcher) -> str:
    """What a causal film of the model would ignore or get wrong, as one sentence; empty where there is nothing."""
    return patch_fault(model) or _cache_fault(model) or _guidance_fault(model) or _replaced_fault(model)


def forward_fault(dit: Any, options: dict[str, Any]) -> str:
    """What only shows while the model runs, as one sentence. options: transformer_options of the pass."""
    if getattr(dit.forward_orig, "__func__", None) is not comfy.ldm.wan.model.WanModel.forward_orig:
        return (
            f"{_origin(dit.forward_orig)} replaces the model's forward pass while it samples, and a causal film runs "
            "its own: remove that node (a step cache such as TeaCache, for example) from this model."
        )
    unread = [name for name, found in options.get("patches_replace", {}).items() if name != "dit" and found]
    return _unread(unread[0], _origin(next(iter(options["patches_replace"][unread[0]].values())))) if unread else ""


def is_compiled(options: dict[str, Any]) -> bool:
    """Whether core's TorchCompileModel, or a node like it, compiles the model. options: transformer_options."""
    wrappers = options.get("wrappers", {}).get(comfy.patcher_extension.WrappersMP.APPLY_MODEL, {})
    return bool(wrappers.get("torch.compile"))


def _unread(patch: str, origin: str) -> str:
    return (
        f"{origin} patches {patch!r}, which no Wan model reads, so it would change nothing: remove it from this model."
    )


def _cache_fault(model: comfy.model_patcher.ModelPatcher) -> str:
    """Step caches: those of core, and others by the key that they wrap the model with."""
    options = model.model_options.get("transformer_options", {})
    keys = [key for kind in model.wrappers.values() for key in kind if isinstance(key, str)]
    holder = options.get("easycache")
    found = [_origin(holder)] if holder is not None else []
    found += [key for key in (*keys, *options) if "cache" in key.lower() and not key.startswith("longreel")]
    if not found:
        return ""
    return (
        f"{found[0]} reuses steps of one long run, and a causal film takes a few steps for each block and then writes "
        f"its memory: remove {found[0]} from this model."
    )


def _guidance_fault(model: comfy.model_patcher.ModelPatcher) -> str:
    """Guidance that needs a negative prompt, and attention that picks tokens by itself."""
    options = model.model_options
    override = options.get("transformer_options", {}).get("optimized_attention_override")
    if override is not None and _SPARSE.search(_full_name(override)):
        return (
            f"{_origin(override)} picks among a clip's own tokens, and a causal film attends to a memory: remove it "
            "from this model (Causal Memory limits what is attended to)."
        )
    hooks = [
        *(options[name] for name in ("sampler_cfg_function", "sampler_calc_cond_batch_function") if name in options),
        *options.get("sampler_pre_cfg_function", ()),
        *(f for f in options.get("sampler_post_cfg_function", ()) if _maker(f) in _NEGATIVE),
    ]
    if hooks:
        found = _origin(hooks[0])
    elif options.get("disable_cfg1_optimization"):
        found = "A guidance node"
    else:
        return ""
    return (
        f"{found} changes guidance away from a negative prompt, and a causal film is made at guidance 1 without one: "
        "remove it from this model."
    )


def _replaced_fault(model: comfy.model_patcher.ModelPatcher) -> str:
    """Forward passes that another node replaced and a causal film does not run."""
    for name, value in model.object_patches.items():
        # a compiled block has the layers of the block
        if _OWN_FORWARD.fullmatch(name) and (name == "diffusion_model" or not hasattr(value, "_orig_mod")):
            return (
                f"{_origin(value)} replaces {name.removeprefix('diffusion_model.')}, and a causal film runs its own "
                "forward pass: remove that node from this model."
            )
    return ""


def _maker(function: Any) -> str:
    """The class or function that a patch was made in."""
    return _qualified(function).split(".")[0]


def _origin(function: Any) -> str:
    """A patch's node, as a person knows it: the title, or the class and the pack."""
    maker, pack = _maker(function), _pack(_first(function, "__module__"))
    name = _TITLES.get(maker, maker)
    return f"{name} ({pack})" if pack else name


def _full_name(function: Any) -> str:
    return f"{_first(function, '__module__')}.{_qualified(function)}"


def _qualified(function: Any) -> str:
    return _first(function, "__qualname__")


def _first(function: Any, attribute: str) -> str:
    """Of the function itself, of what it is bound to or wraps, or of its class."""
    return str(next((found for each in _layers(function) if (found := getattr(each, attribute, None))), "A node"))


def _layers(function: Any) -> Iterable[Callable[..., Any]]:
    while (inner := getattr(function, "func", None)) is not None:
        function = inner
    yield function
    yield type(function)


def _pack(module: str) -> str:
    """The folder of a custom node in a module's name; empty for core."""
    if module.startswith(("comfy", "nodes", "torch", "functools")):
        return ""
    parts = [part for part in re.split(r"[\\/.]", module) if part]
    if "custom_nodes" in parts[:-1]:
        return parts[parts.index("custom_nodes") + 1]
    return parts[0] if parts else ""
