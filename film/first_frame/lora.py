"""Checks on the keys of a first-frame LoRA. Sets of names in, findings out: nothing here reads a file or a tensor.

The released adapters name their keys `lora_unet__blocks_0_self_attn_q.lora_down.weight`. ComfyUI recognises that style
by one key alone, the sentinel; an adapter without it (trained on other modules only) loads as nothing, with warnings in
the log and no error (docs/methods/ffgo.md, LoRA). The style `diffusion_model.blocks.0.self_attn.q.lora_down.weight`
always loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from .values import FirstFrameError

__all__ = [
    "SENTINEL",
    "Expert",
    "KeyReport",
    "KeyStyle",
    "check_keys",
    "check_pair",
    "expert_of",
    "needs_conversion",
    "target_modules",
    "to_core_keys",
    "to_released_keys",
]

SENTINEL = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
RELEASED_PREFIX = "lora_unet__"
CORE_PREFIX = "diffusion_model."
PARTS = ("lora_down.weight", "lora_up.weight", "alpha")
BLOCK_MODULES = (
    *(f"{attention}.{linear}" for attention in ("self_attn", "cross_attn") for linear in ("q", "k", "v", "o")),
    "ffn.0",
    "ffn.2",
)

# Underscores replace dots in released keys; the names of Wan's modules decide which were underscores before.
FLAT_MODULE = re.compile(
    r"(?P<block>blocks_\d+)_(?:(?P<attention>self_attn|cross_attn)_(?P<linear>q|k|v|o|k_img|v_img)|ffn_(?P<ffn>\d+))"
    r"|(?P<embedding>time_projection|time_embedding|text_embedding|img_emb_proj)_(?P<index>\d+)"
    r"|(?P<head>head_head)"
)

KeyStyle = Literal["released", "core", "unknown"]
Expert = Literal["high", "low"]


def target_modules(blocks: int) -> tuple[str, ...]:
    """The Linear layers the published LoRA adapts: ten a block, and the time projection.

    That makes 401 for the 40 blocks of Wan 14B (docs/methods/ffgo.md, LoRA).
    """
    return (*(f"blocks.{block}.{name}" for block in range(blocks) for name in BLOCK_MODULES), "time_projection.1")


@dataclass(frozen=True)
class KeyReport:
    """What a set of keys is.

    style: "released" or "core" if every key has that prefix, else "unknown". modules: dotted names of all that are
    complete (down and up), in order. incomplete: those that lack one of the two, so that ComfyUI leaves them out.
    missing: expected but not there at all. loads: whether ComfyUI's own loader applies the complete ones.
    """

    style: KeyStyle
    modules: tuple[str, ...]
    incomplete: tuple[str, ...]
    missing: tuple[str, ...]
    loads: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one sentence each."""
        found = []
        if self.style == "unknown":
            found.append("These are not the keys of a first-frame LoRA: choose another file.")
        elif not self.loads:
            found.append("ComfyUI would load this LoRA as nothing: its keys must be converted.")
        if self.incomplete:
            found.append(f"Modules that lack a tensor: {len(self.incomplete)}, the first is {self.incomplete[0]}.")
        if self.missing:
            found.append(f"Modules that are not adapted: {len(self.missing)}, the first is {self.missing[0]}.")
        return tuple(found)


def check_keys(keys: Iterable[str], expected: Iterable[str] = ()) -> KeyReport:
    """Read a LoRA's keys. expected: dotted module names, such as `target_modules(40)`, or none to accept any."""
    names = set(keys)
    style = _style(names)
    parts: dict[str, set[str]] = {}
    for key in names if style != "unknown" else ():
        module, part = _split(key)
        parts.setdefault(module, set()).add(part)
    needed = set(PARTS[:2])
    complete = sorted((module for module, found in parts.items() if needed <= found), key=_natural)
    return KeyReport(
        style,
        tuple(complete),
        tuple(sorted(parts.keys() - set(complete), key=_natural)),
        tuple(module for module in expected if module not in parts),
        bool(complete) and (style == "core" or SENTINEL in names),
    )


def needs_conversion(keys: Iterable[str]) -> bool:
    """Whether ComfyUI would silently load nothing of these keys although they can be understood."""
    names = set(keys)
    return _style(names) == "released" and SENTINEL not in names


def to_core_keys(keys: Iterable[str]) -> dict[str, str]:
    """New names by old, in the style that ComfyUI always loads; keys that have it already stay.

    Raises FirstFrameError if a key belongs to no module of a Wan model.
    """
    return {key: CORE_PREFIX + ".".join(_split(key)) for key in keys}


def to_released_keys(keys: Iterable[str]) -> dict[str, str]:
    """The inverse of `to_core_keys`: new names by old, in the style of the released files."""
    renamed = {}
    for key in keys:
        module, part = _split(key)
        renamed[key] = f"{RELEASED_PREFIX}{module.replace('.', '_')}.{part}"
    return renamed


def expert_of(name: str, metadata: Mapping[str, str] | None = None) -> Expert | None:
    """Which expert a LoRA is for, by its metadata's `expert`, else by its file name; None if neither is clear.

    Shapes are the same for both experts, so nothing in the tensors tells them apart.
    """
    stated = (metadata or {}).get("expert", "").strip().lower()
    if stated in ("high", "low"):
        return "high" if stated == "high" else "low"
    # "LargeMixed_14bHigh", "wan_HIGH_bf16", "low_noise_model": a word of its own or a capital after small letters.
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    said = {word.lower() for word in words} & {"high", "low"}
    if said == {"high"}:
        return "high"
    return "low" if said == {"low"} else None


def check_pair(high: Expert | None, low: Expert | None) -> tuple[str, ...]:
    """One sentence for each LoRA of a pair that sits on the wrong expert.

    high, low: `expert_of` the LoRA used on the high-noise and on the low-noise model.
    """
    if high == "low" and low == "high":
        return ("The two LoRAs are swapped: exchange the high-noise and the low-noise one.",)
    found = []
    if high == "low":
        found.append("The high-noise model has the low-noise LoRA: choose the high-noise one.")
    if low == "high":
        found.append("The low-noise model has the high-noise LoRA: choose the low-noise one.")
    return tuple(found)


def _style(names: set[str]) -> KeyStyle:
    """The one style all keys have."""
    if not names:
        return "unknown"
    try:
        for key in names:
            _split(key)
    except FirstFrameError:
        return "unknown"
    if all(key.startswith(RELEASED_PREFIX) for key in names):
        return "released"
    return "core" if all(key.startswith(CORE_PREFIX) for key in names) else "unknown"


def _split(key: str) -> tuple[str, str]:
    """A key of either style as dotted module name and part."""
    for part in PARTS:
        if key.endswith("." + part):
            module = key[: -len(part) - 1]
            if module.startswith(CORE_PREFIX):
                flat = module.removeprefix(CORE_PREFIX).replace(".", "_")
            else:
                flat = module.removeprefix(RELEASED_PREFIX)
            found = FLAT_MODULE.fullmatch(flat)
            if found and flat != module:
                return _dotted(found), part
    raise FirstFrameError(f'"{key}" is no key of a Wan LoRA: this file cannot be converted.')


def _dotted(found: re.Match[str]) -> str:
    """The module name with its dots."""
    if found["head"]:
        return "head.head"
    if found["embedding"]:
        return f"{found['embedding'].replace('img_emb_', 'img_emb.')}.{found['index']}"
    block = found["block"].replace("_", ".")
    return f"{block}.ffn.{found['ffn']}" if found["ffn"] else f"{block}.{found['attention']}.{found['linear']}"


def _natural(module: str) -> tuple[tuple[int, str], ...]:
    """Sorts block 10 behind block 9."""
    return tuple((int(part) if part.isdigit() else -1, part) for part in module.split("."))
