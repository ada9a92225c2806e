"""Layouts as arithmetic: the published boxes to the pixel, and what must hold of every layout."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.first_frame import Box, FirstFrameError, Layout, Size, plan
from longreel.film.first_frame.layouts import fit
from PIL import Image

FULL = Size(1280, 720)
PLATE = Size(1344, 768)

# Cut-out sizes (opaque part + 5 px) and the boxes of the published training canvases.
PUBLISHED = {
    "video_11": ([(1204, 173)], [(0, 314, 640, 92)], [0.532]),
    "video_12": ([(262, 166)], [(189, 277, 262, 166)], [1.0]),
    "video_13": ([(136, 138)], [(252, 291, 136, 138)], [1.0]),
    "video_15": ([(134, 182)], [(253, 269, 134, 182)], [1.0]),
    "video_16": ([(751, 282)], [(0, 240, 640, 240)], [0.852]),
    "video_18": ([(495, 571)], [(72, 74, 495, 571)], [1.0]),
    "video_19": ([(307, 498)], [(166, 111, 307, 498)], [1.0]),
    "video_21": ([(418, 408)], [(111, 156, 418, 408)], [1.0]),
    "video_24": ([(257, 444)], [(191, 138, 257, 444)], [1.0]),
    "video_25": ([(463, 678)], [(88, 21, 463, 678)], [1.0]),
    "video_294": ([(596, 518), (729, 677)], [(113, 0, 414, 360), (126, 360, 388, 360)], [0.695, 0.532]),
}

SIZES = st.builds(Size, st.integers(1, 2000), st.integers(1, 2000))
USUAL = st.builds(Size, st.integers(40, 900), st.integers(40, 900))
CANVASES = st.builds(lambda w, h: Size(2 * w, 2 * h), st.integers(64, 640), st.integers(64, 640))
KINDS = st.sampled_from(["paper (training)", "paper (test)", "grid", "auto"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_training_boxes(name: str):
    sizes, boxes, scales = PUBLISHED[name]
    layout = plan([Size(*size) for size in sizes], "paper (training)", FULL, PLATE)
    assert layout.boxes == tuple(Box(*box) for box in boxes)
    assert layout.plate == Box(640, 180, 640, 360)
    assert [round(placement.scale, 3) for placement in layout.placements] == scales
    assert layout.warnings == ()


def test_published_test_layout_keeps_the_plates_aspect():
    layout = plan([Size(300, 300)], "paper (test)", FULL, Size(1000, 1000))
    assert layout.plate == Box(640, 40, 640, 640)
    assert layout.plate_fit == "keep aspect"


@given(SIZES, st.builds(Size, st.integers(1, 1500), st.integers(1, 1500)))
def test_fit_is_pillows_rule(size: Size, room: Size):
    picture = Image.new("1", size)
    picture.thumbnail(room)
    assert fit(size, room) == picture.size


@given(st.lists(USUAL, min_size=1, max_size=8), KINDS, CANVASES, st.one_of(st.none(), USUAL))
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_layout(sizes: list[Size], kind: str, canvas: Size, plate: Size | None):
    if kind.startswith("paper") and plate is None:
        with pytest.raises(FirstFrameError, match="plate"):
            plan(sizes, kind, canvas, plate)
        return
    layout = plan(sizes, kind, canvas, plate)
    whole = Box(0, 0, *canvas)
    drawn = layout.boxes if layout.plate is None else (*layout.boxes, layout.plate)
    assert all(box.common(whole) == box for box in drawn)
    assert all(a.common(b) is None for a, b in combinations(drawn, 2))
    for size, placement in zip(sizes, layout.placements):
        assert placement.box.common(placement.slot) == placement.box
        check_aspect(size, placement.box)
        assert placement.scale <= (3.0 if kind == "auto" else 1.0)
    assert [placement.index for placement in layout.placements] == list(range(len(sizes)))
    corners = [(placement.slot.y, placement.slot.x) for placement in layout.placements]
    assert corners == sorted(corners), "reading order is the references' order"
    assert Layout.from_json(layout.to_json()) == layout


def check_aspect(size: Size, box: Box) -> None:
    """One side follows from the other to within a pixel."""
    aspect = size.width / size.height
    assert abs(box.width - box.height * aspect) <= 1 or abs(box.height - box.width / aspect) <= 1


@given(st.lists(USUAL, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_auto_makes_the_smallest_reference_at_least_as_large_as_the_others_do(sizes: list[Size]):
    def smallest(kind: str) -> int:
        return min(box.width * box.height for box in plan(sizes, kind, FULL, PLATE, max_enlarge=1.0).boxes)

    assert smallest("auto") >= max(smallest("paper (training)"), smallest("grid"))


@given(st.integers(1, 8), USUAL, KINDS)
@settings(max_examples=40, deadline=None)
def test_identical_references_get_equal_boxes(count: int, size: Size, kind: str):
    boxes = plan([size] * count, kind, FULL, PLATE).boxes
    assert len({(box.width, box.height) for box in boxes}) == 1


def test_auto_enlarges_up_to_three_times():
    (box,) = plan([Size(100, 50)], "auto", FULL, PLATE).boxes
    assert (box.width, box.height) == (300, 150)
    (box,) = plan([Size(100, 50)], "auto", FULL, PLATE, max_enlarge=20).boxes
    assert (box.width, box.height) == (640, 320)


def test_grid_centres_an_odd_last_one():
    slots = [placement.slot for placement in plan([Size(900, 900)] * 3, "grid", FULL, PLATE).placements]
    assert slots == [Box(0, 0, 320, 360), Box(320, 0, 320, 360), Box(160, 360, 320, 360)]


def test_portrait_puts_the_plate_below():
    layout = plan([Size(300, 300)] * 2, "auto", Size(720, 1280), Size(1280, 720))
    assert layout.split == "rows"
    assert layout.plate is not None
    assert layout.plate.y >= 640
    assert all(box.bottom <= 640 for box in layout.boxes)
    assert any("Portrait" in warning for warning in layout.warnings)


@given(st.lists(USUAL, min_size=1, max_size=8), KINDS, CANVASES, USUAL)
@settings(max_examples=40, deadline=None)
def test_swapping_twice_changes_nothing(sizes: list[Size], kind: str, canvas: Size, plate: Size):
    layout = plan(sizes, kind, canvas, plate)
    assert layout.swapped() != layout
    assert layout.swapped().swapped() == layout


@given(st.lists(USUAL, min_size=1, max_size=8), KINDS, CANVASES, USUAL)
@settings(max_examples=40, deadline=None)
def test_boxes_given_back_mean_the_same(sizes: list[Size], kind: str, canvas: Size, plate: Size):
    boxes = plan(sizes, kind, canvas, plate).boxes
    assert plan(sizes, "manual", canvas, plate, boxes=boxes).boxes == boxes


def test_manual_says_what_is_unusual():
    boxes = [Box(-50, 0, 200, 200), Box(100, 100, 200, 200), Box(600, 300, 200, 200)]
    layout = plan([Size(200, 200)] * 3, "manual", FULL, PLATE, boxes=boxes, names=["cat", "", ""])
    assert layout.placements[0].slot == Box(0, 0, 150, 200)
    assert layout.warnings == (
        'The box of Reference 1 "cat" reaches beyond the canvas and was clipped.',
        'Reference 2 overlaps Reference 1 "cat".',
        "Reference 3 leaves the part of the canvas that is meant for references.",
    )


def test_warnings():
    layout = plan([Size(300, 300)] * 5, "auto", Size(1000, 562), None)
    text = " ".join(layout.warnings)
    assert "no background plate" in text
    assert "5 references" in text
    assert "multiples of 16" in text
    (warning,) = plan([Size(90, 20)], "paper (training)", FULL, PLATE).warnings
    assert warning.startswith("Reference 1 is only 90 x 20 pixels")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sizes": []}, "takes 1 to 8 references, not 0"),
        ({"sizes": [Size(9, 9)] * 9}, "takes 1 to 8 references, not 9"),
        ({"canvas": Size(1281, 720)}, "1281 x 720: both sides must be even"),
        ({"canvas": Size(10000, 720)}, "each side must have 16 to 8192 pixels"),
        ({"canvas": Size(0, 720)}, "each side must have 16 to 8192 pixels"),
        ({"plate": None}, 'layout "paper \\(training\\)" needs a background plate'),
        ({"kind": "manual"}, "one box per reference: 1, not 0"),
        ({"kind": "manual", "boxes": [Box(1280, 0, 5, 5)]}, "Reference 1 lies off the canvas"),
        ({"kind": "auto", "max_enlarge": math.nan}, "enlarged 1 time or more"),
    ],
)
def test_errors(change: dict, sentence: str):
    call = {"sizes": [Size(9, 9)], "kind": "paper (training)", "canvas": FULL, "plate": PLATE} | change
    with pytest.raises(FirstFrameError, match=sentence):
        plan(**call)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"kind": "auto"}'])
def test_a_foreign_layout_is_refused(text: str):
    with pytest.raises(FirstFrameError, match="not a saved layout"):
        Layout.from_json(text)


def test_a_changed_layout_is_refused():
    text = plan([Size(9, 9)], "auto", FULL, PLATE).to_json()
    for old, new in (('"auto"', '"best"'), ('"index": 0', '"index": 1'), ('"columns"', '"diagonal"')):
        assert old in text
        with pytest.raises(FirstFrameError, match="not a saved layout"):
            Layout.from_json(text.replace(old, new))
