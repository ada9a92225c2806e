"""Stories of the small world filmed chunk by chunk with both caches, many stories in one pass.

A story is five shots with one character. Only the first prompt names it; the others say "the same character", so that
only the keyframes identify it. The camera is still, so that the character can be cut out of a frame by its difference
to the empty place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...film.dual_cache import (
    CacheNoise,
    Keyframe,
    Payload,
    RetrievalPolicy,
    StoryCache,
    build_payload,
    inject,
    push_chunk,
    retrieve,
    spread_frames,
)
from ...film.dual_cache.story import clear_temporal
from ...miniature.probe import Probe
from ...miniature.stories import describe, random_character
from ...miniature.world import PLACES, SIZE, Scene
from ..core.precision import mixed_precision
from ..miniature.vae import decode
from .train import WeaverMatcher
from .world import encode_frames, is_new, one_beat

SHOTS = 5
CHUNKS = 2
_KEYFRAMES = 3
_CHANNELS, _SIZE = 16, (SIZE // 8, SIZE // 8)


@dataclass(frozen=True)
class StoryShot:
    """A shot to be filmed, and its caption."""

    scene: Scene
    prompt: str


@dataclass(frozen=True, eq=False)
class Studio:
    """What films and what judges. `vae` as the miniature's trainer has it; `guidance` by the keyframes, 1: none;
    renoise: predictions are re-noised in place of Euler steps.
    """

    matcher: WeaverMatcher
    clip: Any
    embedder: Any
    vae: Any
    probe: Probe
    steps: int = 12
    guidance: float = 1.0
    renoise: bool = False

    def text(self, prompt: str) -> torch.Tensor:
        """An encoded prompt [48, D]."""
        rows: torch.Tensor = self.clip.encode_from_tokens(self.clip.tokenize(prompt))[0]
        return rows.float().cpu()

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames [T, H, W, 3] in 0..1 of latents [16, F, h, w]."""
        device = next(self.vae.parameters()).device
        with torch.no_grad(), mixed_precision(device):
            clip = decode(self.vae, latents[None].to(device))[0].float().cpu()
        return (clip.clamp(-1, 1) * 0.5 + 0.5).permute(1, 2, 3, 0)

    def keyframes(self, pictures: torch.Tensor, shot: int) -> tuple[Keyframe, ...]:
        """Pictures [n, H, W, 3] as keyframes of a shot; -1 for a user's."""
        embedded = self.embedder.images(pictures)
        return tuple(
            Keyframe.of(picture, encode_frames(self.vae, picture.movedim(-1, 0)[None]), row, shot=shot, frame=number)
            for number, (picture, row) in enumerate(zip(pictures, embedded, strict=True))
        )


@dataclass(frozen=True)
class Variant:
    """What of the caches is given."""

    shot_cache: bool = True
    temporal_cache: bool = True
    noise: CacheNoise = CacheNoise()


@dataclass(frozen=True, eq=False)
class FilmedShot:
    """Frames [T, H, W, 3], and the embeddings of the keyframes that conditioned the shot."""

    shot: StoryShot
    frames: torch.Tensor
    told: tuple[torch.Tensor, ...]


def draw_story(rng: random.Random, shots: int = SHOTS) -> tuple[StoryShot, ...]:
    """One character, of those that the LoRA was trained on, through places that half of the time stay."""
    while is_new(lead := random_character(rng)):
        pass
    place, drawn = rng.choice(PLACES), []
    for number in range(shots):
        if number and rng.random() < 0.5:
            place = rng.choice(PLACES)
        scene = one_beat(rng, place, [lead])
        drawn.append(StoryShot(scene, describe(scene, same=frozenset({0}) if number else frozenset())))
    return tuple(drawn)


def new_cache(studio: Studio) -> StoryCache:
    """Of a story that begins."""
    return StoryCache("miniature", _CHANNELS, *_SIZE, profile=studio.matcher.profile)


def film_stories(
    studio: Studio, stories: Sequence[Sequence[StoryShot]], variant: Variant, *, seed: int = 0
) -> list[list[FilmedShot]]:
    """All stories, shot by shot and chunk by chunk; the same noise for the same seed whatever the variant."""
    caches = [new_cache(studio) for _ in stories]
    filmed: list[list[FilmedShot]] = [[] for _ in stories]
    for number in range(len(stories[0])):
        shots = [story[number] for story in stories]
        ranked = [_recalled(studio, cache, shot.prompt, variant) for cache, shot in zip(caches, shots, strict=True)]
        takes, caches = film_shots(studio, shots, caches, ranked, variant, seed=seed * 1000 + number)
        for index, (take, cache) in enumerate(zip(takes, caches, strict=True)):
            frames = studio.decoded(take)
            filmed[index].append(FilmedShot(shots[index], frames, tuple(one.embedding for one in ranked[index])))
            chosen = [4 * place for place in spread_frames(take.shape[1], _KEYFRAMES)]
            caches[index] = inject(clear_temporal(cache), studio.keyframes(frames[chosen], number))
    return filmed


def film_shots(
    studio: Studio,
    shots: Sequence[StoryShot],
    caches: Sequence[StoryCache],
    keyframes: Sequence[Sequence[Keyframe]],
    variant: Variant,
    *,
    seed: int,
    chunks: int = CHUNKS,
) -> tuple[list[torch.Tensor], list[StoryCache]]:
    """Latents [16, F, h, w] of one shot of every story, and the caches with these as their histories."""
    profile = studio.matcher.profile
    texts = [studio.text(shot.prompt) for shot in shots]
    caches = list(caches)
    made: list[list[torch.Tensor]] = [[] for _ in shots]
    generator = torch.Generator().manual_seed(seed)
    for chunk in range(chunks):
        payloads = _payloads(caches, keyframes, variant, seed * 10 + chunk)
        before = _payloads(caches, [()] * len(shots), variant, seed * 10 + chunk)
        noise = torch.randn(len(shots), _CHANNELS, profile.chunk, *_SIZE, generator=generator)
        # Where there are no keyframes there is nothing to guide by.
        guidance = studio.guidance if any(keyframes) else 1.0
        latents = studio.matcher.sample(
            texts, payloads, noise, steps=studio.steps, without=before, guidance=guidance,
            renoise=generator if studio.renoise else None,
        ).cpu()  # fmt: skip
        for index, one in enumerate(latents):
            made[index].append(one)
            caches[index] = push_chunk(caches[index], one)
    return [torch.cat(pieces, dim=1) for pieces in made], caches


def _recalled(studio: Studio, cache: StoryCache, prompt: str, variant: Variant) -> tuple[Keyframe, ...]:
    if not variant.shot_cache or not cache.bank:
        return ()
    return retrieve(cache.bank, studio.embedder.text(prompt), RetrievalPolicy(count=_KEYFRAMES)).keyframes


def _payloads(
    caches: Sequence[StoryCache], keyframes: Sequence[Sequence[Keyframe]], variant: Variant, seed: int
) -> list[Payload]:
    told = []
    for cache, kept in zip(caches, keyframes, strict=True):
        known = cache if variant.temporal_cache else clear_temporal(cache)
        payload = build_payload(known, kept, variant.noise, seed)
        if payload is not None:
            told.append(payload)
    return told
