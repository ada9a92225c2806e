"""What the two caches do for the miniature: stories filmed with both, without the one, without the other.

`weaver-judge` prints the tables of `docs/filmweaver.md`. Measures follow docs/methods/filmweaver.md, measures: pictures
and sentences are compared by the miniature's own CLIP (x 100), and the attribute probe reads every frame beside it. A
character is cut out of a frame by its difference to the empty place that the prompt names.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...film.dual_cache import CacheError, CacheNoise
from ...miniature.stories import character_phrase, describe, random_character
from ...miniature.world import BODIES, COLOURS, PLACES, Character, render
from ..core.command_line import command_line
from ..miniature.clip import CLIP_FILE, box_of, cut_out
from ..miniature.evaluate import expected, load, write_strip
from ..miniature.export import FILES, read_vae
from ..miniature.places import empty_place
from ..miniature.vae import VaeRecipe, build_vae
from .stories import FilmedShot, StoryShot, Studio, Variant, draw_story, film_shots, film_stories, new_cache
from .train import WeaverMatcher
from .world import is_new, one_beat

_ATTRIBUTES = ("colour", "body", "headgear")
_DIFFERENT = 0.15
"""Least difference of a pixel to the empty place's, for it to belong to a character."""
VARIANTS = {
    "full": Variant(),
    "without shot cache": Variant(shot_cache=False),
    "without temporal cache": Variant(temporal_cache=False),
}
WITHOUT_NOISE = Variant(noise=CacheNoise(shot=0.0, temporal=0.0))
"""For a LoRA that was trained on clean caches."""


def character_of(frame: torch.Tensor, shot: StoryShot) -> torch.Tensor:
    """The part of a frame [H, W, 3] that is not the empty place, as [3, H, W]; all of it where nothing differs."""
    picture = frame.movedim(-1, 0)
    different = (frame - empty_place(shot.scene)).abs().amax(dim=-1)
    # Grain and soft edges of the decoder are smaller than a character.
    mask = F.avg_pool2d((different > _DIFFERENT).float()[None, None], 5, stride=1, padding=2)[0, 0]
    return cut_out(picture, box_of(mask)) if float(mask.max()) > 0.5 else picture


def evaluate_story(studio: Studio, story: Sequence[FilmedShot], stranger: torch.Tensor) -> dict[str, float]:
    """Measures of one story. stranger: keyframes' embeddings [n, d] of another story."""
    middles = [filmed.frames[len(filmed.frames) // 2] for filmed in story]
    crops = [character_of(frame, filmed.shot) for frame, filmed in zip(middles, story, strict=True)]
    whole = studio.embedder.images(torch.stack(middles))
    people = studio.embedder.images(torch.stack(crops).movedim(1, -1))
    actor = story[0].shot.scene.actors[0].character
    who = _sentence(studio, f"{character_phrase(actor)}.")
    said = torch.stack([_sentence(studio, describe(filmed.shot.scene)) for filmed in story])
    readings = [studio.probe.read(filmed.frames) for filmed in story]
    seen = [tuple(reading.verdict(name) for name in _ATTRIBUTES) for reading in readings]
    pairs = list(combinations(range(len(story)), 2))
    right = {
        name: sum(reading.accuracy(name, expected(filmed.shot.scene)[name])
                  for reading, filmed in zip(readings, story, strict=True)) / len(story)
        for name in (*_ATTRIBUTES, "place", "action")
    }  # fmt: skip
    row = {
        "character consistency": 100 * _pairwise(people),
        "all-shots consistency": 100 * _pairwise(whole),
        "character alignment": 100 * float((people @ who).mean()),
        "all-shots alignment": 100 * float((whole * said).sum(dim=1).mean()),
        "same character, probe": 100 * sum(seen[a] == seen[b] for a, b in pairs) / len(pairs),
        "character as told, probe": 100 * sum(right[name] for name in _ATTRIBUTES) / len(_ATTRIBUTES),
        "place as told, probe": 100 * right["place"],
        "action as told, probe": 100 * right["action"],
        "motion continuity": 100 * sum(continuity(filmed.frames) for filmed in story) / len(story),
    }
    copies = [
        float((torch.stack(filmed.told) @ whole[number]).max() - (stranger @ whole[number]).max())
        for number, filmed in enumerate(story)
        if filmed.told
    ]
    return row | ({"copy score": 100 * sum(copies) / len(copies)} if copies else {})


def continuity(frames: torch.Tensor, chunk: int = 6) -> float:
    """How unseen the seams between chunks are: mean change from frame to frame within chunks over that at the seams,
    at most 1. frames: [T, H, W, 3].
    """
    change = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))
    # The first latent frame is one picture, every later one is four.
    seams = [4 * place - 4 for place in range(chunk, (len(frames) + 3) // 4, chunk)]
    inside = [float(value) for number, value in enumerate(change) if number not in seams]
    at_seams = sum(float(change[seam]) for seam in seams) / len(seams)
    return min(1.0, sum(inside) / len(inside) / max(at_seams, 1e-6))


def evaluate_stories(
    studio: Studio, variant: Variant, count: int, seed: int, strip: Path | None = None
) -> dict[str, float]:
    """Mean measures over `count` stories, the same for every seed and variant."""
    stories = [draw_story(random.Random(f"story judged {index}")) for index in range(count)]
    filmed = film_stories(studio, stories, variant, seed=seed)
    middles = [[shot.frames[len(shot.frames) // 2] for shot in story] for story in filmed]
    embedded = [studio.embedder.images(torch.stack(frames)) for frames in middles]
    rows = [evaluate_story(studio, story, embedded[index - 1]) for index, story in enumerate(filmed)]
    if strip is not None:
        write_strip([torch.cat([shot.frames[[0, 14, 24, 38]] for shot in story]) for story in filmed[:8]], strip)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def evaluate_injection(studio: Studio, count: int, seed: int, strip: Path | None = None) -> dict[str, float]:
    """Share of frames in which the probe finds colour and body of a character that is given as one picture: a pair that
    the LoRA was never trained on, prompted as "the same character" in another place.
    """
    shots, keyframes, wanted = [], [], []
    for index in range(count):
        rng = random.Random(f"injected {index}")
        while not is_new(somebody := random_character(rng)):
            pass
        there, here = rng.sample(PLACES, 2)
        picture = render(one_beat(rng, there, [somebody]), torch.zeros(1)).frames[0].movedim(0, -1)
        scene = one_beat(rng, here, [somebody])
        shots.append(StoryShot(scene, describe(scene, same=frozenset({0}))))
        keyframes.append(studio.keyframes(picture[None], -1))
        wanted.append(somebody)
    takes = film_shots(studio, shots, [new_cache(studio)] * count, keyframes, Variant(), seed=seed * 1000 + 500)[0]
    films = [studio.decoded(take) for take in takes]
    if strip is not None:
        pictures = [kept[0].picture.image() for kept in keyframes]
        write_strip([torch.cat([p[None], f[[0, 14, 24, 38]]]) for p, f in zip(pictures, films, strict=True)][:8], strip)
    return {"frames": 100 * sum(_found(studio, film, who) for film, who in zip(films, wanted, strict=True)) / count}


def evaluate_retrieval(embedder: Any, count: int) -> float:
    """Share of stories in which a prompt's first keyframe shows its character, absent for two shots: shot 1 has one,
    shots 2 and 3 another, the prompt of shot 4 names the first again, in any place.
    """
    right = 0
    for index in range(count):
        rng = random.Random(f"away {index}")
        first, other = random_character(rng), random_character(rng)
        while other == first:
            other = random_character(rng)
        scenes = [one_beat(rng, rng.choice(PLACES), [who]) for who in (first, other, other, first)]
        moments = torch.tensor([0.0, 1.4, 2.75])
        frames = torch.cat([render(scene, moments).frames for scene in scenes[:3]]).movedim(1, -1)
        scores = (embedder.text(describe(scenes[3])) @ embedder.images(frames).T).mean(dim=0)
        right += int(scores.argmax()) < len(moments)
    return right / count


def _found(studio: Studio, film: torch.Tensor, who: Character) -> float:
    reading = studio.probe.read(film)
    colour = reading.frames["colour"] == COLOURS.index(who.colour)
    return float((colour & (reading.frames["body"] == BODIES.index(who.body))).float().mean())


def _pairwise(rows: torch.Tensor) -> float:
    """Mean cosine of all pairs of unit vectors [n, d]."""
    return float(torch.stack([rows[a] @ rows[b] for a, b in combinations(range(len(rows)), 2)]).mean())


def _sentence(studio: Studio, sentence: str) -> torch.Tensor:
    return F.normalize(studio.embedder.text(sentence).mean(dim=0), dim=0)


def open_studio(lora: Path, weights: Path, steps: int = 12, guidance: float = 1.0, *, renoise: bool = False) -> Studio:
    """The miniature with a LoRA on it. Raises CacheError for a LoRA that is not FilmWeaver's."""
    import comfy.model_management

    from ...host.adapters.dual_cache import load_cache_lora
    from ...host.media.embedder import load_embedder
    from ...host.wan.cache_tokens import installed_profile

    base = load(weights)
    model = load_cache_lora(base.model, lora, 1.0)
    profile = installed_profile(model)
    assert profile is not None  # load_cache_lora installs one
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    matcher = WeaverMatcher(model.model.diffusion_model, profile, bf16=True)
    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    embedder = load_embedder(weights / CLIP_FILE)
    return Studio(matcher, base.clip, embedder, vae.to(matcher.device).eval(), base.probe, steps, guidance, renoise)


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-judge`'s."""
    parser.add_argument("--lora", type=Path, help="that weaver-lora trained on the miniature; default the shipped one")
    parser.add_argument("--without-noise", type=Path, help="one that was trained with --no-cache-noise")
    parser.add_argument("--stories", type=int, default=20, help="stories of five shots")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="noise of the films")
    parser.add_argument("--variants", nargs="+", help="rows of the table; default all")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--renoise", action="store_true", help="noise each guess anew in place of Euler steps (lcm)")
    parser.add_argument("--guidance", type=float, default=3.0, help="by the keyframes, as reference_cfg; 1 for none")
    parser.add_argument("--injections", type=int, default=20, help="characters given as a picture, 0 for none")
    parser.add_argument("--retrievals", type=int, default=100, help="stories in which somebody was away, 0 for none")
    parser.add_argument("--folder", type=Path, required=True, help="results and strips; what is there already is kept")


@command_line(CacheError)
def run_evaluation(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-judge`: every result is written as soon as it is known, and not computed again."""
    shown = chosen.lora or weights / FILES["filmweaver"]
    loras = {name: (shown, variant) for name, variant in VARIANTS.items()}
    loras["without noise augmentation"] = (chosen.without_noise, WITHOUT_NOISE)
    table: dict[str, dict[str, float]] = {}

    @cache
    def studio_of(lora: Path) -> Studio:
        return open_studio(lora, weights, chosen.steps, chosen.guidance, renoise=chosen.renoise)

    with torch.inference_mode():
        if chosen.retrievals:
            from ...host.media.embedder import load_embedder

            embedder = load_embedder(weights / CLIP_FILE)
            print(f"Right keyframe first: {100 * evaluate_retrieval(embedder, chosen.retrievals):.0f} % of "
                  f"{chosen.retrievals} stories", flush=True)  # fmt: skip
        for seed in chosen.seeds:
            for name, (lora, variant) in loras.items():
                if lora is None or (chosen.variants and name not in chosen.variants):
                    continue
                path = chosen.folder / f"{name.replace(' ', '-')}-{seed}.json"
                if not path.exists():
                    strip = path.with_suffix(".png") if seed == chosen.seeds[0] else None
                    _write(path, evaluate_stories(studio_of(lora), variant, chosen.stories, seed, strip))
                print(name, seed, path.read_text(encoding="utf-8"), flush=True)
            path = chosen.folder / f"injection-{seed}.json"
            if chosen.injections:
                if not path.exists():
                    _write(
                        path, evaluate_injection(studio_of(shown), chosen.injections, seed, path.with_suffix(".png"))
                    )
                print("injection", seed, path.read_text(encoding="utf-8"), flush=True)
    for name in loras:
        paths = [chosen.folder / f"{name.replace(' ', '-')}-{seed}.json" for seed in chosen.seeds]
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if rows:
            table[f"{name} ({len(rows)} seeds)"] = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    print_table(table)


def print_table(table: dict[str, dict[str, float]]) -> None:
    """Measures down, variants across, as Markdown."""
    print("| measure | " + " | ".join(table) + " |")
    print("| --- |" + " --- |" * len(table))
    for measure in dict.fromkeys(key for row in table.values() for key in row):
        cells = [f"{row[measure]:.1f}" if measure in row else "" for row in table.values()]
        print(f"| {measure} | " + " | ".join(cells) + " |")


def _write(path: Path, row: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: round(value, 2) for key, value in row.items()}), encoding="utf-8")
