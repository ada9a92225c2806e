"""The caches as a reel keeps them: one group of named tensors with JSON metadata (see film/reel.py).

A reel is its own history, shot by shot, so the values before are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .keyframe import Keyframe, Picture
from .profile import CacheError, LayoutProfile, check_profile
from .story import StoryCache

__all__ = ["pack", "unpack"]

_FIELDS = ("uid", "shot", "frame", "quality", "source", "pinned", "banned", "noise_seed")


def pack(cache: StoryCache) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name and JSON-able metadata of a story's caches, for FilmedShot.store."""
    tensors: dict[str, torch.Tensor] = {}
    history = cache.history
    if history is not None:
        tensors["temporal"] = history
    for i, keyframe in enumerate(cache.bank):
        tensors[f"{i}.luma"] = keyframe.picture.luma
        tensors[f"{i}.chroma"] = keyframe.picture.chroma
        tensors[f"{i}.latent"] = keyframe.latent
        tensors[f"{i}.embedding"] = keyframe.embedding
    meta = {
        "vae": cache.vae,
        "size": [cache.channels, cache.height, cache.width],
        "profile": cache.profile.to_json(),
        "shot": cache.shot,
        "chunk": cache.chunk,
        "latents": cache.latents,
        "bank": [
            {**{name: getattr(keyframe, name) for name in _FIELDS}, "characters": list(keyframe.characters)}
            for keyframe in cache.bank
        ],
    }
    return tensors, meta


def unpack(
    tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], *, vae: str, profile: LayoutProfile
) -> StoryCache:
    """The caches that were packed, without history. The tensors are kept as they are, mapped from a file or not.

    Raises CacheError if they were made with another VAE or layout profile than is in use.
    """
    if meta["vae"] != vae:
        raise CacheError(
            f"The caches were made with VAE {meta['vae']} and {vae} is in use: connect the one they were made with."
        )
    stored = LayoutProfile.from_json(meta["profile"])
    check_profile(stored, profile)
    channels, height, width = meta["size"]
    bank = tuple(
        Keyframe(
            picture=Picture(tensors[f"{i}.luma"], tensors[f"{i}.chroma"]),
            latent=tensors[f"{i}.latent"],
            embedding=tensors[f"{i}.embedding"],
            characters=tuple(entry["characters"]),
            **{name: entry[name] for name in _FIELDS},
        )
        for i, entry in enumerate(meta["bank"])
    )
    return StoryCache(
        vae=vae,
        channels=channels,
        height=height,
        width=width,
        profile=stored,
        shot=meta["shot"],
        chunk=meta["chunk"],
        latents=meta["latents"],
        bank=bank,
        temporal=(tensors["temporal"],) if "temporal" in tensors else (),
    )
