"""The prompt of a first-frame shot: trigger, one space, a caption that names every reference.

The released weights were trained with one sentence, character for character, at the very start (FFGo, arXiv
2511.15700). Text can override pictures: a caption that describes another thing than the cut-out is the commonest way to
lose an identity, so contradictions are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .values import FirstFrameError

__all__ = ["TRIGGER", "Described", "FirstFramePrompt", "build_prompt", "contradictions"]

TRIGGER = "ad23r2 the camera view suddenly changes."
FEWEST_WORDS, MOST_WORDS = 30, 200
"""Captions of the published tests have 43 to 195 words (docs/methods/ffgo.md, prompt)."""

TALK_OF_THE_COLLAGE = (
    "reference image",
    "reference picture",
    "first frame",
    "collage",
    "left side",
    "right side",
    "left half",
    "right half",
    "white background",
    "cut-out",
    "cutout",
)

# Words that exclude one another when said of one thing. Synonyms share an entry.
EXCLUSIVE: dict[str, tuple[frozenset[str], ...]] = {
    "colour": tuple(
        frozenset(names.split())
        for names in (
            "red crimson scarlet maroon",
            "orange",
            "yellow golden gold",
            "green olive emerald",
            "blue navy azure turquoise teal cyan",
            "purple violet lilac",
            "pink magenta",
            "brown beige tan",
            "black",
            "white ivory cream",
            "grey gray silver",
        )
    ),
    "material": tuple(
        frozenset(names.split())
        for names in (
            "wooden wood",
            "metal metallic steel iron aluminium aluminum chrome",
            "glass",
            "plastic",
            "leather",
            "ceramic porcelain",
            "stone marble",
            "paper cardboard",
        )
    ),
    "pattern": tuple(frozenset(names.split()) for names in ("striped", "dotted", "checked chequered", "plain")),
    "age": tuple(frozenset(names.split()) for names in ("young", "old elderly aged")),
    "person": tuple(
        frozenset(names.split()) for names in ("man men gentleman boy male", "woman women lady girl female")
    ),
}
WORDS_BEFORE = 3
LINKS = {"is", "are", "was", "were", "looks", "look"}


@dataclass(frozen=True)
class Described:
    """What the caption must name of one reference: a noun and its looks. Both may be empty."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class FirstFramePrompt:
    """A prompt, the trigger included, and warnings about it, one sentence each."""

    text: str
    warnings: tuple[str, ...] = ()


def build_prompt(
    action: str,
    references: Sequence[Described],
    *,
    scene: str = "",
    camera: str = "",
    style: str = "",
    trigger: str = TRIGGER,
) -> FirstFramePrompt:
    """Trigger + " " + caption.

    action: what happens, in the user's words; triggers in it, in any spacing or case, are taken out first, so that
    building twice changes nothing. references, in order: a description the text does not hold yet is added as a
    sentence, and so is a name. scene, camera, style: added as sentences unless they are there. trigger: of another
    LoRA. Raises FirstFrameError if there is neither an action nor anything to describe, or no trigger.
    """
    trigger = " ".join(trigger.split())
    if not trigger:
        raise FirstFrameError("The prompt needs a trigger sentence: use the one the LoRA was trained with.")
    caption = _without_trigger(action, trigger)
    warnings = contradictions(caption, references)
    if not caption:
        warnings.append("The prompt does not say what happens: describe the action.")
    for number, reference in enumerate(references, start=1):
        name = _without_trigger(reference.name, trigger)
        description = _without_trigger(reference.description, trigger).rstrip(".")
        if not name and not description:
            warnings.append(f"Reference {number} has neither a name nor a description: the text cannot ask for it.")
            continue
        if caption and name and not _mentions(caption, name):
            warnings.append(f'The action does not mention "{name}": say what it does.')
        if description and not _holds(caption, description):
            caption = _joined(caption, f"The {name} is {description}" if name else description)
        elif name and not _mentions(caption, name):
            caption = _joined(caption, f"The {name} is there")
    for part in (scene, camera, style):
        sentence = _without_trigger(part, trigger).rstrip(".")
        if sentence and not _holds(caption, sentence):
            caption = _joined(caption, sentence)
    if not caption:
        raise FirstFrameError("There is nothing to prompt for: describe the action.")

    lowered = caption.lower()
    warnings += [
        f'The caption speaks of "{words}": describe the shot, not the picture it is made from.'
        for words in TALK_OF_THE_COLLAGE
        if re.search(rf"\b{re.escape(words)}\b", lowered)
    ]
    count = len(caption.split())
    if not FEWEST_WORDS <= count <= MOST_WORDS:
        warnings.append(f"The caption has {count} words; {FEWEST_WORDS} to {MOST_WORDS} work best.")
    return FirstFramePrompt(f"{trigger} {caption}", tuple(warnings))


def contradictions(caption: str, references: Sequence[Described]) -> list[str]:
    """One sentence for each thing the caption says of a reference that its description excludes.

    Compares colours, materials, patterns, ages and man/woman: the words just before the reference's name, or after "is"
    behind it, with the words of its description. A list of known words, so silence proves nothing.
    """
    found = []
    for reference in references:
        described = _words(f"{reference.description} {reference.name}")
        said = _said_of(caption, reference.name)
        for kind, groups in EXCLUSIVE.items():
            claimed = [word for word in said if any(word in group for group in groups)]
            allowed = [group for group in groups if group & set(described)]
            wrong = [word for word in claimed if allowed and not any(word in group for group in allowed)]
            if wrong:
                true = next(word for word in described if any(word in group for group in allowed))
                found.append(
                    f'The caption calls "{reference.name}" {wrong[0]} but its description says {true}: '
                    f"the text would win over the picture ({kind})."
                )
    return found


def _said_of(caption: str, name: str) -> list[str]:
    """The words of a caption that are close enough to a name to be said of it."""
    wanted = _words(name)
    if not wanted:
        return []
    said: list[str] = []
    for clause in re.split(r"[.,;:!?\n]|\b(?:and|while|with|beside|near|behind)\b", caption.lower()):
        words = _words(clause)
        for start in range(len(words) - len(wanted) + 1):
            end = start + len(wanted)
            if words[start:end] == wanted:
                said += words[max(start - WORDS_BEFORE, 0) : start]
                if end < len(words) and words[end] in LINKS:
                    said += words[end + 1 : end + 1 + WORDS_BEFORE]
    return said


def _without_trigger(text: str, trigger: str) -> str:
    """Text with single spaces and without the trigger, however it was spaced or capitalised."""
    words = [re.escape(word) for word in trigger.rstrip(".").split()]
    pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)\s*\.?"
    before, text = "", " ".join(text.split())
    # Taking one out may put another together.
    while before != text:
        before, text = text, " ".join(re.sub(pattern, " ", text, flags=re.IGNORECASE).split())
    return text


def _joined(caption: str, sentence: str) -> str:
    """A caption and one more sentence."""
    if caption and caption[-1] not in ".!?":
        caption += "."
    return f"{caption} {sentence[0].upper()}{sentence[1:]}.".lstrip()


def _holds(caption: str, text: str) -> bool:
    """Whether the caption says this, word for word."""
    return _consecutive(_words(caption), _words(text))


def _mentions(caption: str, name: str) -> bool:
    """Whether the caption has the name, in the singular or with a plural s."""
    words = _words(name)
    plural = [*words[:-1], words[-1] + "s"] if words else words
    return any(_consecutive(_words(caption), form) for form in (words, plural))


def _consecutive(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `words` in one piece; what has no words stands everywhere."""
    return any(list(words[i : i + len(wanted)]) == list(wanted) for i in range(len(words) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return _stripped(re.findall(r"[\w'-]+", text.lower()))


def _stripped(words: Iterable[str]) -> list[str]:
    """Words without hyphens and quotes at their ends; empty ones go."""
    return [word for word in (word.strip("'-") for word in words) if word]
