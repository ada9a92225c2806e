"""Small keyframes and stories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from longreel.film.dual_cache import Keyframe, StoryCache


def make_keyframe(seed: int = 0, embedding: Any = None, quality: float | None = None, **options: Any) -> Keyframe:
    """A keyframe [2, 1, 4, 4] whose content depends on its seed."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(8, generator=generator) if embedding is None else torch.tensor(embedding)
    image = torch.rand(6, 8, 3, generator=generator)
    made = Keyframe.of(image, torch.randn(2, 1, 4, 4, generator=generator), vector, **options)
    return made if quality is None else replace(made, quality=quality)


@pytest.fixture
def keyframe() -> Callable[..., Keyframe]:
    return make_keyframe


@pytest.fixture
def story() -> StoryCache:
    return StoryCache(vae="vae-a", channels=2, height=4, width=4)
