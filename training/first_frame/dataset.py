"""A first-frame (FFGo) dataset: clips, canvases, cut-outs, plates and captions in the published folder layout.

`train_data.json` is the published metadata (a list of `file_path`, `text`, `image_path`, `type`), with paths relative
to its folder; it is all that training needs, so a published folder can be trained on as it is. Beside it lie
`combined_images/video_<id>/combined.png` (the canvas), `train_materials/video_<id>/` with `main_entity.png` (the plate)
and `object.png` or `object_<k>.png` (cut-outs, RGBA), `videos/<id>.mp4`, our records `items/<id>.json`, where a source
knows `subjects/<id>.mp4` (white where the cast is, or red, green and blue where each of it is), and `contact_sheet.png`
for a human check.

Building is resumable: a clip whose record matches its source is kept, everything else is made again. Source: FFGo's
released data; docs/methods/ffgo.md, canvas and dataset folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from ...film.decode import DecodeError, Value, parse_file
from ...film.first_frame import (
    TRIGGER,
    Box,
    Composition,
    Described,
    LayoutKind,
    Reference,
    build_prompt,
    compose,
    contradictions,
)
from ...film.picture_reader import read_picture
from ...film.pixels import PixelError, from_pil, to_pil
from ...film.reel.atomic import write_text
from ...film.video_reader import VideoReader, VideoReadError
from ..core.contact_sheet import Row, draw_sheet
from ..core.settings import setting

METADATA = "train_data.json"
_SAME_PICTURE = 2 / 255


class CastDataError(ValueError):
    """A clip or folder that no dataset can be made of; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class CastSettings:
    """Size of canvases in pixels, frames a clip must have (1 more than a multiple of 4), and the trigger sentence."""

    width: int = setting(
        1280, help="of the canvas", low=16, high=4096, step=16,
        tooltip="Of the canvases, in pixels, and the size trained at. More: references keep more detail, training "
        "costs more. 1280 x 720 as published, 64 x 64 for the miniature.",
    )  # fmt: skip
    height: int = setting(720, help="of the canvas", low=16, high=4096, step=16, tooltip="In pixels; see width.")
    frames: int = setting(
        81, help="frames taken of each clip, 1 more than a multiple of 4", low=9, high=241, step=4,
        tooltip="Frames kept of each clip; shorter clips are left out. More: longer motion can be learned.",
    )  # fmt: skip
    trigger: str = setting(
        TRIGGER, help="sentence that starts every caption",
        tooltip="The sentence that begins every caption, and later every prompt. The published one goes on from the "
        "released adapters.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.frames < 9 or self.frames % 4 != 1:
            raise CastDataError(f"Clips of {self.frames} frames do not fit Wan's latents: choose 9, 13, ... 81.")


PAPER = CastSettings()


@dataclass(frozen=True, eq=False)
class CastClip:
    """One clip of a source: its frames [T, H, W, 3] in 0..1 and frames per second, its references, an empty scene [H,
    W, 3] or None, what happens, and where its cast is [T, H, W, n] in 0..1, if that is known: all together (n = 1), or
    up to three subjects apart, of which `owners` assigns one to every reference.
    """

    frames: torch.Tensor
    fps: float
    references: tuple[Reference, ...]
    plate: torch.Tensor | None
    caption: str
    subjects: torch.Tensor | None = None
    owners: tuple[int, ...] = ()


@dataclass(frozen=True)
class CastSource:
    """A clip that can be made: its name in the dataset, what changes when it changes, and how to load it.

    `load` raises CastDataError or PixelError for input that cannot be used.
    """

    id: str
    fingerprint: str
    load: Callable[[], CastClip]


@dataclass(frozen=True)
class CastItem:
    """One finished line of a dataset. plate: whether the place is pictured, as it is wherever nothing says so;
    subjects: a video that is white where the cast is, or red, green and blue where each of it is; boxes: where the
    canvas shows the references, if known; owners: which of the subjects each of them shows.
    """

    clip: Path
    canvas: Path
    text: str
    plate: bool = True
    subjects: Path | None = None
    boxes: tuple[Box, ...] = ()
    owners: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """The clip's name."""
        return self.clip.stem


def build_dataset(
    sources: Sequence[CastSource],
    settings: CastSettings,
    folder: Path,
    *,
    keep_others: bool = False,
    say: Callable[[str], None] = print,
) -> list[CastItem]:
    """Make or complete the dataset in `folder`; clips that cannot be used are named and left out.

    keep_others: clips that were built there earlier stay in it, before those of `sources`.

    Raises CastDataError: no source, two of one name, or none can be used.
    """
    if len({source.id for source in sources}) != len(sources):
        raise CastDataError("Two clips have the same id: give each its own.")
    records = _earlier(folder, {source.id for source in sources}) if keep_others else []
    for number, source in enumerate(sources, start=1):
        path = folder / "items" / f"{source.id}.json"
        mark = _fingerprint({"source": source.fingerprint, **asdict(settings)})
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["fingerprint"] == mark:
                records.append(record)
                continue
        try:
            record = {"fingerprint": mark, **_build(source, settings, folder)}
        except (CastDataError, PixelError) as error:
            path.unlink(missing_ok=True)
            say(f"{source.id} is left out: {error}")
            continue
        write_json(path, record)
        records.append(record)
        say(f"{number}/{len(sources)} {source.id}" + "".join(f"\n  {warning}" for warning in record["warnings"]))
    if not records:
        raise CastDataError("No clip can be used: there must be at least one for a dataset.")
    keys = ("file_path", "text", "image_path", "type")
    write_json(folder / METADATA, [{key: record[key] for key in keys} for record in records])
    items = load_dataset(folder)
    contact_sheet(items, folder)
    return items


def contact_sheet(items: Sequence[CastItem], folder: Path) -> Path:
    """The picture of every clip's canvas, frames and caption in `folder`, drawn anew if the metadata is newer."""
    path = folder / "contact_sheet.png"
    newest = max(listed.stat().st_mtime_ns for listed in folder.glob("train_data*.json"))
    if not path.exists() or path.stat().st_mtime_ns < newest:
        draw_sheet([_row(item) for item in items], path)
    return path


def _earlier(folder: Path, renewed: Container[str]) -> list[dict[str, Any]]:
    """The records of clips built in `folder`, but for those of the ids `renewed`."""
    paths = sorted((folder / "items").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stem not in renewed]


def load_dataset(folder: Path) -> list[CastItem]:
    """The clips of a dataset, ours or the published one, whose absolute paths are found again inside `folder`.

    Raises CastDataError: no metadata, or a file that it names is missing.
    """
    found = sorted(folder.glob("train_data*.json"))
    if not found:
        raise CastDataError(f"{folder} has no {METADATA}: build the dataset first, or choose its folder.")
    read = found[0]
    try:
        items = []
        for line in parse_file(read).list():
            clip, canvas = (_inside(folder, line[key].text()) for key in ("file_path", "image_path"))
            read = folder / "items" / f"{clip.stem}.json"
            told = parse_file(read) if read.exists() else Value({"plate": True, "boxes": []})
            boxes = tuple(_box(box) for box in told["boxes"].list(1000))
            owners = told.get("owners")
            given = () if owners is None or owners.raw is None else tuple(who.integer(0, 1000) for who in owners.list())
            if given and len(given) != len(boxes):
                raise DecodeError(f"it has {len(boxes)} boxes and {len(given)} owners")
            subjects = folder / "subjects" / clip.name
            where = subjects if subjects.exists() else None
            owned = given or (0,) * len(boxes)
            items.append(CastItem(clip, canvas, line["text"].text(), told["plate"].flag(), where, boxes, owned))
            read = found[0]
        return items
    except DecodeError as error:
        raise CastDataError(f"{read} cannot be read as part of a dataset: {error}.") from error


def _box(value: Value) -> Box:
    x, y = (value[name].integer(-(10**6), 10**6) for name in ("x", "y"))
    return Box(x, y, value["width"].integer(1, 10**6), value["height"].integer(1, 10**6))


def canvas_of(clip: CastClip, settings: CastSettings) -> Composition:
    """The first frame of a clip: the published training layout, which needs a plate, else the composer's own."""
    layout: LayoutKind = "auto" if clip.plate is None else "paper (training)"
    return compose(clip.references, clip.plate, layout, (settings.width, settings.height))


def read_frames(
    path: Path, count: int | None = None, size: tuple[int, int] | None = None
) -> tuple[torch.Tensor, float]:
    """The first `count` frames [T, H, W, 3] in 0..1 of a video file at its mean rate, in `size` (width, height) or
    their own, its aspect ignored as the published loader does; and the frames per second.

    Raises CastDataError: the file is no video, or has fewer frames.
    """
    frames: list[torch.Tensor] = []
    try:
        with VideoReader(path) as video:
            fps = video.fps
            for frame in islice(video.at_rate(), count):
                pixels = frame.pixels()
                if size is not None and (pixels.shape[1], pixels.shape[0]) != size:
                    pixels = from_pil(to_pil(pixels).resize(size, Image.Resampling.BOX))
                frames.append(pixels)
    except VideoReadError as error:
        raise CastDataError(str(error)) from error
    if not frames or (count is not None and len(frames) < count):
        raise CastDataError(f"{path.name} has {len(frames)} frames and {count} are needed: take a longer clip.")
    return torch.stack(frames), fps


def write_json(path: Path, value: Any) -> None:
    """The old file or the whole new one, never a part; a file that says the same stays as it is."""
    text = json.dumps(value, indent=1)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _build(source: CastSource, settings: CastSettings, folder: Path) -> dict[str, Any]:
    from ...host.files.video import VideoWriter  # imports ComfyUI, whose devices must be chosen first

    clip = source.load()
    if len(clip.frames) < settings.frames:
        raise CastDataError(f"it has {len(clip.frames)} frames and {settings.frames} are needed: take a longer clip.")
    prompt = build_prompt(clip.caption, [], trigger=settings.trigger)
    drawn = canvas_of(clip, settings)
    described = [Described(reference.name, reference.description) for reference in clip.references]
    warnings = [*prompt.warnings, *contradictions(clip.caption, described), *drawn.warnings]
    if clip.plate is not None and _alike(clip.plate, clip.frames[0]):
        warnings.append("The plate is the clip's first frame with its cast still in it: give an empty scene.")

    video = PurePosixPath("videos", f"{source.id}.mp4")
    canvas = PurePosixPath("combined_images", f"video_{source.id}", "combined.png")
    materials = folder / "train_materials" / f"video_{source.id}"
    for path in (folder / canvas, materials / "main_entity.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = clip.frames.shape
    films = {folder / video: clip.frames}
    if clip.subjects is not None:
        masks = clip.subjects
        films[folder / "subjects" / video.name] = (
            masks.expand(-1, -1, -1, 3) if masks.shape[-1] == 1 else F.pad(masks, (0, 3 - masks.shape[-1]))
        )
    for path, frames in films.items():
        with VideoWriter(path, width, height, clip.fps, crf=10) as writer:
            writer.write(frames[: settings.frames])
    to_pil(drawn.picture[0]).save(folder / canvas)
    if clip.plate is not None:
        to_pil(clip.plate).save(materials / "main_entity.png")
    for number, reference in enumerate(clip.references):
        name = "object.png" if len(clip.references) == 1 else f"object_{number}.png"
        reference.picture.save(materials / name)
    return {
        "file_path": str(video), "text": prompt.text, "image_path": str(canvas), "type": "video",
        "references": [asdict(one) for one in described], "plate": clip.plate is not None,
        "boxes": [asdict(box) for box in drawn.boxes], "owners": clip.owners,
        "warnings": warnings,
    }  # fmt: skip


def _alike(plate: torch.Tensor, frame: torch.Tensor) -> bool:
    return plate.shape == frame.shape and bool((plate - frame).abs().mean() < _SAME_PICTURE)


def _inside(folder: Path, name: str) -> Path:
    """A file of the dataset; absolute paths of the machine it was made on are tried from their longest end."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(len(parts)):
        rest = parts[start:]
        if rest[0] == "/" or ".." in rest or "\0" in name:
            continue
        with suppress(OSError):  # a name that is too long for a file's
            if (path := folder.joinpath(*rest)).is_file():
                return path
    raise CastDataError(f"The dataset lacks {name[:200]}: build it again, or take the line out of {METADATA}.")


def _row(item: CastItem) -> Row:
    frames, _ = read_frames(item.clip)
    shown = [frames[index] for index in (4, len(frames) // 2, len(frames) - 1)]
    pictures = [to_pil(read_picture(item.canvas)), *(to_pil(frame) for frame in shown)]
    return Row(item.id, item.text, pictures)


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint_of(value: Any, files: Iterable[Path]) -> str:
    """Changes when the value does or one of the files is replaced."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return _fingerprint([value, stats])
