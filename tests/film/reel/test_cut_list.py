"""The film as other programs read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from longreel.film.reel.cut_list import edit_list, subtitles
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
    text = edit_list(reel, "film_00001_.mp4")
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
