"""Who is seen when."""

from __future__ import annotations

import math

import pytest
import torch
from longreel.film.first_frame import Box, Reference
from longreel.film.metrics import (
    Found,
    Look,
    crop_on_white,
    identity_report,
    identity_table,
    looks_of,
    missing_spans,
    plot_identity,
    reference_on_white,
    windows,
)


def at(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def angle(a: float, b: float) -> float:
    return 100 * math.cos(math.radians(a - b))


BOXES = (Box(0, 0, 8, 8), Box(8, 0, 8, 8), Box(0, 8, 8, 8))
FOUND = tuple(map(Found, BOXES))


def test_in_windows_everybody_takes_the_likest():
    first, second = looks_of(FOUND, at(10, 50, 170), at(0, 40), None)
    assert (first.box, second.box) == (BOXES[0], BOXES[1])
    assert first.clip == pytest.approx(angle(10, 0), abs=1e-4)
    assert first.other == pytest.approx(angle(10, 40), abs=1e-4)
    assert second.clip == pytest.approx(angle(50, 40), abs=1e-4)


def test_a_box_shows_one_thing():
    # Both are likest to the crop at 0; the sum is largest if the first takes it and the second the one at 60.
    first, second = looks_of(FOUND[:2], at(0, 60), at(0, 20), ["mug", "cat"])
    assert (first.box, second.box) == (BOXES[0], BOXES[1])
    assert second.clip == pytest.approx(angle(60, 20), abs=1e-4)
    assert looks_of(FOUND[:2], at(0, 60), at(0, 20), None)[1].box == BOXES[0], "windows may be shared"
    looks = looks_of(FOUND[:1], at(0), at(0, 90), ["mug", "cat"])
    assert looks[0].box == BOXES[0]
    assert looks[1] == Look(None, 0.0, None), "one box, two references: one is missing"
    assert looks_of((), torch.zeros(0, 2), at(0, 90), ["mug", "cat"]) == (Look(None, 0.0, None),) * 2
    named = (Found(BOXES[0], "cat"), Found(BOXES[1]))
    assert looks_of(named, at(0, 60), at(0, 20), ["mug", "cat"])[1].box == BOXES[0], "a label settles it"


def test_seen_means_like_enough_and_like_no_other_more():
    box = BOXES[0]
    assert Look(box, 80, 70).is_seen(75)
    assert not Look(box, 80, 85).is_seen(75), "it is somebody else"
    assert not Look(box, 70, 10).is_seen(75)
    assert Look(box, 80, None).is_seen(75)
    assert not Look(None, 100, None).is_seen(0)


def test_missing_is_told_in_stretches_of_time():
    times = [0.5, 1.5, 2.5, 3.5]
    assert missing_spans([True] * 4, times, 4) == ()
    assert missing_spans([False] * 4, times, 4) == ((0.0, 4),)
    assert missing_spans([False, True, False, True], times, 4) == ((0.0, 1.5), (2.5, 3.5))
    assert missing_spans([True, True, False, False], times, 4) == ((2.5, 4),)


def test_report_counts_what_was_seen():
    box = BOXES[0]
    looks = [(Look(box, 90, 50, 60), Look(box, 40, 90, 20)), (Look(box, 80, 60, 50), Look(box, 95, 40, 70))]
    made = identity_report(["mug", "cat"], looks, [2, 7], 10, 5, 75, {"CLIP": "test"}, {})
    mug, cat = made.references
    assert (mug.seen, cat.seen) == (100, 50)
    assert (mug.mean, mug.least, mug.control) == (85, 80, 55)
    assert (cat.dino_mean, cat.dino_least) == (45, 20)
    assert cat.missing == ((0.0, 1.4),)
    assert made.times == (0.4, 1.4)
    table = identity_table(made)
    assert "0.0-1.4 s" in table
    assert "never" in table
    drawn = plot_identity(made, 75)
    assert drawn.size[0] == 960
    assert {"#8cc79a", "#e08a74"} <= {"#{:02x}{:02x}{:02x}".format(*pixel) for _, pixel in drawn.getcolors(1 << 24)}


def test_crops_stand_on_white_squares():
    frame = torch.zeros(20, 40, 3)
    crop = crop_on_white(frame, Box(5, 2, 10, 6))
    assert crop.shape == (10, 10, 3)
    assert torch.equal(crop[2:8], torch.zeros(6, 10, 3))
    assert torch.equal(crop[:2], torch.ones(2, 10, 3))
    picture = torch.full((1, 12, 12, 4), 0.25)
    picture[..., 3] = 0
    picture[:, 4:8, 2:10, 3] = 1
    shown = reference_on_white(Reference.from_image(picture))
    assert shown.shape == (8, 8, 3)
    assert torch.allclose(shown[2:6], torch.full((4, 8, 3), 0.25), atol=1 / 255)
    assert torch.equal(shown[:2], torch.ones(2, 8, 3))


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (64, 64), (3, 2), (1, 1)])
def test_windows_cover_the_frame(size: tuple[int, int]):
    width, height = size
    covered = torch.zeros(3, height, width)
    sides = sorted({box.width for box in windows(*size)}, reverse=True)
    for box in windows(*size):
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= width
        assert box.bottom <= height
        covered[sides.index(box.width), box.y : box.bottom, box.x : box.right] = 1
    assert covered[: len(sides)].all(), "windows of every size cover all of it"
