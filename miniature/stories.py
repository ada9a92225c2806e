"""Scenes and stories drawn at random, and the sentences that describe them.

Every sentence uses the words of `miniature.text` only. A sentence says everything about a scene but its small random
nudge, unless it refers back ("the same character"): then only the film so far decides who is meant.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .world import (
    ACTIONS,
    BODIES,
    CAMERAS,
    COLOURS,
    HEADGEAR,
    PLACES,
    POSITIONS,
    Actor,
    Beat,
    Character,
    Scene,
    position_at,
)

PLACE_PHRASES = {
    "beach": "at the beach",
    "forest": "in the forest",
    "city": "in the city",
    "desert": "in the desert",
    "mountains": "in the mountains",
    "night": "at night",
}
POSITION_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
SAME = "the same character"


@dataclass(frozen=True)
class StoryShot:
    """One shot of a story: what happens (`scene`), what the prompt says, how long, and how it starts."""

    scene: Scene
    prompt: str
    seconds: float
    start: str


def character_phrase(character: Character) -> str:
    """For instance "a red ball with a crown"."""
    article = "an" if character.colour[0] in "aeiou" else "a"
    return f"{article} {character.colour} {character.body} with a {character.headgear}"


def kind_phrase(character: Character) -> str:
    """For instance "the same ball with a crown": what it is, but not which."""
    return f"the same {character.body} with a {character.headgear}"


def describe(
    scene: Scene,
    time: float = 0.0,
    *,
    same: frozenset[int] = frozenset(),
    place_first: bool = False,
    positions: bool = False,
    phrase: Callable[[Character], str] = character_phrase,
) -> str:
    """The sentence for what is on at `time`; actors whose index is in `same` are only called "the same character", the
    others by their `phrase`.

    After the first beat positions are left out, as the film so far decides them; with `positions` they give the place
    of every character when the beat begins. Of a scene without actors it names the place: "At the beach."
    """
    beat = scene.beat_at(time)
    clauses = []
    for index, (actor, action) in enumerate(zip(scene.actors, beat.actions, strict=True)):
        who = SAME if index in same else phrase(actor.character)
        where = ""
        if beat.at == 0:
            where = f" {POSITION_PHRASES[actor.position]}"
        elif positions:
            where = f" {POSITION_PHRASES[position_at(scene, index, beat.at)]}"
        clauses.append(f"{who} {action}{where}")
    body, place = " and ".join(clauses), PLACE_PHRASES[scene.place]
    parts = [part for part in ((place, body) if place_first else (body, place)) if part]
    sentence = (", " if place_first else " ").join(parts) + "."
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if beat.camera == "still" else f"{sentence} The camera {beat.camera}."


def is_held_out(character: Character, place: str) -> bool:
    """A fixed fifth of the combinations of character and place is never trained on, so that prompts can be new."""
    code = (
        COLOURS.index(character.colour) * 7
        + BODIES.index(character.body) * 5
        + HEADGEAR.index(character.headgear) * 3
        + PLACES.index(place) * 11
    )
    return code % 5 == 0


def random_character(rng: random.Random) -> Character:
    """Any of the characters, each as likely."""
    return Character(rng.choice(COLOURS), rng.choice(BODIES), rng.choice(HEADGEAR))


def random_scene(rng: random.Random, seconds: float, *, two: float = 0.25, held_out: bool = False) -> Scene:
    """A scene for a take of seconds: two actors with probability `two`; about every 4 s a new beat may begin.

    With `held_out` all combinations of character and place are ones that training never shows; without, none is.
    """
    while True:
        place = rng.choice(PLACES)
        count = 2 if rng.random() < two else 1
        characters = [random_character(rng) for _ in range(count)]
        if all(is_held_out(character, place) == held_out for character in characters):
            break
    positions = ("left", "right") if count == 2 else (rng.choice(POSITIONS),)
    actors = tuple(
        Actor(character, position, round(rng.uniform(-0.05, 0.05), 3))
        for character, position in zip(characters, positions, strict=True)
    )
    beats, at = [], 0.0
    while at == 0.0 or (at < seconds - 1.5 and rng.random() < 0.6):
        camera = rng.choice(CAMERAS) if rng.random() < 0.5 else "still"
        beats.append(Beat(at, tuple(rng.choice(ACTIONS) for _ in actors), camera))
        at += round(rng.uniform(2.5, 5.0), 2)
    return Scene(place, actors, tuple(beats))
