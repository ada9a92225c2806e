"""Clips of the small world encoded many at once: processes draw them with their exact flow, the device encodes them.

The same latents as ComfyUI's VAE gives, up to bf16, at a fraction of its time: its own trainer's encoder takes a batch.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from ...film.motion import pad_flow
from ...miniature.world import Scene
from ..miniature.export import read_vae
from ..miniature.vae import VaeRecipe, build_vae, encode
from .data import (
    Encoders,
    MotionClip,
    MotionSource,
    MotionSpec,
    begin_dataset,
    encode_text,
    is_made,
    render_clip,
    write_clip,
)

__all__ = ["encode_world"]

_BATCH = 8


@torch.no_grad()
def encode_world(
    sources: Sequence[MotionSource],
    encoders: Encoders,
    spec: MotionSpec,
    folder: Path,
    weights: Path,
    *,
    measured: bool = False,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> int:
    """As data.encode_clips, for world_clips and the miniature's VAE. weights: where its files are. workers: processes
    that draw.
    """
    begin_dataset(spec, encoders, folder)
    due = [source for source in sources if not is_made(folder, source, measured)]
    if not due:
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    vae.to(device).eval()

    def encoded(videos: list[torch.Tensor]) -> torch.Tensor:
        """Latents [N, 16, F, h, w] of videos [T, H, W, 3]."""
        batch = torch.stack(videos).movedim(-1, 1).to(device) * 2 - 1
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            latents: torch.Tensor = encode(vae, batch.contiguous(memory_format=torch.channels_last_3d))
        return latents.to("cpu", torch.bfloat16)

    clips = _drawn([source.scene for source in due], spec, workers)
    for start in range(0, len(due), _BATCH):
        part = list(islice(clips, _BATCH))
        videos = [each.frames for each in part]
        latents = encoded(videos)
        motion = encoded([spec.codec.encode(pad_flow(each.flow, spec.pad)) for each in part])
        orders = [
            torch.randperm(spec.frames, generator=torch.Generator().manual_seed(start + index))
            for index in range(len(part))
        ]
        shuffled = encoded([video[order] for video, order in zip(videos, orders)]) if measured else None
        for index, (source, clip) in enumerate(zip(due[start : start + _BATCH], part)):
            tensors = {"latents": latents[index], "motion": motion[index], "text": encode_text(encoders, clip.caption)}
            if shuffled is not None:
                tensors |= {"shuffled": shuffled[index], "flow": clip.flow}
            write_clip(folder, source, clip, tensors)
        if (start // _BATCH) % 8 == 7:
            say(f"{start + len(part)} of {len(due)} clips encoded")
    return len(due)


def _drawn(scenes: list[Scene | None], spec: MotionSpec, workers: int) -> Iterator[MotionClip]:
    draw = partial(_draw, spec)
    if workers < 2:
        yield from map(draw, scenes)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(draw, scenes, chunksize=2)


def _draw(spec: MotionSpec, scene: Scene | None) -> MotionClip:
    torch.set_num_threads(1)
    assert scene is not None, "a clip of the small world"
    return render_clip(scene, spec)
