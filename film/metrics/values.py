"""Inputs of the reports: who is in the film, where the shots begin, and boxes of detections."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..pixels import Box

__all__ = ["Character", "Found", "MetricsError", "boxes_from_json", "parse_characters", "parse_times", "read_boxes"]


class MetricsError(ValueError):
    """Something that cannot be measured. The message is one sentence that says what to change."""


@dataclass(frozen=True)
class Character:
    """A character to search for. description: the looks, as in a caption."""

    name: str
    description: str


@dataclass(frozen=True)
class Found:
    """A detection. box: inside the picture. label: of the detector or the user; "" for none."""

    box: Box
    label: str = ""


def parse_characters(text: str) -> tuple[Character, ...]:
    """The table of characters: a line `name: description` for each; lines that are empty or begin with # do not count.

    Raises MetricsError for a line without a name or description, and for a name that comes twice.
    """
    characters: dict[str, Character] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, description = (part.strip() for part in line.partition(":"))
        if not name or not description:
            raise MetricsError(f'Line {number} of the characters must be "name: description", not "{line.strip()}".')
        if name in characters:
            raise MetricsError(f'The character "{name}" is described twice: keep one line, or use another name.')
        characters[name] = Character(name, description)
    return tuple(characters.values())


def parse_times(text: str, fps: float, frames: int | None = None) -> tuple[int, ...]:
    """Cut times such as `5, 0:10.5` as the first frames of the shots that begin there.

    fps: frames a second. frames: of the whole video, None where not known yet. Raises MetricsError for anything that is
    no time, times that do not rise, and cuts outside the video.
    """
    cuts: list[int] = []
    for word in text.replace(";", ",").replace("\n", ",").split(","):
        if not word.strip():
            continue
        cut = round(_seconds(word.strip()) * fps)
        if cut <= (cuts[-1] if cuts else 0):
            raise MetricsError(f"The cut at {word.strip()} does not lie behind the one before: put the times in order.")
        if frames is not None and cut >= frames:
            raise MetricsError(
                f"The cut at {word.strip()} lies behind the video's end at {frames / fps:.2f} s: remove it."
            )
        cuts.append(cut)
    return tuple(cuts)


def _seconds(word: str) -> float:
    total = 0.0
    for part in word.removesuffix("s").split(":"):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise MetricsError(f'"{word}" is no cut time: write seconds or m:ss, such as 5, 0:10.5.')
        total = total * 60 + value
    return total


def boxes_from_json(text: str) -> Any:
    """What `read_boxes` takes, from JSON text; None for an empty one. A saved report is taken too. Raises
    MetricsError.
    """
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MetricsError(f"The boxes are not JSON ({error.msg} in line {error.lineno}): correct them.") from error
    if isinstance(value, dict) and "boxes" in value:
        return value["boxes"]
    return value


def read_boxes(value: Any, pictures: int, width: int, height: int) -> tuple[tuple[Found, ...], ...]:
    """The detections on each picture.

    value: as core's detectors give them: a list for each picture, of {"x", "y", "width", "height"} in pixels, perhaps
    with "label"; for a single picture the list of boxes, or the box, alone will do. pictures: how many there are, all
    of width x height pixels. What sticks out of the picture is cut off. Raises MetricsError for anything else, and for
    a box that lies outside.
    """
    lists = [[value]] if isinstance(value, dict) else value
    if isinstance(lists, Sequence) and lists and all(isinstance(each, dict) for each in lists):
        lists = [lists]
    if not isinstance(lists, Sequence) or not all(isinstance(each, list | tuple) for each in lists):
        raise MetricsError("The boxes must be a list of boxes for each picture, as detectors give them.")
    if len(lists) != pictures:
        raise MetricsError(
            f"There are {pictures} pictures and boxes for {len(lists)}: give a list for each, an empty one for nothing."
        )
    frame = Box(0, 0, width, height)
    return tuple(
        tuple(_found(box, frame, f"Box {number} of picture {picture}") for number, box in enumerate(boxes, start=1))
        for picture, boxes in enumerate(lists, start=1)
    )


def _found(value: Any, frame: Box, title: str) -> Found:
    try:
        left, top, width, height = (float(value[side]) for side in ("x", "y", "width", "height"))
        label = str(value.get("label", ""))
        box = Box(round(left), round(top), max(round(width), 1), max(round(height), 1))
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise MetricsError(f'{title} needs the numbers "x", "y", "width" and "height".') from error
    if not (width > 0 and height > 0):
        raise MetricsError(f"{title} is {width:g} x {height:g} pixels: width and height must be above 0.")
    inside = box.common(frame)
    if inside is None:
        raise MetricsError(
            f"{title} lies outside the frame of {frame.width} x {frame.height} pixels: give boxes in pixels of this "
            "video."
        )
    return Found(inside, label)
