"""What people type: characters, cut times, boxes."""

from __future__ import annotations

import json

import pytest
from longreel.film.first_frame import Box
from longreel.film.metrics import (
    Character,
    Found,
    MetricsError,
    boxes_from_json,
    parse_characters,
    parse_times,
    read_boxes,
)


def test_characters_are_lines():
    assert parse_characters("# cast\n\n Ada : a red robot: tall \nBo:a cat") == (
        Character("Ada", "a red robot: tall"),
        Character("Bo", "a cat"),
    )
    assert parse_characters("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada", 'Line 1 of the characters must be "name: description"'),
        ("Ada: x\n: y", "Line 2"),
        ("Ada:", "Line 1"),
        ("Ada: x\nAda: y", 'The character "Ada" is described twice'),
    ],
)
def test_characters_that_are_none(text: str, words: str):
    with pytest.raises(MetricsError, match=words):
        parse_characters(text)


def test_times_are_frames():
    assert parse_times("1.5, 0:02s\n1:00:00", 24) == (36, 48, 86400)
    assert parse_times(" ", 24) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5, five", '"five" is no cut time'),
        ("-1", "is no cut time"),
        ("nan", "is no cut time"),
        ("0", "does not lie behind"),
        ("2, 1", "put the times in order"),
        ("11", "behind the video's end at 10.00 s"),
    ],
)
def test_times_that_are_none(text: str, words: str):
    with pytest.raises(MetricsError, match=words):
        parse_times(text, 10, 100)


def test_boxes_are_read_as_detectors_give_them():
    detected = [[{"x": 1.4, "y": 2.0, "width": 3.0, "height": 4.6, "label": "person", "score": 0.9}], []]
    assert read_boxes(detected, 2, 64, 48) == ((Found(Box(1, 2, 3, 5), "person"),), ())
    alone = {"x": 60, "y": -4, "width": 10, "height": 10}
    for form in (alone, [alone], [[alone]]):
        assert read_boxes(form, 1, 64, 48) == ((Found(Box(60, 0, 4, 6)),),), "what sticks out is cut off"


def test_boxes_come_as_json_or_as_a_report():
    assert boxes_from_json("  ") is None
    assert boxes_from_json('[[], [{"x": 1}]]') == [[], [{"x": 1}]]
    assert boxes_from_json(json.dumps({"film": {}, "boxes": [[]]})) == [[]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[], [], []], "There are 2 pictures and boxes for 3"),
        ([[{"x": 64, "y": 0, "width": 5, "height": 5}], []], "Box 1 of picture 1 lies outside the frame of 64 x 48"),
        ([[], [{"x": 0, "y": 0, "width": 0, "height": 5}]], "Box 1 of picture 2 is 0 x 5 pixels"),
        ([[{"x": 0, "y": 0}], []], "needs the numbers"),
        ([[{"x": float("nan"), "y": 0, "width": 1, "height": 1}], []], "needs the numbers"),
        ("boxes", "must be a list of boxes for each picture"),
        (7, "must be a list of boxes for each picture"),
        ([3, 4], "must be a list of boxes for each picture"),
    ],
)
def test_boxes_that_are_none(value: object, words: str):
    with pytest.raises(MetricsError, match=words):
        read_boxes(value, 2, 64, 48)


def test_text_that_is_no_json():
    with pytest.raises(MetricsError, match="The boxes are not JSON"):
        boxes_from_json("[[")
