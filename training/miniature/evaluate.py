"""What the miniature can do, in numbers: the attribute probe reads films of held-out prompts and reconstructions of
the VAE.

`python -m longreel.training evaluate` prints the tables of `docs/miniature.md` and writes strips of frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...miniature.probe import ATTRIBUTES, SIGHT, SPACING, Probe
from ...miniature.stories import describe, random_scene
from ...miniature.world import ACTIONS, FPS, Beat, Scene, render
from .export import FILES, read_probe
from .latents import OPENING

SHIFT = 5.0
"""The causal checkpoints' shift of the noise schedule."""
_READ = (*ATTRIBUTES, "action")
_SPAN = (SIGHT - 1) * SPACING + 1


@dataclass(frozen=True)
class Models:
    """The miniature as ComfyUI's stock loaders give it, and the probe."""

    model: Any
    clip: Any
    vae: Any
    probe: Probe


def load(weights: Path) -> Models:
    """Open the exported files under `weights`."""
    import comfy.sd
    import comfy.utils

    from ...host.miniature_clip import load_miniature_clip

    probe = Probe().eval()
    read_probe(probe, weights)
    model = comfy.sd.load_diffusion_model(str(weights / FILES["dit"]), model_options={"dtype": torch.float32})
    clip = load_miniature_clip(str(weights / FILES["text"]))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights / FILES["vae"])), dtype=torch.float32)
    return Models(model, clip, vae, probe)


def one_character_scene(rng: random.Random, *, held_out: bool = True) -> Scene:
    """A scene of one beat and one character, for a prompt whose attributes the probe can read."""
    scene = random_scene(rng, 1.0, two=0.0, held_out=held_out)
    beat = scene.beats[0]
    return Scene(scene.place, scene.actors, (Beat(0.0, beat.actions, beat.camera),))


def expected(scene: Scene) -> dict[str, str]:
    """What the probe should read from a film of a one-beat, one-character scene."""
    character = scene.actors[0].character
    return {
        "colour": character.colour, "body": character.body, "headgear": character.headgear, "place": scene.place,
        "action": scene.beats[0].actions[0],
    }  # fmt: skip


def schedule(steps: int) -> torch.Tensor:
    """Noise levels of even steps of time at shift 5; four give 1, 0.9375, 0.8333, 0.625, 0 of the released models."""
    even = torch.linspace(1, 0, steps + 1)
    return SHIFT * even / (1 + (SHIFT - 1) * even)


@torch.inference_mode()
def film_latents(model: Any, clip: Any, prompt: str, latent_frames: int, seed: int, *, steps: int = 4) -> torch.Tensor:
    """Latents [1, 16, F, 8, 8], ComfyUI's LATENT space, of a prompt rolled out causally with re-noising."""
    from ...host.wan.rollout import Prompt, roll_out

    told = [Prompt(0, clip.encode_from_tokens_scheduled(clip.tokenize(prompt)))]
    return roll_out(model, told, (1, 16, latent_frames, 8, 8), schedule(steps), seed=seed).latents


@torch.inference_mode()
def film(
    models: Models,
    prompt: str,
    latent_frames: int,
    seed: int,
    *,
    steps: int = 4,
    causal: bool = True,
    sampler: str = "euler",
) -> torch.Tensor:
    """Frames [T, H, W, 3] of a prompt.

    Rolled out causally with re-noising, or denoised all at once by one of core's samplers.
    """
    import comfy.sample

    from ...host.families import of_vae

    if causal:
        latents = film_latents(models.model, models.clip, prompt, latent_frames, seed, steps=steps)
    else:
        conditioning = models.clip.encode_from_tokens_scheduled(models.clip.tokenize(prompt))
        empty = torch.zeros(1, 16, latent_frames, 8, 8)
        noise = comfy.sample.prepare_noise(empty, seed)
        latents = comfy.sample.sample(
            models.model,
            noise,
            steps,
            1.0,
            sampler,
            "simple",
            conditioning,
            conditioning,
            empty,
            disable_pbar=True,
            seed=seed,
        )
    return torch.cat(list(of_vae(models.vae).decoder().decode(latents)))


def write_strip(rows: Iterable[torch.Tensor], path: Path) -> None:
    """Draw rows of frames [T, H, W, 3] as one picture, twice as large."""
    from PIL import Image

    picture = torch.cat([torch.cat(list(row), dim=1) for row in rows])
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def evaluate_prompts(
    models: Models,
    count: int,
    *,
    latent_frames: int = 21,
    steps: int = 4,
    causal: bool = True,
    seed: int = 0,
    strip: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Share of frames (windows, for the action) read as the prompt says, of `count` held-out one-character prompts."""
    rng = random.Random(f"prompts {seed}")
    sums = dict.fromkeys(_READ, 0.0)
    rows = []
    for index in range(count):
        scene = one_character_scene(rng)
        frames = film(models, describe(scene), latent_frames, seed * 100_000 + index, steps=steps, causal=causal)
        reading = models.probe.read(frames)
        for name, value in expected(scene).items():
            sums[name] += reading.accuracy(name, value)
        if index < 8:
            rows.append(frames[:: max(len(frames) // 12, 1)][:12])
        if (index + 1) % 20 == 0:
            say(f"{index + 1}: " + ", ".join(f"{name} {value / (index + 1):.3f}" for name, value in sums.items()))
    if strip is not None:
        write_strip(rows, strip)
    return {name: value / count for name, value in sums.items()}


@torch.inference_mode()
def evaluate_openings(
    models: Models, count: int, *, steps: int | None = 4, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Share of frames read as the prompt says in first blocks alone, over `count` held-out one-character prompts: what
    was learned of words, before any drift. By action, and over "all" of them. `steps` None: the same scenes rendered,
    through the VAE alone, which no film surpasses.
    """
    rng = random.Random(f"openings {seed}")
    rows: dict[str, list[dict[str, float]]] = {"all": [], **{action: [] for action in ACTIONS}}
    for index in range(count):
        scene = one_character_scene(rng)
        wanted = expected(scene)
        if steps is None:
            clip = render(scene, torch.arange(1 + 4 * (OPENING - 1)) / FPS).frames.movedim(1, -1)
            frames = models.vae.decode(models.vae.encode(clip))[0]
        else:
            frames = film(models, describe(scene), OPENING, seed * 100_000 + index, steps=steps)
        features = models.probe.features(frames.movedim(-1, 1))
        row = {
            name: (models.probe.heads[name](features).argmax(1) == values.index(wanted[name])).float().mean().item()
            for name, values in ATTRIBUTES.items()
        }
        rows["all"].append(row)
        rows[wanted["action"]].append(row)
    return {
        kind: {name: sum(row[name] for row in found) / len(found) for name in found[0]}
        for kind, found in rows.items()
        if found
    }


@torch.inference_mode()
def evaluate_vae(
    models: Models, count: int, *, seconds: float = 10.0, seed: int = 0, strip: Path | None = None
) -> dict[str, dict[str, float]]:
    """Probe accuracy on held-out rendered clips and on their reconstructions, over the whole clip and its first and
    last 2 s.

    Also `psnr` of the reconstruction, in decibels, for the same parts.
    """
    rng = random.Random(f"reconstructions {seed}")
    frames = 1 + 4 * round(seconds * FPS / 4)
    parts = {"whole": slice(None), "start": slice(0, _SPAN), "end": slice(-_SPAN, None)}
    columns = [f"{kind} {name}" for kind in ("original", "decoded") for name in _READ]
    table = {part: dict.fromkeys([*columns, "mse"], 0.0) for part in parts}
    rows = []
    for index in range(count):
        scene = one_character_scene(rng)
        clip = render(scene, torch.arange(frames) / FPS).frames.movedim(1, -1)
        decoded = models.vae.decode(models.vae.encode(clip))[0]
        for part, span in parts.items():
            for kind, pictures in (("original", clip), ("decoded", decoded)):
                reading = models.probe.read(pictures[span])
                for name, value in expected(scene).items():
                    table[part][f"{kind} {name}"] += reading.accuracy(name, value) / count
            table[part]["mse"] += (clip[span] - decoded[span]).square().mean().item() / count
        if index < 3:
            rows += [clip[-12:], decoded[-12:]]
    for values in table.values():
        values["psnr"] = float(-10 * torch.log10(torch.tensor(values.pop("mse"))))
    if strip is not None:
        write_strip(rows, strip)
    return table


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """A Markdown table; all rows have the same columns."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[column]:.3f}' for column in columns)} |")
