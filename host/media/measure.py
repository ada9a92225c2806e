"""Measuring a video: streams it, embeds what is needed of it, and lets film/metrics conclude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...film.first_frame import Reference
from ...film.metrics import (
    Character,
    ContinuityReport,
    Found,
    IdentityReport,
    Look,
    MetricsError,
    Seen,
    ShotEvidence,
    Span,
    Watcher,
    assign,
    continuity_report,
    cosines,
    crop_on_white,
    find_cuts,
    identity_report,
    join,
    keyframe_positions,
    looks_of,
    parse_times,
    read_boxes,
    reference_on_white,
    spans_of,
    windows,
)
from ...film.storyboard.shot import Shot
from ..model_fingerprint import fingerprint_model
from .embedder import Embedder
from .source import Footage, pick

__all__ = ["ContinuityOptions", "Measured", "measure_continuity", "measure_identity"]

_SMALL = 64
"""Side to which pictures are shrunk that are only compared place by place."""
MOTION = "block matching, 8 x 8 at 128 pixels"


@dataclass(frozen=True)
class ContinuityOptions:
    """How a video is measured. cuts: times in text, empty to detect them. keyframes: of each shot. least: cosine (not
    times 100) of a crop with a description below which no character is detected.
    """

    cuts: str = ""
    keyframes: int = 1
    least: float = 0.18


@dataclass(frozen=True, eq=False)
class Measured:
    """A report, and the keyframes it was made of [n, H, W, 3]."""

    report: ContinuityReport
    keyframes: Tensor


def measure_continuity(
    footage: Footage,
    embedder: Embedder,
    story: Sequence[Shot],
    characters: Sequence[Character],
    boxes: Any,
    options: ContinuityOptions,
) -> Measured:
    """Measure a whole video, in one pass over a reel and two over others, whose shots are detected first.

    story: the prompts, one entry for each shot; empty for a reel's own, or for none. boxes: of each keyframe, see
    film.metrics.read_boxes, or None. Raises MetricsError before anything is computed where that can be known.
    """
    if footage.spans and options.cuts.strip():
        raise MetricsError("A reel knows its own cuts: leave the cut times empty.")
    watcher = Watcher()
    spans = footage.spans or _spans(footage, watcher, options.cuts, len(story))
    _check_story(len(story), len(spans), "on the reel" if footage.spans else "in the video")
    places = [keyframe_positions(span, options.keyframes) for span in spans]
    flat = tuple(position for each in places for position in each)
    found = None
    if boxes is not None and footage.size is not None:
        found = read_boxes(boxes, len(flat), *footage.size)
    pictures = pick(footage, flat, watcher.see if footage.spans else None)
    if boxes is not None and found is None:
        found = read_boxes(boxes, len(flat), pictures.shape[2], pictures.shape[1])
    embeddings = embedder.images(pictures)
    told = story or footage.shots
    said = _Words(embedder)
    looks = torch.cat([embedder.text(each.description, whole=True) for each in characters]) if characters else None
    shots: list[ShotEvidence] = []
    first = 0
    for number, (span, positions) in enumerate(zip(spans, places)):
        part = slice(first, first + len(positions))
        first += len(positions)
        shown, others = footage.shown(number) or ([], [])
        evidence = ShotEvidence(
            span=span,
            begins=footage.shots[number].start if footage.shots and number else "cut",
            keyframes=positions,
            pictures=_small(pictures[part]),
            embeddings=embeddings[part],
            shown=embedder.images(torch.stack(shown)) if shown and others else None,
            other=embedder.images(torch.stack(others)) if shown and others else None,
            shown_pictures=tuple(_small(torch.stack(shown))) if shown else (),
        )
        if told:
            prompts = [_prompt_at(told[number], (position - span.start) / footage.fps) for position in positions]
            evidence = replace(
                evidence,
                prompt=prompts[len(prompts) // 2],
                whole=said.alignment(embeddings[part], prompts, True),
                sentences=said.alignment(embeddings[part], prompts, False),
            )
        if found is not None and looks is not None:
            seen = _seen(pictures[part], found[part], characters, looks, embedder, options.least)
            evidence = replace(evidence, seen=seen)
        shots.append(evidence)
    names = [each.name for each in characters] if found is not None else []
    report = continuity_report(
        shots,
        watcher.signs,
        footage.fps,
        names,
        _model(embedder),
        {
            "shots from": "the reel" if footage.spans else "cut times" if options.cuts.strip() else "cut detection",
            "keyframes per shot": options.keyframes,
            "least cosine of a character": options.least,
            "motion by": MOTION,
        },
        _notes(characters, found, told),
    )
    return Measured(report, pictures)


def measure_identity(
    footage: Footage,
    references: Sequence[Reference],
    embedder: Embedder,
    dino: Any,
    boxes: Any,
    samples: int,
    least: float,
) -> tuple[IdentityReport, Tensor]:
    """Look for references on frames spread over a video. Returns these frames, [n, H, W, 3], too.

    dino: a CLIP_VISION that holds another image model, or None. boxes: detections on those frames, see
    film.metrics.read_boxes; None to search in windows over the frame. samples: how many frames. least: cosine (not
    times 100) below which a reference is missing. Raises MetricsError.
    """
    names = [each.name or f"reference {number}" for number, each in enumerate(references, start=1)]
    count = footage.frames
    if count is None:
        watched: list[int] = []
        pick(footage, (), lambda piece: watched.append(len(piece)))
        count = sum(watched)
    (whole,) = spans_of((), count)
    positions = keyframe_positions(whole, samples)
    found = None
    if boxes is not None and footage.size is not None:
        found = read_boxes(boxes, len(positions), *footage.size)
    pictures = pick(footage, positions)
    height, width = pictures.shape[1:3]
    if boxes is not None and found is None:
        found = read_boxes(boxes, len(positions), width, height)
    shown = [reference_on_white(each) for each in references]
    wanted = torch.cat([embedder.images(each[None]) for each in shown])
    other = torch.cat([_dino(dino, each) for each in shown]) if dino is not None else None
    rows: list[tuple[Look, ...]] = []
    for index, picture in enumerate(pictures):
        places = tuple(Found(box) for box in windows(width, height)) if found is None else found[index]
        crops = [crop_on_white(picture, each.box) for each in places]
        embedded = torch.cat([embedder.images(crop[None]) for crop in crops]) if crops else wanted[:0]
        looks = looks_of(places, embedded, wanted, names if found is not None else None)
        if other is not None:
            looks = tuple(
                look
                if look.box is None
                else Look(
                    look.box,
                    look.clip,
                    look.other,
                    float(cosines(_dino(dino, crop_on_white(picture, look.box)), other[place : place + 1])),
                )
                for place, look in enumerate(looks)
            )
        rows.append(looks)
    model = _model(embedder)
    if dino is not None:
        model |= {"DINO": type(dino.model).__name__, "DINO fingerprint": fingerprint_model(dino.patcher)}
    options = {
        "frames looked at": len(positions),
        "looked at": "windows in three sizes" if found is None else "the boxes given",
        "missing below": least,
    }
    report = identity_report(names, rows, positions, count, footage.fps, 100 * least, model, options)
    return report, pictures


@dataclass
class _Words:
    """Alignment with prompts, each embedded once."""

    embedder: Embedder
    known: dict[tuple[str, bool], Tensor] = field(default_factory=dict)

    def alignment(self, images: Tensor, prompts: Sequence[str], whole: bool) -> float:
        """Mean over pictures [n, d] of the cosine x 100 with the prompt, as one text or as its sentences' mean."""
        values = []
        for image, prompt in zip(images, prompts):
            if (prompt, whole) not in self.known:
                self.known[prompt, whole] = self.embedder.text(prompt, whole=whole)
            values.append(float(cosines(image[None], self.known[prompt, whole]).mean()))
        return sum(values) / len(values)


def _seen(
    pictures: Tensor,
    found: Sequence[Sequence[Found]],
    characters: Sequence[Character],
    looks: Tensor,
    embedder: Embedder,
    least: float,
) -> dict[str, Seen]:
    """Who is on the keyframes of a shot."""
    names = [each.name for each in characters]
    crops: dict[str, list[tuple[int, Found, Tensor]]] = {name: [] for name in names}
    for place, (picture, boxes) in enumerate(zip(pictures, found)):
        if not boxes:
            continue
        rows = torch.cat([embedder.images(crop_on_white(picture, each.box)[None]) for each in boxes])
        for character, box in assign(boxes, names, cosines(rows, looks), 100 * least).items():
            crops[names[character]].append((place, boxes[box], rows[box]))
    return {
        name: Seen(
            join(torch.stack([row for _, _, row in mine])),
            tuple((place, each.box) for place, each, _ in mine),
            float(cosines(torch.stack([row for _, _, row in mine]), looks[names.index(name)][None]).mean()),
        )
        for name, mine in crops.items()
        if mine
    }


def _spans(footage: Footage, watcher: Watcher, cuts: str, told: int) -> tuple[Span, ...]:
    """The detected shots of a video. watcher: its statistics, of all frames. told: shots of the storyboard, or 0."""
    if cuts.strip():
        _check_story(told, 1 + len(parse_times(cuts, footage.fps, footage.frames)), "given by the cut times")
    pick(footage, (), watcher.see)
    count = len(watcher.signs)
    return spans_of(parse_times(cuts, footage.fps, count) or find_cuts(watcher.signs), count)


def _check_story(told: int, shots: int, where: str) -> None:
    if told and told != shots:
        count = "1 shot" if told == 1 else f"{told} shots"
        verb = "is" if shots == 1 else "are"
        raise MetricsError(
            f"The storyboard has {count}, but {shots} {verb} {where}: connect the storyboard of this video, or write "
            "where its shots begin."
        )


def _prompt_at(shot: Shot, seconds: float) -> str:
    return [prompt.text for prompt in shot.prompts if prompt.at <= seconds or prompt.at == 0][-1]


def _notes(characters: Sequence[Character], found: Sequence[Sequence[Found]] | None, told: Sequence[Shot]) -> list[str]:
    notes = []
    if not told:
        notes.append("No prompts were given, so there is no alignment.")
    if characters and found is None:
        notes.append("No boxes were given, so characters were not measured: give the keyframes to a detector.")
    if found is not None and not characters:
        notes.append("Boxes were given but no characters: describe them, a line each.")
    return notes


def _model(embedder: Embedder) -> dict[str, Any]:
    return {"CLIP": embedder.name, "CLIP fingerprint": embedder.fingerprint}


def _dino(dino: Any, crop: Tensor) -> Tensor:
    """[1, d] of a square crop."""
    rows: Tensor = dino.encode_image(crop[None])["image_embeds"]
    return rows.float().cpu()


def _small(pictures: Tensor) -> Tensor:
    """Pictures [n, H, W, 3] at 64 x 64."""
    shrunk = torch.nn.functional.interpolate(pictures.movedim(-1, 1), size=(_SMALL, _SMALL), mode="area")
    return shrunk.movedim(1, -1)
