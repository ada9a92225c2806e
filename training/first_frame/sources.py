"""Where the clips of a cast dataset come from: a list of own clips with their entities marked.

The list is a JSON file, all paths relative to it:

    [{"id": "kitchen", "clip": "kitchen.mp4", "caption": "A hand lifts the mug ...", "plate": "kitchen-empty.png",
      "entities": [{"name": "mug", "description": "a white enamel mug", "mask": "kitchen-mug.png"}]}]

An entity has one of `picture` (a cut-out with transparency), `mask` (white marks it on the clip's first frame) or `box`
([x, y, width, height] on the first frame). Cut-outs, masks, plates and captions come from whatever made them: a
segmentation, image-edit or text-generation workflow, or a person. `plate` may be left out; `subjects` may name a video
as long as the clip that is white where the cast is, so that it weighs more in training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...film.decode import DecodeError, Value, parse_file
from ...film.first_frame import Reference
from ...film.picture_reader import PictureError, read_cut_out, read_mask, read_picture
from ...film.pixels import to_bytes
from .dataset import CastClip, CastDataError, CastSettings, CastSource, fingerprint_of, read_frames

_WAYS = ("picture", "mask", "box")
_NAME = r"[\w-]+"
_MAX_NAME = 100
_MAX_BYTES, _MAX_PATH = 255, 2000
_FAR = 10**6  # pixels beyond every picture


def given_clip(
    name: str,
    frames: torch.Tensor,
    fps: float,
    references: Sequence[Reference],
    plate: torch.Tensor | None,
    caption: str,
) -> CastSource:
    """A clip whose frames [T, H, W, 3] in 0..1 and cut-outs are at hand, as in a graph.

    Raises CastDataError: the name cannot be a file's, or there is no reference.
    """
    if not re.fullmatch(_NAME, name):
        raise CastDataError(f"A clip has the name '{name}': use letters, digits, - and _.")
    if not references:
        raise CastDataError(f"The clip '{name}' needs at least one reference.")
    digest = hashlib.sha256()
    for picture in (frames, *([] if plate is None else [plate])):
        digest.update(repr(tuple(picture.shape)).encode() + to_bytes(picture))
    for reference in references:
        digest.update(repr((reference.width, reference.height, reference.name, reference.description)).encode())
        digest.update(reference.rgba)
    clip = CastClip(frames, fps, tuple(references), plate, caption)
    return CastSource(name, fingerprint_of([digest.hexdigest(), fps, caption], []), lambda: clip)


def list_clips(path: Path, settings: CastSettings) -> list[CastSource]:
    """The clips that the list names.

    Raises CastDataError: it is no such list.
    """
    try:
        return [_source(entry, path.parent, settings) for entry in parse_file(path).list(100_000)]
    except DecodeError as error:
        raise CastDataError(f"{path} is not a list of clips: {error}.") from error


def _source(told: Value, folder: Path, settings: CastSettings) -> CastSource:
    entry = told.object()
    name = str(entry.get("id", ""))
    if not re.fullmatch(_NAME, name) or len(name) > _MAX_NAME:
        raise CastDataError(f"A clip has the id '{name[:80]}': use up to {_MAX_NAME} letters, digits, - and _.")
    if not entry.get("clip") or not entry.get("entities"):
        raise CastDataError(f"The clip '{name}' needs a clip file and at least one entity.")
    for key in ("clip", "plate", "subjects", "caption"):
        if (value := told.get(key)) is not None and value.raw is not None:
            value.text()
    entities = [entity.object() for entity in told["entities"].list(100, 1)]
    for number, entity in enumerate(told["entities"].list()):
        if sum(way in entity.object() for way in _WAYS) != 1:
            raise CastDataError(f"Each entity of '{name}' needs exactly one of {', '.join(_WAYS)}.")
        for key in ("name", "description", "picture", "mask"):
            if key in entities[number]:
                entity[key].text()
    named = [
        entry["clip"],
        entry.get("plate"),
        entry.get("subjects"),
        *(entity.get(way) for entity in entities for way in ("picture", "mask")),
    ]
    files = [_beside(folder, file) for file in named if file]
    return CastSource(name, fingerprint_of(dict(entry), files), lambda: _load(entry, folder, settings))


def _load(entry: Mapping[str, Any], folder: Path, settings: CastSettings) -> CastClip:
    size = (settings.width, settings.height)
    clip = _beside(folder, entry["clip"])
    frames, fps = read_frames(clip, settings.frames, size)
    first = read_frames(clip, 1)[0][0]  # entities are marked in the clip's own pixels
    plate = _open(_beside(folder, entry["plate"]), read_picture) if entry.get("plate") else None
    references = tuple(_reference(entity, first, folder) for entity in entry["entities"])
    subjects = None
    if entry.get("subjects"):
        subjects = read_frames(_beside(folder, entry["subjects"]), settings.frames, size)[0].amax(dim=-1, keepdim=True)
    return CastClip(frames, fps, references, plate, str(entry.get("caption", "")), subjects)


def _reference(entity: Mapping[str, Any], first: torch.Tensor, folder: Path) -> Reference:
    name, description = str(entity.get("name", "")), str(entity.get("description", ""))
    if "picture" in entity:
        return Reference.from_image(_open(_beside(folder, entity["picture"]), read_cut_out), None, name, description)
    if "mask" in entity:
        return Reference.from_image(first, _open(_beside(folder, entity["mask"]), read_mask), name, description)
    try:
        x, y, width, height = (min(max(int(value), -_FAR), _FAR) for value in entity["box"])
    except (TypeError, ValueError) as error:
        raise CastDataError(f"The box of '{name}' must be four whole numbers: x, y, width, height.") from error
    mask = torch.zeros(first.shape[:2])
    mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = 1
    return Reference.from_image(first, mask, name, description)


def _beside(folder: Path, name: str) -> Path:
    """A file of the list, named as on any system. Raises CastDataError for one that is not beside the list or below."""
    path = Path(name.replace("\\", "/"))
    if max((len(part.encode()) for part in path.parts), default=0) > _MAX_BYTES or len(name) > _MAX_PATH:
        raise CastDataError(f"{name[:80]!r}... is too long for a file's name: correct the list.")
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CastDataError(f"{name[:80]!r} is not beside the list of clips or below it: put it there, and name it so.")
    return folder / path


def _open(path: Path, read: Callable[[Path], torch.Tensor]) -> torch.Tensor:
    try:
        return read(path)
    except PictureError as error:
        raise CastDataError(str(error)) from error
