"""What the shipped weights reach, measured with each adapter on and off: rows of figures by name.

Every measure takes how many films it may make and whether they are short; the figures are seeded, so one machine and
thread count gives the same ones twice. Films are made as the method's own evaluation makes them (`longreel.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from longreel.host.files.paths import MINIATURE_WEIGHTS
from longreel.host.miniature_clip import load_miniature_clip
from longreel.training.causal import evaluate as causal
from longreel.training.dual_cache import evaluate as dual_cache
from longreel.training.first_frame import evaluate as first_frame
from longreel.training.miniature import evaluate as miniature
from longreel.training.miniature.export import FILES, read_vae
from longreel.training.miniature.vae import VaeRecipe, build_vae

Row = Mapping[str, float]
STEPS, CAST_FRAMES = 4, 12
SHORT_SHOTS = (9, 12, 9, 9, 12, 9)
"""Latent frames of the shots of a short story of `causal`: the lead has left the window when it returns."""


@cache
def models() -> miniature.Models:
    """The shipped base."""
    return miniature.load(MINIATURE_WEIGHTS)


def base(count: int, short: bool) -> dict[str, Row]:
    """Films of 5 s in four steps from held-out prompts."""
    return {"base": miniature.evaluate_prompts(models(), count, steps=STEPS, say=lambda _: None)}


def vae(count: int, short: bool) -> dict[str, Row]:
    """What the VAE keeps of held-out clips, of 2 or 5 s: shares of what the probe detects in the originals."""
    found = miniature.evaluate_vae(models(), count, seconds=2.0 if short else 5.0)["whole"]
    kept = {name: found[f"decoded {name}"] / found[f"original {name}"] for name in ("colour", "body", "place")}
    return {"VAE": kept | {"psnr": found["psnr"]}}


def memory(count: int, short: bool) -> dict[str, Row]:
    """Stories of a minute, or of 15 s, in which the lead comes back: the memory adapter with its bank and without it;
    in long ones with a sink alone, too.
    """
    stories = [causal.draw_story(number) for number in range(count)]
    decoder = build_vae(VaeRecipe().width)
    read_vae(decoder, MINIATURE_WEIGHTS)
    ways = {
        "memory: adapter and bank": (_with_lora(models(), FILES["memory"]), "+ bank"),
        "memory: bank without the adapter": (models(), "+ bank"),
    }
    if not short:
        ways["memory: adapter with a sink alone"] = (_with_lora(models(), FILES["memory"]), "+ sink")
    rows = {}
    for name, (chosen, kind) in ways.items():
        lengths = SHORT_SHOTS if short else causal.LENGTHS
        shots, held = causal.film_stories(chosen, stories, 0, causal.MEMORIES[kind], lengths)
        read = causal.read_stories(chosen.probe, decoder.eval(), stories, shots)
        row = causal.summary([{"block_ms": 0.0, "held": held, "read": read}])
        rows[name] = {key: row[key] for key in ("recall", "named", "place")}
    return rows


def dual_caches(count: int, short: bool) -> dict[str, Row]:
    """Stories of five shots with FilmWeaver's LoRA: with both caches, and without the shot cache.

    short: in few steps without guidance.
    """
    how: dict[str, Any] = {"steps": 3, "renoise": True} if short else {"steps": 12, "guidance": 3.0}
    studio = dual_cache.open_studio(MINIATURE_WEIGHTS / FILES["filmweaver"], MINIATURE_WEIGHTS, **how)
    kept = ("character consistency", "same character, probe", "place as told, probe", "motion continuity")
    rows = {}
    with torch.inference_mode():
        for name in ("full", "without shot cache"):
            row = dual_cache.evaluate_stories(studio, dual_cache.VARIANTS[name], count, 0)
            rows[f"dual cache: {name}"] = {key: row[key] for key in kept}
    return rows


def first_frames(count: int, short: bool) -> dict[str, Row]:
    """Held-out casts from the pictures in the first frame, with the cast LoRA and without, on the base of
    `cast-miniature`.
    """
    dit = MINIATURE_WEIGHTS / "diffusion_models" / "longreel-miniature-cast-base.safetensors"
    text = MINIATURE_WEIGHTS / "text_encoders" / "longreel-miniature-cast-text.safetensors"
    model = comfy.sd.load_diffusion_model(str(dit), model_options={"dtype": torch.float32})
    plain = miniature.Models(model, load_miniature_clip(str(text)), models().vae, models().probe)
    ways = {"first frame: LoRA": _with_lora(plain, FILES["cast"]), "first frame: without": plain}
    rows = {}
    for name, chosen in ways.items():
        comfy.model_management.load_models_gpu([chosen.model], force_full_load=True)
        film = partial(first_frame.model_film, chosen, steps=STEPS, latent_frames=CAST_FRAMES, renoise=True)
        row = first_frame.evaluate_casts(film, chosen.probe, count)
        rows[name] = {key: row[key] for key in ("every reference", "each", "colour", "place")}
    return rows


MEASURES: Mapping[str, Callable[[int, bool], dict[str, Row]]] = {
    "base": base, "vae": vae, "memory": memory, "dual_cache": dual_caches, "first_frame": first_frames,
}  # fmt: skip


def shipped_loras() -> set[Path]:
    """Every adapter file that the pack ships."""
    return set((MINIATURE_WEIGHTS / "loras").glob("*.safetensors"))


def _with_lora(chosen: miniature.Models, file: str) -> miniature.Models:
    """`chosen` with a shipped LoRA on its model, as core's loader patches it."""
    weights: dict[str, Any] = comfy.utils.load_torch_file(str(MINIATURE_WEIGHTS / file))
    patched, _ = comfy.sd.load_lora_for_models(chosen.model, None, weights, 1.0, 0.0)
    return miniature.Models(patched, chosen.clip, chosen.vae, chosen.probe)
