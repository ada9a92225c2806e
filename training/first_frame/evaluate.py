"""Evaluation of a cast LoRA on the miniature, with and without it: the attribute probe detects every reference.

The probe classifies films of one character. Of two, which the small world keeps left and right, it classifies each half
by itself, its inner edge drawn out to the width of a frame. What the probe makes of the true clips, cut the same way,
is the best that any film can reach; it stands in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...film.first_frame import COLLAGE_FRAMES, build_prompt
from ...miniature.probe import Probe, Reading, half
from ...miniature.stories import describe
from ...miniature.world import FPS, render
from ..core.command_line import command_line
from ..core.objectives.flow_matching import SigmaRange
from ..miniature import evaluate
from .matcher import Example, FirstFrameMatcher
from .world import MINIATURE_TRIGGER, MOST_REFERENCES, CastScene, canvas_picture, caption_of, draw_casts

_CHANNELS = 16


def right_references(probe: Probe, film: torch.Tensor, cast: CastScene) -> list[bool]:
    """For every pictured thing whether the film [T, 64, 64, 3] shows it, T from 31: a character with the body, colour
    and headgear of its picture, a bareheaded one with body and colour, a headgear on its wearer, the place.
    """
    right = []
    for index, actor in enumerate(cast.scene.actors):
        who, reading = actor.character, _read_one(probe, film, cast, index)
        body = _reads(reading, colour=who.colour, body=who.body)
        headgear = _reads(reading, headgear=who.headgear)
        right += [body, headgear] if index in cast.bareheaded else [body and headgear]
    return [*right, _reads(probe.read(film), place=cast.scene.place)] if cast.plate else right


def right_attributes(probe: Probe, film: torch.Tensor, cast: CastScene) -> dict[str, list[bool]]:
    """Colour, body and headgear of every character and the place of the same film, whatever of it is pictured."""
    right: dict[str, list[bool]] = {"colour": [], "body": [], "headgear": []}
    for index, actor in enumerate(cast.scene.actors):
        reading = _read_one(probe, film, cast, index)
        for name, found in right.items():
            found.append(_reads(reading, **{name: getattr(actor.character, name)}))
    return right | {"place": [_reads(probe.read(film), place=cast.scene.place)]}


def evaluate_casts(
    film_of: Callable[[CastScene, int], torch.Tensor], probe: Probe, count: int, *, seed: int = 0
) -> dict[str, float]:
    """Shares over `count` casts that training never shows, of 1, 2, 3, 4, 1, ... references.

    `film_of(cast, seed)` gives the frames without the collage. "every reference" is the share of films in which all are
    right, by number of references and over all; "each" the share of references that are; "colour", "body", "headgear"
    and "place" say what of them.
    """
    films: dict[int, list[bool]] = {number: [] for number in range(1, MOST_REFERENCES + 1)}
    each: list[bool] = []
    attributes: dict[str, list[bool]] = {}
    for index, cast in enumerate(draw_casts("judged", count, seed=seed, held_out=True)):
        film = film_of(cast, seed * 100_000 + index)
        right = right_references(probe, film, cast)
        films[cast.references].append(all(right))
        each += right
        for name, found in right_attributes(probe, film, cast).items():
            attributes.setdefault(name, []).extend(found)
    whole = [verdict for verdicts in films.values() for verdict in verdicts]
    row = {"every reference": sum(whole) / len(whole), "each": sum(each) / len(each)}
    row |= {f"of {number}": sum(found) / len(found) for number, found in films.items() if found}
    return row | {name: sum(found) / len(found) for name, found in attributes.items()}


def true_film(cast: CastScene, _: int) -> torch.Tensor:
    """The clip itself, 5 s less the collage."""
    return render(cast.scene, torch.arange(COLLAGE_FRAMES, 81) / FPS).frames.movedim(1, -1)


@torch.inference_mode()
def model_film(
    models: evaluate.Models,
    cast: CastScene,
    seed: int,
    *,
    steps: int = 20,
    latent_frames: int = 21,
    renoise: bool = False,
    trigger: str = MINIATURE_TRIGGER,
) -> torch.Tensor:
    """What the model films from the cast's canvas and caption behind `trigger`, without the collage. renoise: as of
    `FirstFrameMatcher.sample`.
    """
    model = models.model.model
    first = model.process_latent_in(models.vae.encode(canvas_picture(cast)))[0]
    prompt = build_prompt(caption_of(cast), [], trigger=trigger).text
    text = models.clip.encode_from_tokens(models.clip.tokenize(prompt))
    unknown = torch.zeros(_CHANNELS, latent_frames - 1, *first.shape[2:]).to(first)
    matcher = FirstFrameMatcher(model.diffusion_model, "clean", bf16=False)
    example = Example(torch.cat([first, unknown], dim=1), text[0])
    latents = matcher.sample(example, SigmaRange(), steps, seed, renoise=renoise)
    frames: torch.Tensor = models.vae.decode(model.process_latent_out(latents[None]))[0]
    return frames[COLLAGE_FRAMES:].cpu()


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """`cast-judge`'s."""
    parser.add_argument("--lora", type=Path, help="a LoRA that cast-lora trained on the miniature; default the base")
    parser.add_argument("--trigger", default=MINIATURE_TRIGGER, help="first sentence of every prompt")
    parser.add_argument("--casts", type=int, default=100, help="held-out combinations to film, with and without it")
    parser.add_argument("--prompts", type=int, default=0, help="ordinary held-out prompts to film: what it harms")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--renoise", action="store_true", help="noise each guess anew in place of Euler steps (lcm)")
    parser.add_argument("--latent-frames", type=int, default=21, help="length of the films: a multiple of 3 from 12")


@command_line()
def run_evaluation(chosen: argparse.Namespace, weights: Path) -> None:
    """`cast-judge`: tables of what the LoRA does for casts and to ordinary prompts, beside what the base can draw at
    all: every look in the caption, rolled out block by block, with the trigger in front and without.
    """
    import comfy.model_management
    import comfy.sd

    base = evaluate.load(weights)

    def told(cast: CastScene, seed: int, trigger: str = "") -> torch.Tensor:
        """The same scene with everything in words and nothing in the first frame."""
        words = f"{trigger} {describe(cast.scene)}".strip()
        return evaluate.film(base, words, chosen.latent_frames, seed, steps=chosen.steps)[COLLAGE_FRAMES:]

    ways: dict[str, Callable[[CastScene, int], torch.Tensor]] = {
        "true clips": true_film, "told in words": told,
        "the same behind the trigger": partial(told, trigger=chosen.trigger),
    }  # fmt: skip
    casts = {name: evaluate_casts(way, base.probe, chosen.casts) for name, way in ways.items()}
    prompts = {}
    models_of = {"without": base.model}
    if chosen.lora:
        weights_of_lora = load_file(chosen.lora)
        models_of["with the LoRA"], _ = comfy.sd.load_lora_for_models(base.model, None, weights_of_lora, 1.0, 0.0)
    for name, model in models_of.items():
        models = evaluate.Models(model, base.clip, base.vae, base.probe)
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        film = partial(
            model_film, models, steps=chosen.steps, latent_frames=chosen.latent_frames, renoise=chosen.renoise,
            trigger=chosen.trigger,
        )  # fmt: skip
        casts[name] = evaluate_casts(film, base.probe, chosen.casts)
        if chosen.prompts:
            prompts[name] = evaluate.evaluate_prompts(
                models, chosen.prompts, latent_frames=chosen.latent_frames, steps=chosen.steps
            )
    evaluate.print_table(f"{chosen.casts} held-out casts: every reference present and right", casts)
    if prompts:
        evaluate.print_table(f"{chosen.prompts} held-out prompts without a first frame", prompts)


def _read_one(probe: Probe, film: torch.Tensor, cast: CastScene, index: int) -> Reading:
    """What the probe makes of the film's part in which that actor is."""
    if len(cast.scene.actors) == 1:
        return probe.read(film)
    return probe.read(half(film.movedim(-1, 1), index).movedim(1, -1))


def _reads(reading: Reading, **expected: str) -> bool:
    return all(reading.verdict(attribute) == value for attribute, value in expected.items())
