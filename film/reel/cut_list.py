"""A film for other programs: its shots as an edit decision list (CMX 3600) or a timeline (OpenTimelineIO), its prompts
as subtitles (SubRip, WebVTT).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .choice import TAKE_DIGITS, take_of
from .project import folder_of, numbered
from .reel import FilmedShot, Reel

__all__ = ["Source", "edit_list", "film_sources", "shot_sources", "subtitles", "timeline"]


@dataclass(frozen=True)
class Source:
    """The video file that a shot is cut out of. start: the file's frame at which it begins. frames: of the file."""

    name: str
    url: str
    start: int
    frames: int


def film_sources(reel: Reel, video: str) -> list[Source]:
    """For each shot the video of the whole film. video: its name; it lies beside the list."""
    return [Source(video, quote(video), start, reel.frames) for _, start in _starts(reel)]


def shot_sources(reel: Reel, video: str) -> list[Source]:
    """For each shot its own video in its project, of the kind of `video`: the film's, which a shot outside a project is
    cut out of.
    """
    suffix = Path(video).suffix or ".mp4"
    sources = film_sources(reel, video)
    for i, shot in enumerate(reel.shots):
        folder = folder_of(shot)
        if folder is not None:
            path = folder.absolute() / numbered(i + 1, suffix)
            sources[i] = Source(path.name, path.as_uri(), 0, shot.frames)
    return sources


def edit_list(reel: Reel, title: str, sources: Sequence[Source]) -> str:
    """The shots of a reel as an EDL, one event each.

    Time codes count frames at the nearest whole rate without dropping any, as editors do for 23.976. Lines end with LF.
    """
    rate = max(1, round(reel.layout.fps))
    lines = [f"TITLE: {title}", "FCM: NON-DROP FRAME", ""]
    for number, ((shot, start), source) in enumerate(zip(_starts(reel), sources), start=1):
        times = [source.start, source.start + shot.frames, start, start + shot.frames]
        lines += [
            f"{number:03}  AX       V     C        {' '.join(_time_code(frame, rate) for frame in times)}",
            f"* FROM CLIP NAME: {source.name}",
            f"* COMMENT: SHOT {number}, TAKE {_take(shot)}, SEED {shot.shot.seed}: {_opening(shot)}",
            "",
        ]
    return "\n".join(lines)


def timeline(reel: Reel, title: str, sources: Sequence[Source]) -> str:
    """The shots of a reel as an OpenTimelineIO file: a timeline of one track with a clip for each.

    What OpenTimelineIO has no word for stands in each clip's metadata under `longreel`. Source: the schemas Timeline.1,
    Stack.1, Track.1, Clip.1, ExternalReference.1 of OpenTimelineIO's file format.
    """
    fps = float(reel.layout.fps)
    clips: list[dict[str, Any]] = []
    for number, (shot, source) in enumerate(zip(reel.shots, sources), start=1):
        said = {
            "shot": number,
            "take": _take(shot),
            "seed": str(shot.shot.seed),  # programs that read JSON's numbers as floats would round it
            "start": shot.shot.start,
            "prompts": [{"at": prompt.at, "text": prompt.text} for prompt in shot.shot.prompts],
        }
        file = _object("ExternalReference.1", name=source.name, target_url=source.url)
        file |= {"available_range": _range(0, source.frames, fps), "metadata": {}}
        clip = _item("Clip.1", f"{number:03} {_opening(shot)}", _range(source.start, shot.frames, fps))
        clips.append(clip | {"media_reference": file, "metadata": {"longreel": said}})
    track = _item("Track.1", "V1") | {"kind": "Video", "children": clips}
    stack = _item("Stack.1", "tracks") | {"children": [track]}
    film = _object("Timeline.1", name=title, global_start_time=None, tracks=stack, metadata={})
    return json.dumps(film, indent=1, ensure_ascii=False) + "\n"


def subtitles(reel: Reel, web: bool = False) -> str:
    """The prompts of a film, each from where it holds to the next, as SubRip (.srt). web: as WebVTT (.vtt).

    Lines end with LF.
    """
    fps = Fraction(repr(float(reel.layout.fps)))
    blocks: list[str] = ["WEBVTT\n"] if web else []
    for shot, start in _starts(reel):
        begin, end = start / fps, (start + shot.frames) / fps
        times = [min(begin + Fraction(repr(prompt.at)), end) for prompt in shot.shot.prompts] + [end]
        for prompt, first, last in zip(shot.shot.prompts, times, times[1:]):
            if first < last:  # else the shot was over before it
                # A blank line would end the entry.
                text = "\n".join(line for line in prompt.text.split("\n") if line.strip())
                if web:
                    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                number = len(blocks) + (not web)
                blocks.append(f"{number}\n{_clock(first, web)} --> {_clock(last, web)}\n{text}\n")
    return "\n".join(blocks)


def _object(schema: str, **fields: Any) -> dict[str, Any]:
    return {"OTIO_SCHEMA": schema, **fields}


def _item(schema: str, name: str, source_range: dict[str, Any] | None = None) -> dict[str, Any]:
    """What clips, tracks and stacks have in common."""
    fields = {"effects": [], "markers": [], "enabled": True, "metadata": {}}
    return _object(schema, name=name, source_range=source_range, **fields)


def _range(start: int, frames: int, fps: float) -> dict[str, Any]:
    times = [_object("RationalTime.1", rate=fps, value=float(frame)) for frame in (start, frames)]
    return _object("TimeRange.1", start_time=times[0], duration=times[1])


def _take(shot: FilmedShot) -> str:
    return take_of(shot)[:TAKE_DIGITS]


def _opening(shot: FilmedShot) -> str:
    return shot.shot.prompts[0].text.split("\n")[0]


def _starts(reel: Reel) -> Iterator[tuple[FilmedShot, int]]:
    """Each shot and the film's frame at which it begins."""
    start = 0
    for shot in reel.shots:
        yield shot, start
        start += shot.frames


def _time_code(frame: int, rate: int) -> str:
    seconds, frames = divmod(frame, rate)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{frames:02}"


def _clock(seconds: Fraction, web: bool) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{'.' if web else ','}{rest:03}"
