"""The film as other programs read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from longreel.film.reel.cut_list import edit_list, film_sources, shot_sources, subtitles, timeline
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelLayout
from longreel.film.storyboard.text import parse_shot


def reel_of(layout: ReelLayout, film: Callable[..., FilmedShot], frames: list[int], texts: list[str]) -> Reel:
    reel = Reel.empty(layout)
    for count, text in zip(frames, texts):
        filmed = replace(film("x", reel.fingerprint, frames=count), shot=parse_shot(text))
        reel = reel.append(filmed)
    return reel


def test_events_are_the_shots_end_to_end(layout: ReelLayout, film: Callable[..., FilmedShot]) -> None:
    frames = [16, 57_600, 7]
    reel = reel_of(layout, film, frames, ["A cat.\nIt sits.", "seconds: 3600\nA dog.", "seed: 9\nA hen."])
    text = edit_list(reel, "film_00001_.mp4", film_sources(reel, "film_00001_.mp4"))
    events = re.findall(r"^(\d{3})  AX       V     C        (\S+) (\S+) (\S+) (\S+)$", text, re.MULTILINE)
    assert [event[0] for event in events] == ["001", "002", "003"]
    assert [event[1] for event in events] == ["00:00:00:00", "00:00:01:00", "01:00:01:00"]
    assert events[-1][2] == "01:00:01:07"
    assert all(event[1:3] == event[3:5] for event in events)
    assert all(one[2] == other[1] for one, other in pairwise(events))
    assert text.count("* FROM CLIP NAME: film_00001_.mp4") == 3
    assert f"SHOT 3, TAKE {reel.shots[2].fingerprint[:8]}, SEED 9: A hen." in text


def test_prompts_stand_where_they_hold(layout: ReelLayout, film: Callable[..., FilmedShot]) -> None:
    texts = ["seconds: 2\nA cat.\n[0.5s] It sits.\n\nStill.\n[1.9s] Late.", "A dog."]
    assert subtitles(reel_of(layout, film, [24, 8], texts)) == (
        "1\n00:00:00,000 --> 00:00:00,500\nA cat.\n\n"
        "2\n00:00:00,500 --> 00:00:01,500\nIt sits.\nStill.\n\n"
        "3\n00:00:01,500 --> 00:00:02,000\nA dog.\n"
    )


NAMES = ["\u00c9t\u00e9 & <neige>", "\u732b\nIt sits.", "--> a cat", '\U0001f408 "quoted"']
FRAMES = [16, 1, 57_601, 7]


def frame_of(code: str, rate: int) -> int:
    """The frame of a time code."""
    hours, minutes, seconds, frames = map(int, code.split(":"))
    assert frames < rate
    return ((hours * 60 + minutes) * 60 + seconds) * rate + frames


def times(clip: dict[str, Any], name: str = "source_range") -> tuple[float, float, set[float]]:
    """Start and length in frames, and the rates at which they are counted."""
    told = clip[name]
    assert told["OTIO_SCHEMA"] == "TimeRange.1"
    parts = [told["start_time"], told["duration"]]
    assert {part["OTIO_SCHEMA"] for part in parts} == {"RationalTime.1"}
    return parts[0]["value"], parts[1]["value"], {part["rate"] for part in parts}


@pytest.mark.parametrize("fps", [16.0, 24.0, 29.97])
def test_times_and_names_come_back(layout: ReelLayout, film: Callable[..., FilmedShot], fps: float) -> None:
    reel = reel_of(replace(layout, fps=fps), film, FRAMES, NAMES)
    starts = list(accumulate(FRAMES, initial=0))
    video = "\u732b film.mp4"
    cuts = edit_list(reel, video, film_sources(reel, video))
    events = re.findall(r"^\d{3}  AX       V     C        (\S+) (\S+) \S+ \S+$", cuts, re.MULTILINE)
    rate = round(fps)
    assert [tuple(frame_of(code, rate) for code in event) for event in events] == list(pairwise(starts))
    assert cuts.count(f"* FROM CLIP NAME: {video}\n") == 4

    told = json.loads(timeline(reel, video, film_sources(reel, video)))
    assert (told["OTIO_SCHEMA"], told["name"]) == ("Timeline.1", video)
    (track,) = told["tracks"]["children"]
    assert (told["tracks"]["OTIO_SCHEMA"], track["OTIO_SCHEMA"], track["kind"]) == ("Stack.1", "Track.1", "Video")
    clips = track["children"]
    assert {clip["OTIO_SCHEMA"] for clip in clips} == {"Clip.1"}
    assert [times(clip) for clip in clips] == [(start, count, {fps}) for start, count in zip(starts, FRAMES)]
    files = [clip["media_reference"] for clip in clips]
    assert {(file["OTIO_SCHEMA"], unquote(file["target_url"])) for file in files} == {("ExternalReference.1", video)}
    assert {times(file, "available_range")[:2] for file in files} == {(0, sum(FRAMES))}
    assert [clip["metadata"]["longreel"]["prompts"][0]["text"] for clip in clips] == NAMES

    # Both kinds of subtitles say the same, and their ends meet within half a thousandth.
    for web, mark in ((False, ","), (True, ".")):
        found = re.findall(r"^(\S+) --> (\S+)$", subtitles(reel, web), re.MULTILINE)
        codes = [code.replace(mark, ".").split(":") for pair in found for code in pair]
        seconds = [int(hours) * 3600 + int(minutes) * 60 + float(rest) for hours, minutes, rest in codes]
        assert seconds == pytest.approx([frame / fps for pair in pairwise(starts) for frame in pair], abs=5.1e-4)
    assert subtitles(reel, web=True).startswith("WEBVTT\n\n1\n")
    assert "\n--&gt; a cat\n" in subtitles(reel, web=True)


def test_each_shot_is_its_own_video_in_the_project(
    layout: ReelLayout, film: Callable[..., FilmedShot], tmp_path: Path
) -> None:
    store = ProjectStore(tmp_path / "\u6620\u753b 100%")
    reel = Reel.empty(layout)
    for i, frames in enumerate([16, 7]):
        filmed = film(f"shot {i}", reel.fingerprint, frames=frames)
        reel = reel.append(store.add(filmed) if i else filmed)
    whole, own = shot_sources(reel, "film.webm")
    assert (whole.name, whole.start, whole.frames) == ("film.webm", 0, 23)
    assert (own.name, own.start, own.frames) == ("002.webm", 0, 7)
    assert Path(unquote(urlsplit(own.url).path)) == store.folder / "002.webm"
    assert "00:00:00:00 00:00:00:07 00:00:01:00 00:00:01:07" in edit_list(reel, "film", [whole, own])


def test_a_timeline_opens_in_opentimelineio(
    layout: ReelLayout, film: Callable[..., FilmedShot], tmp_path: Path
) -> None:
    reader = pytest.importorskip("opentimelineio")
    reel = reel_of(replace(layout, fps=29.97), film, FRAMES, NAMES)
    path = tmp_path / "film.otio"
    path.write_text(timeline(reel, "film", film_sources(reel, "film.mp4")), encoding="utf-8")
    opened = reader.adapters.read_from_file(str(path))
    assert opened.duration() == reader.opentime.RationalTime(sum(FRAMES), 29.97)
    assert [clip.range_in_parent().start_time.value for clip in opened.find_clips()] == [0, 16, 17, 57_618]
