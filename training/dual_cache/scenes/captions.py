"""Captions of a scene's shots: written by a vision-language model for all shots at once, then checked shot by shot.

All at once, so that a recurring character is described by the same words: the answer names each character once and the
shots refer to them by a mark in square brackets.

Source: FilmWeaver's data pipeline, docs/methods/filmweaver.md, training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....film.dual_cache import split_sentences
from .films import SceneDataError

Writer = Callable[[str, Tensor, int], str]
"""(question, picture [H, W, 3] in 0..1, seed) to an answer: a vision-language model."""

_TRIES = 3
_QUESTION = """The picture shows {count} shots of one scene of a film, one row each, in time from left to right.
Describe them for somebody who films the scene anew. Answer with JSON only, in this form:
{{"global": "place, light and style in one sentence", "characters": {{"A": "appearance in one phrase that begins with \
a or an"}}, "shots": ["one or two sentences: shot size, who does what; write [A] for character A", ...]}}
Exactly {count} entries in "shots". A character has one description and one letter in all shots."""
_CHECK = "Look at the picture. Is this statement true of it? Answer with one word, yes or no. Statement: {statement}"


@dataclass(frozen=True)
class CheckedCaption:
    """A caption after its check. removed: statements that the model denied. kept: whether the shot is learned from; if
    not, `why`. score: cosine of caption and pictures by CLIP.
    """

    caption: str
    removed: tuple[str, ...]
    score: float
    kept: bool
    why: str = ""


def write_captions(writer: Writer, sheet: Tensor, count: int) -> list[str]:
    """Captions of a scene's `count` shots, by a model with all of them on one sheet.

    Raises SceneDataError: it gave no usable answer in three tries.
    """
    problem = ""
    for seed in range(_TRIES):
        try:
            return expand_captions(read_answer(writer(_QUESTION.format(count=count), sheet, seed)), count)
        except SceneDataError as error:
            problem = str(error)
    raise SceneDataError(f"the model gave no usable captions in {_TRIES} tries ({problem})")


def read_answer(answer: str) -> Any:
    """The JSON object in an answer, whatever stands around it.

    Raises SceneDataError: there is none.
    """
    start = answer.find("{")
    while start >= 0:
        try:
            value, _ = json.JSONDecoder().raw_decode(answer[start:])
        except ValueError:
            start = answer.find("{", start + 1)
            continue
        return value
    raise SceneDataError("it is no JSON")


def expand_captions(told: Any, count: int) -> list[str]:
    """One caption a shot, of a list of them or of the model's form with characters' marks put into words.

    Raises SceneDataError: it is neither, or for another number of shots.
    """
    if isinstance(told, list):
        told = {"shots": told}
    shots = told.get("shots") if isinstance(told, dict) else None
    if not isinstance(shots, list) or not all(isinstance(shot, str) and shot.strip() for shot in shots):
        raise SceneDataError('it has no list of captions under "shots"')
    if len(shots) != count:
        raise SceneDataError(f"it has {len(shots)} captions for {count} shots")
    characters, place = told.get("characters") or {}, told.get("global") or ""
    if not isinstance(characters, dict) or not isinstance(place, str):
        raise SceneDataError('"characters" must be an object and "global" a sentence')
    return [" ".join(part for part in (_in_words(shot, characters), place.strip()) if part) for shot in shots]


def _in_words(caption: str, characters: Mapping[str, Any]) -> str:
    """Every mark becomes its whole description, the first one and the later ones alike: shots are read alone."""

    def words(mark: re.Match[str]) -> str:
        return str(characters[mark[1]]).strip().rstrip(".") if mark[1] in characters else mark[1]

    text = re.sub(r"\[(\w+)\]", words, caption.strip())
    return text[:1].upper() + text[1:]


def check_caption(
    writer: Writer | None, pictures: Tensor, caption: str, score: Callable[[str], float], floor: float
) -> CheckedCaption:
    """A caption without the statements that the model denies. pictures: the shot's frames on one sheet [H, W, 3].

    writer: None for no check by a model. score: cosine of a caption with the shot's pictures. floor: the least of it.
    """
    statements = list(split_sentences(caption)) or [caption]
    removed = [
        statement
        for statement in statements
        if writer is not None and not _is_yes(writer(_CHECK.format(statement=statement), pictures, 0))
    ]
    left = " ".join(statement for statement in statements if statement not in removed)
    if not left:
        return CheckedCaption(caption, tuple(removed), 0.0, False, "nothing of its caption is true of it")
    found = round(score(left), 4)
    if found < floor:
        return CheckedCaption(left, tuple(removed), found, False, f"caption and pictures do not match ({found:.2f})")
    return CheckedCaption(left, tuple(removed), found, True)


def _is_yes(answer: str) -> bool:
    """The first yes or no of an answer decides; without either the statement stands."""
    found: Sequence[str] = re.findall(r"\b(yes|no)\b", answer.lower())
    return not found or found[0] == "yes"
