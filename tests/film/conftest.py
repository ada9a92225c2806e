"""A small layout, and shots filmed in it without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from longreel.film.reel.reel import FilmedShot, ReelLayout
from longreel.film.storyboard.text import Shot, TimedPrompt

LAYOUT = ReelLayout(
    fps=16.0,
    width=32,
    height=16,
    latent_channels=4,
    spatial_compression=8,
    temporal_compression=4,
    model="model-a",
    vae="vae-a",
    engine={"frames_per_block": 3, "layers": 2},
)


@pytest.fixture
def layout() -> ReelLayout:
    return LAYOUT


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., FilmedShot]:
    """film("a cat", previous="...", seed=1, ...): a stored shot whose tensors depend on its seed."""

    def film_shot(text: str, previous: str = "", latent_frames: int = 6, **options: Any) -> FilmedShot:
        seed = options.pop("seed", 0)
        start = "cut" if options.get("take_start", True) else "continue"
        generator = torch.Generator().manual_seed(seed)
        spill = tmp_path / "spill"
        spill.mkdir(exist_ok=True)
        latents = torch.randn(1, 4, latent_frames, 2, 4, generator=generator)
        keys = torch.randn(3, 5, generator=generator).bfloat16()
        return FilmedShot.store(
            Shot((TimedPrompt(0, text),), 1.0, seed, start),  # type: ignore[arg-type]
            latents,
            **{
                "previous": previous,
                "settings": {"model": "model-a", "memory": {"window": 9, "sink": 3}},
                "take_start": True,
                "frames": 16,
                "tensors": {"memory": {"k.0": keys, "seen": torch.tensor(7)}},
                "meta": {"memory": {"position": 6}},
                "folder": spill,
                **options,
            },
        )

    return film_shot
