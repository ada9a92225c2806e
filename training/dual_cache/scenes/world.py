"""Films of the small world as files, with the lists that a user would write beside own films."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F

from ....miniature.world import FPS, SIZE, render
from ..world import draw_world_scene

ENLARGED = 4
"""The codec halves the colour resolution and 64 x 64 pixels have none to spare."""


def write_world_films(count: int, folder: Path, *, seed: int = 0) -> None:
    """Write `count` films of one scene each under `folder`, with cuts.json and captions.json; films that are there
    already are kept, others are removed.
    """
    from ....host.files.video import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    cuts, captions = {}, {}
    for index in range(count):
        shots = draw_world_scene(random.Random(f"film {seed} {index}"))
        lengths = [(1 + 4 * (shot.latents - 1)) / FPS for shot in shots]
        path = folder / f"world-{seed}-{index:03}.mp4"
        cuts[path.name] = [round(cut, 6) for cut in accumulate(lengths[:-1])]
        captions[path.name] = [shot.caption for shot in shots]
        if path.exists():
            continue
        with VideoWriter(path, SIZE * ENLARGED, SIZE * ENLARGED, FPS, crf=10) as film:
            for shot, seconds in zip(shots, lengths, strict=True):
                frames = render(shot.scene, torch.arange(round(seconds * FPS)) / FPS).frames
                film.write(F.interpolate(frames, scale_factor=ENLARGED, mode="nearest").movedim(1, -1))
    for path in folder.glob("world-*.mp4"):
        if path.name not in cuts:
            path.unlink()
    for name, told in (("cuts", cuts), ("captions", captions)):
        (folder / f"{name}.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
