"""Storyboards as JSON, and stories as JSON lines.

Our own form, written by to_json and read by from_json:

    {"longreel_storyboard": 1,
     "shots": [{"prompts": [{"at": 0, "text": "A red robot walks."}],
                "seconds": 10, "seed": 3, "start": "cut", "references": ["robot.png"]}]}

Everything in a shot but its prompts may be left out; a shot may be a string, and `prompts` a string. The form of other
projects, one story a line, has a list of prompts and no lengths: {"prompts": ["...", "..."]}; see from_jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from .shot import DEFAULT_SECONDS, Shot, Start, Storyboard, StoryboardError, TimedPrompt

__all__ = ["from_json", "from_jsonl", "shot_from_dict", "shot_to_dict", "to_json"]

_SHOT_KEYS = ("prompts", "seconds", "seed", "start", "references", "take")


def to_json(storyboard: Storyboard) -> str:
    """The storyboard as JSON; from_json gives an equal value back."""
    value = {"longreel_storyboard": 1, "shots": [shot_to_dict(shot) for shot in storyboard.shots]}
    return json.dumps(value, ensure_ascii=False, indent=2)


def from_json(text: str) -> Storyboard:
    """The storyboard in `text`. Raises StoryboardError: with line and column if it is not JSON, else with a path."""
    value = _loads(text, 1)
    if not isinstance(value, dict) or not isinstance(value.get("shots"), list):
        raise StoryboardError('A JSON storyboard is an object with a list of shots: write {"shots": [...]}.')
    if value.get("longreel_storyboard", 1) != 1:
        raise StoryboardError("This storyboard was written by a newer Longreel: update Longreel to read it.")
    return Storyboard(tuple(shot_from_dict(item, f"shots[{i}]", i) for i, item in enumerate(value["shots"])))


def from_jsonl(text: str, seconds_per_prompt: float = DEFAULT_SECONDS) -> tuple[Storyboard, ...]:
    """One story from each line {"prompts": [...]}: a shot for each prompt, the first a cut, the others continuing it.

    seconds_per_prompt: length of every shot. Other keys of a line are passed over, blank lines too.
    Raises StoryboardError with the line.
    """
    stories: list[Storyboard] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        value = _loads(line, number)
        prompts = value.get("prompts") if isinstance(value, dict) else None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise StoryboardError('A line holds one story: write {"prompts": ["...", "..."]}.', number, 1)
        try:
            shots = tuple(
                Shot((TimedPrompt(0.0, prompt),), seconds_per_prompt, seed=i, start="continue" if i else "cut")
                for i, prompt in enumerate(prompts)
            )
        except StoryboardError as error:
            raise StoryboardError(error.message, number, 1) from None
        stories.append(Storyboard(shots))
    if not stories:
        raise StoryboardError('The file holds no story: write one {"prompts": ["...", "..."]} on each line.', 1, 1)
    return tuple(stories)


def shot_to_dict(shot: Shot) -> dict[str, Any]:
    """A shot as JSON-able values; shot_from_dict gives an equal shot back."""
    return {
        "prompts": [{"at": prompt.at, "text": prompt.text} for prompt in shot.prompts],
        "seconds": shot.seconds,
        "seed": shot.seed,
        "start": shot.start,
        "references": list(shot.references),
        **({"take": shot.take} if shot.take else {}),
    }


def shot_from_dict(value: object, where: str, default_seed: int = 0) -> Shot:
    """The shot that JSON values describe. where: its path, named in errors. Raises StoryboardError."""
    if isinstance(value, str):
        value = {"prompts": value}
    if not isinstance(value, dict):
        raise StoryboardError(f'{where} is not a shot: write {{"prompts": "what is seen"}}.')
    unknown = [key for key in value if key not in _SHOT_KEYS]
    if unknown:
        raise StoryboardError(f"{where} has no setting {json.dumps(unknown[0])}: choose from {', '.join(_SHOT_KEYS)}.")
    seed = value.get("seed", default_seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise StoryboardError(f"{where}.seed is not a whole number: write one from 0 on.")
    references = value.get("references", [])
    if not isinstance(references, list) or not all(isinstance(name, str) for name in references):
        raise StoryboardError(f"{where}.references is not a list of names: write them as strings in a list.")
    take = value.get("take", "")
    if not isinstance(take, str):
        raise StoryboardError(f"{where}.take is not a take's name: write its digits as a string.")
    try:
        return Shot(
            prompts=_prompts(value.get("prompts"), where),
            seconds=_number(value, "seconds", DEFAULT_SECONDS, where),
            seed=seed,
            start=cast(Start, value.get("start", "cut")),
            references=tuple(references),
            take=take,
        )
    except StoryboardError as error:
        message = error.message if error.message.startswith(where) else f"{where}: {error.message}"
        raise StoryboardError(message) from None


def _prompts(value: object, where: str) -> tuple[TimedPrompt, ...]:
    if isinstance(value, str):
        return (TimedPrompt(0.0, value),)
    if not isinstance(value, list):
        raise StoryboardError(f'{where}.prompts is missing: write a string, or a list of {{"at": 0, "text": "..."}}.')
    prompts: list[TimedPrompt] = []
    for i, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise StoryboardError(f'{where}.prompts[{i}] is not a prompt: write {{"at": seconds, "text": "..."}}.')
        prompts.append(TimedPrompt(_number(item, "at", 0.0, f"{where}.prompts[{i}]"), item["text"]))
    return tuple(prompts)


def _number(mapping: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = mapping.get(key, default)
    # Above 2**1023 an integer has no float; no time is anywhere near.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise StoryboardError(f"{where}.{key} is not a number of seconds: write one such as 2.5.")
    return float(value)


def _loads(text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StoryboardError(
            f"This is not JSON ({error.msg}): correct it here.", line + error.lineno - 1, error.colno
        ) from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested as deep.
        message = "This JSON cannot be read: its numbers are too long or its lists too deep."
        raise StoryboardError(message, line, 1) from error
