"""The canvas' text: what it means, on other sizes too, and one sentence for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.first_frame import Box, FirstFrameError, parse_arrangement

TEXT = "canvas 1280 x 720\n2: 0 0 640 360\n\n 1 : 10 360 320 360 \n"


def test_order_and_boxes():
    read = parse_arrangement(TEXT)
    assert read.order(2) == (1, 0)
    assert read.boxes(2, 1280, 720) == (Box(0, 0, 640, 360), Box(10, 360, 320, 360))
    assert read.boxes(2, 640, 360) == (Box(0, 0, 320, 180), Box(5, 180, 160, 180))


def test_references_come_and_go():
    read = parse_arrangement(TEXT)
    assert read.order(4) == (1, 0, 2, 3)
    assert read.boxes(1, 1280, 720) == (Box(10, 360, 320, 360),)
    with pytest.raises(FirstFrameError, match="no box for reference 3"):
        read.boxes(3, 1280, 720)


def test_order_without_boxes():
    assert parse_arrangement("3\n1").order(3) == (2, 0, 1)
    assert parse_arrangement("").order(3) == (0, 1, 2)


@given(
    edges=st.lists(st.integers(0, 500), min_size=3, max_size=3, unique=True).map(sorted),
    size=st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
)
def test_neighbours_go_on_touching(edges: list[int], size: tuple[int, int]):
    left, middle, right = edges
    text = f"canvas 1000 x 500\n1: {left} 0 {middle - left} 9\n2: {middle} 0 {right - middle} 9"
    first, second = parse_arrangement(text).boxes(2, *size)
    if round(middle * size[0] / 1000) > round(left * size[0] / 1000):
        assert first.right == second.x
    assert parse_arrangement(text).boxes(2, 1000, 500)[0] == Box(left, 0, middle - left, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 0 0 10 10", r'Line 1 of the canvas: begin with a line such as "canvas 1280 x 720"'),
        ("canvas 10 x 10\n1: 0 0 10", 'Line 2 of the canvas: write "canvas'),
        ("canvas 10 x 10\n9: 0 0 10 10", "numbered from 1 to 8, not 9"),
        ("canvas 10 x 10\n0: 0 0 10 10", "numbered from 1 to 8, not 0"),
        ("canvas 10 x 10\n1: 0 0 10 0", "Line 2 of the canvas: A box needs a width and a height"),
        ("canvas 10 x 10\n1\n1", "Line 3 of the canvas: reference 1 already has a line"),
        ("canvas 10 x 10\ncanvas 10 x 10", "its size stands once"),
        ("canvas 0 x 10", "needs a width and a height"),
        ("please", 'not "please"'),
    ],
)
def test_mistakes(text: str, message: str):
    with pytest.raises(FirstFrameError, match=message) as caught:
        parse_arrangement(text)
    assert str(caught.value).endswith((".", "?"))
