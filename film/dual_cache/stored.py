"""The caches in a reel's files: groups of named tensors with JSON metadata (see film/reel/reel.py, film/reel/edit.py).

A reel is its own history, shot by shot and edit by edit, so a group holds what is new since the one before, and the
values before are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .keyframe import Keyframe, Picture
from .profile import CacheError
from .story import StoryCache, inject

__all__ = ["pack", "stored_pictures", "unpack"]

_FIELDS = ("uid", "shot", "frame", "quality", "source", "pinned", "banned", "noise_seed")


def pack(cache: StoryCache, since: StoryCache) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name and JSON-able metadata of what is new in `cache` since the earlier value `since`.

    The metadata names keyframes by their content, so two changes differ in their metadata alone.
    """
    tensors: dict[str, torch.Tensor] = {}
    history = cache.history
    if history is not None:
        tensors["temporal"] = history
    known = {_marks(keyframe) for keyframe in since.bank}
    changed = [keyframe for keyframe in cache.bank if _marks(keyframe) not in known]
    for i, keyframe in enumerate(changed):
        tensors[f"{i}.luma"] = keyframe.picture.luma
        tensors[f"{i}.chroma"] = keyframe.picture.chroma
        tensors[f"{i}.latent"] = keyframe.latent
        tensors[f"{i}.embedding"] = keyframe.embedding
    left = {keyframe.uid for keyframe in cache.bank}
    meta = {
        "vae": cache.vae,
        "clip": cache.clip,
        "shot": cache.shot,
        "chunk": cache.chunk,
        "latents": cache.latents,
        "bank": [
            {**{name: getattr(keyframe, name) for name in _FIELDS}, "characters": list(keyframe.characters)}
            for keyframe in changed
        ],
        "removed": [keyframe.uid for keyframe in since.bank if keyframe.uid not in left],
    }
    return tensors, meta


def unpack(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any], since: StoryCache) -> StoryCache:
    """The caches that were packed, without history. The tensors are kept as they are, mapped from a file or not.

    since: the value they were packed against; its layout profile is kept, as latents do not depend on one. Raises
    CacheError if they were made with another VAE or CLIP.
    """
    for name, mine, wanted in (("VAE", meta["vae"], since.vae), ("CLIP model", meta["clip"], since.clip)):
        if mine != wanted:
            raise CacheError(f"The caches were made with another {name}: connect the one they were made with.")
    kept = replace(since, bank=tuple(keyframe for keyframe in since.bank if keyframe.uid not in meta["removed"]))
    changed = [
        Keyframe(
            picture=Picture(tensors[f"{i}.luma"], tensors[f"{i}.chroma"]),
            latent=tensors[f"{i}.latent"],
            embedding=tensors[f"{i}.embedding"],
            characters=tuple(entry["characters"]),
            **{name: entry[name] for name in _FIELDS},
        )
        for i, entry in enumerate(meta["bank"])
    ]
    return replace(
        inject(kept, changed),
        shot=meta["shot"],
        chunk=meta["chunk"],
        latents=meta["latents"],
        temporal=(tensors["temporal"],) if "temporal" in tensors else (),
        before=None,
    )


def stored_pictures(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> dict[str, Picture]:
    """The pictures of the keyframes that were packed, by uid, whatever VAE and CLIP they were made with."""
    return {entry["uid"]: Picture(tensors[f"{i}.luma"], tensors[f"{i}.chroma"]) for i, entry in enumerate(meta["bank"])}


def _marks(keyframe: Keyframe) -> tuple[object, ...]:
    """What distinguishes two states of a keyframe; the uid stands for its content."""
    return keyframe.uid, keyframe.pinned, keyframe.banned, keyframe.characters
