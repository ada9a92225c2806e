"""Can one clip be learned? The check of a trainer that is wrong somewhere: one clip of the small world and its sentence
are learned on a scaled-down Stable Video Diffusion, then the clip is filmed from its first frame.

    python benchmarks/instruction_overfit.py [--learner adapter|unet] [--base FILE] [--steps 800] [--folder DIR]

Learners: an adapter on a frozen UNet (random, or trained with `--base`, a small one such as the miniature's), or the
whole UNet by the same loss and sampler, from nothing.

Prints PSNR in dB of the predicted frames (the first is known and left out) against the clip as the stand-in VAE, which
averages 8 x 8 pixels, shows it; the same for the first frame repeated, which is what doing nothing gives. Everything is
seeded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from longreel.training.core.command_line import start_comfyui

PACK = Path(__file__).resolve().parents[1]
ASK = "A red ball with a crown walks in the middle in the forest."
FRAMES = 8


def clip_frames() -> torch.Tensor:
    """[8, 64, 64, 3] in 0..1: a second of it."""
    from longreel.miniature.world import Actor, Beat, Character, Scene, render

    scene = Scene("forest", (Actor(Character("red", "ball", "crown")),), (Beat(0.0, ("walks",)),))
    return render(scene, torch.arange(FRAMES) / FRAMES).frames.movedim(1, -1)


def overfit(learner: str, steps: int, folder: Path, base: Path | None) -> dict[str, float]:
    """Train and film; returns the figures. learner: "adapter" or "unet"."""
    from longreel.film.instruction import fallback_states
    from longreel.film.instruction.adapters import AidAdapter
    from longreel.film.metrics.video_distance import psnr
    from longreel.host.files.paths import MINIATURE_WEIGHTS
    from longreel.host.guidance import SpatioTemporalGuidance
    from longreel.host.miniature_clip import load_miniature_clip
    from longreel.host.sampling import Inputs, Stage, sample, schedule
    from longreel.host.svd.adapters import AdapterFile, apply_adapter, load_adapter
    from longreel.host.svd.conditioning import condition
    from longreel.host.svd.model import SvdSize, make_svd
    from longreel.host.svd.small import load_small_svd
    from longreel.tests.server import stand_ins
    from longreel.training.instruction.base import UNET_ZERO, initialise, train_unet, without_words
    from longreel.training.instruction.data import Clip, architecture_of, encode_clips, encoders_of
    from longreel.training.instruction.train import MINIATURE, train_adapter
    from longreel.training.miniature.export import FILES

    clip: Any = load_miniature_clip(str(MINIATURE_WEIGHTS / FILES["text"]))
    if base is None:
        model = make_svd(SvdSize(32, (1, 2), (True, True), 1, 16, stand_ins.CONTEXT))
        stand_ins.fill(model.model.diffusion_model, 1)
        model.model.latent_format.scale_factor = 2.0  # of unit variance, as EDM takes latents to be
        encoders = encoders_of(model, clip, stand_ins.small_vision(), stand_ins.SmallVae())
    else:
        small = load_small_svd(base)
        model, encoders = small.model, encoders_of(small.model, clip, small.clip_vision, small.vae)
    architecture = architecture_of(
        model, encoders, num_frames=FRAMES, width=64, height=64, num_states=2, dq_heads=4, lt_head_width=8,
        ratio=1,
    )  # fmt: skip
    frames = clip_frames()
    (example,) = encode_clips([Clip("walks", frames, ASK)], architecture, encoders, folder / "examples")
    settings = replace(
        MINIATURE, steps=steps, batch=4, micro_batch=4, lr=5e-3, warmup=20, ema_decay=0.98, text_dropout=0.0,
        frames_dropout=0.0, both_dropout=0.0, sample_every=max(steps // 4, 1), save_every=0,
    )  # fmt: skip
    if learner == "unet":
        initialise(model.model.diffusion_model, 1, zero=UNET_ZERO)
        train_unet(model, architecture, [example], replace(settings, lr=3e-3, muon_lr=1e-2), folder)
        file = AdapterFile.of(AidAdapter(without_words(architecture), torch.nn))
        patched = model
    else:
        file = load_adapter(train_adapter(model, architecture, [example], settings, folder, held_out=[example]))
        patched = apply_adapter(model, file)
    given = condition(
        file,
        encoders.clip,
        encoders.clip_vision,
        encoders.vae,
        frames[:1],
        ASK,
        fallback_states(ASK, 2),
        augmentation=0,
    )
    samples, count = given.latent["samples"], 20
    with torch.inference_mode():
        rows = sample(
            [Stage(patched, 0, count)],
            Inputs(given.conds, samples, None),
            [SpatioTemporalGuidance((1.0, 1.0), 1.0)],
            torch.randn(samples.shape, generator=torch.Generator().manual_seed(1)),
            sigmas=schedule(patched, "karras", count, "euler"),
            sampler="euler",
            seed=1,
        )
        shown = encoders.vae.decode(encoders.vae.encode(frames))
        filmed = encoders.vae.decode(rows)
    return {
        "psnr": psnr(shown[1:], filmed[1:]),
        "first_frame_repeated": psnr(shown[1:], shown[:1].expand(7, -1, -1, -1)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="updates: default 800")
    parser.add_argument("--learner", choices=("adapter", "unet"), default="adapter", help="default adapter")
    parser.add_argument("--base", type=Path, help="a small SVD to adapt; one of random weights if left out")
    parser.add_argument("--folder", type=Path, help="of the run, which goes on there; a temporary one if left out")
    chosen = parser.parse_args()
    start_comfyui()
    with tempfile.TemporaryDirectory() as temporary:
        figures = overfit(chosen.learner, chosen.steps, chosen.folder or Path(temporary), chosen.base)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
