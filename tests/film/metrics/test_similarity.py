"""Figures computed from embeddings, against sums written out by hand; and what must not change them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from longreel.film.first_frame import Box
from longreel.film.metrics import (
    Found,
    FrameStats,
    Seen,
    ShotEvidence,
    Span,
    assign,
    continuity_report,
    continuity_table,
    join,
    layout_likeness,
    margin,
    mean_of_pairs,
    plot_continuity,
)

DEGREES = [0, 30, 90, 200]


def at(*degrees: float) -> torch.Tensor:
    """Directions in the plane, of different lengths: only direction may count."""
    return torch.tensor([[math.cos(math.radians(d)) * (1 + d), math.sin(math.radians(d)) * (1 + d)] for d in degrees])


def angle(a: float, b: float) -> float:
    return 100 * math.cos(math.radians(a - b))


def test_mean_of_pairs_is_the_mean_of_cosines():
    wanted = [angle(a, b) for a, b in itertools.combinations(DEGREES, 2)]
    assert mean_of_pairs(at(*DEGREES)) == pytest.approx(sum(wanted) / 6, abs=1e-4)
    assert mean_of_pairs(at(5, 5, 5)) == pytest.approx(100, abs=1e-5)
    assert mean_of_pairs(at(5)) is None
    for order in itertools.permutations(DEGREES):
        assert mean_of_pairs(at(*order)) == pytest.approx(sum(wanted) / 6, abs=1e-4)


def test_embeddings_are_joined_by_direction():
    assert torch.allclose(join(at(0, 90)), torch.tensor([0.5, 0.5]).double().sqrt(), atol=1e-6)


def test_copy_score_is_how_much_nearer_it_comes_to_what_it_was_shown():
    # The shot's frames lie at 0 and 40; shown were 10 and 100, not shown 60 and 180.
    assert margin(at(0, 40), at(10, 100), at(60, 180)) == pytest.approx(angle(0, 10) - angle(40, 60), abs=1e-4)
    assert margin(at(0), at(0), torch.zeros(0, 2)) is None
    assert margin(at(0), torch.zeros(0, 2), at(0)) is None
    assert margin(at(0), at(7), at(7)) == pytest.approx(0, abs=1e-4)


def test_layout_likeness_sees_copies_only():
    picture = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))
    assert layout_likeness(picture, picture * 0.5 + 0.2) == pytest.approx(1, abs=1e-6), "brighter is still a copy"
    assert layout_likeness(picture, 1 - picture) == pytest.approx(-1, abs=1e-6)
    assert abs(layout_likeness(picture, picture.flip(1))) < 0.2
    assert layout_likeness(torch.full((8, 8, 3), 0.5), picture) == 0


def test_boxes_are_given_out_for_the_largest_sum():
    boxes = [Found(Box(0, 0, 5, 5)), Found(Box(9, 0, 5, 5))]
    # Greedily, Ada would take box 0 (90) and leave Bo with 10; together 80 + 85 is more.
    scores = torch.tensor([[90.0, 85.0], [80.0, 10.0]])
    assert assign(boxes, ["Ada", "Bo"], scores, 18) == {0: 1, 1: 0}
    assert assign(boxes, ["Ada", "Bo"], scores, 82) == {1: 0}
    assert assign([], ["Ada"], torch.zeros(0, 1), 18) == {}


def test_a_label_settles_who_it_is():
    boxes = [Found(Box(0, 0, 2, 2), "Bo"), Found(Box(9, 0, 5, 5), "Bo"), Found(Box(3, 3, 4, 4), "person")]
    scores = torch.tensor([[90.0, 0.0], [90.0, 0.0], [20.0, 90.0]])
    assert assign(boxes, ["Ada", "Bo"], scores, 18) == {0: 2, 1: 1}, "the larger one, and no other box for Bo"


def signs(count: int, lightness: float = 50, contrast: float = 10, motion: float = 0.25) -> list[FrameStats]:
    return [FrameStats(0.01, 0.001, motion, 2 * motion, (lightness, 0, 0), contrast) for _ in range(count)]


def evidence(number: int, degrees: float, **more: object) -> ShotEvidence:
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(number))
    span = Span(10 * number, 10 * number + 10)
    return ShotEvidence(span, "cut", (span.start + 5,), picture, at(degrees), **more)


def seen(degrees: float, alignment: float) -> Seen:
    return Seen(at(degrees)[0], ((0, Box(1, 2, 3, 4)),), alignment)


def report(shots: list[ShotEvidence], names: tuple[str, ...] = (), of: list[FrameStats] | None = None):
    return continuity_report(shots, of or signs(10 * len(shots)), 10, names, {"CLIP": "test"}, {})


def test_identical_shots_score_a_hundred():
    same = [evidence(1, 40), evidence(1, 40), evidence(1, 40)]
    made = report([ShotEvidence(Span(10 * n, 10 * n + 10), *list(vars(s).values())[1:]) for n, s in enumerate(same)])
    assert made.film["all-shots consistency"] == pytest.approx(100, abs=1e-5)
    assert made.film["layout copy"] == pytest.approx(1, abs=1e-6)
    assert all(pair.layout == pytest.approx(1, abs=1e-6) for pair in made.pairs)


def test_characters_are_compared_with_themselves_only():
    shots = [
        evidence(0, 0, seen={"Ada": seen(0, 30.0), "Bo": seen(90, 10.0)}),
        evidence(1, 10, seen={"Ada": seen(60, 20.0)}),
        evidence(2, 20, seen={"Bo": seen(80, 14.0), "Cy": seen(5, 8.0)}),
    ]
    made = report(shots, ("Ada", "Bo", "Cy", "Di"))
    assert made.characters["Ada"]["consistency"] == pytest.approx(angle(0, 60), abs=1e-4)
    assert made.characters["Bo"]["consistency"] == pytest.approx(angle(90, 80), abs=1e-4)
    assert made.film["character consistency"] == pytest.approx((angle(0, 60) + angle(90, 80)) / 2, abs=1e-4)
    assert made.film["character alignment"] == pytest.approx((30 + 10 + 20 + 14 + 8) / 5)
    assert made.characters["Cy"] == {"shots": 1, "consistency": None, "alignment": 8.0}
    assert made.characters["Di"] == {"shots": 0, "consistency": None, "alignment": None}
    assert made.film["characters skipped"] == 2
    assert made.notes == ("Seen in fewer than two shots and left out of the consistency: Cy, Di.",)
    assert made.pairs[0].characters == {"Ada": pytest.approx(angle(0, 60), abs=1e-4)}
    assert made.boxes[2] == tuple({"x": 1, "y": 2, "width": 3, "height": 4, "label": who} for who in ("Bo", "Cy"))


def test_the_order_of_shots_does_not_change_the_whole():
    angles, aligned = [0, 25, 70, 160], [10.0, 20.0, 30.0, 40.0]
    for order in itertools.permutations(range(4)):
        shots = [evidence(n, angles[k], whole=aligned[k], sentences=aligned[k] / 2) for n, k in enumerate(order)]
        made = report(shots)
        assert made.film["all-shots consistency"] == pytest.approx(
            sum(angle(a, b) for a, b in itertools.combinations(angles, 2)) / 6, abs=1e-4
        )
        assert made.film["all-shots alignment"] == pytest.approx(25)
        assert made.film["all-shots alignment, sentences"] == pytest.approx(12.5)


def test_copying_without_a_record_is_measured_against_earlier_shots():
    made = report([evidence(0, 0), evidence(1, 80), evidence(2, 10)])
    assert [shot.copy for shot in made.shots[:2]] == [None, None], "one earlier shot has nothing to be compared with"
    assert made.shots[2].copy == pytest.approx(angle(10, 0) - angle(10, 80), abs=1e-4)
    assert made.shots[2].copy_of == "earlier shots"
    told = report([evidence(0, 0), evidence(1, 80, shown=at(75), other=at(0))])
    assert told.shots[1].copy == pytest.approx(angle(80, 75) - angle(80, 0), abs=1e-4)
    assert told.shots[1].copy_of == "shown"


def test_a_shot_that_goes_on_is_no_copy_of_what_it_goes_on_from():
    made = report([evidence(0, 0), evidence(1, 80), replace(evidence(2, 80), begins="continue")])
    assert made.shots[2].copy is None
    assert made.film["copy score"] is None


def test_drift_and_motion_are_those_of_the_frames():
    frames = signs(10, 50, 10) + signs(10, 60, 20)
    frames[4] = FrameStats(0.01, 0, 0.75, 0.75, (50, 0, 0), 10)
    frames[10] = FrameStats(0.5, 0.5, 50, 50, (60, 0, 0), 20)
    made = report([evidence(0, 0), evidence(1, 1)], of=frames)
    assert made.shots[0].colour_drift == made.shots[1].contrast_drift == 0
    assert made.pairs[0].colour == pytest.approx(10)
    assert made.pairs[0].contrast == pytest.approx(100)
    assert made.film["colour drift, start to end"] == pytest.approx(10)
    assert made.shots[0].motion == pytest.approx((8 * 0.25 + 0.75) / 9 * 10)
    assert made.film["dynamic degree"] == pytest.approx((17 * 0.25 + 0.75) / 18 * 10), "a cut is no motion"
    assert made.shots[1].cut == pytest.approx(50)
    fading = [FrameStats(0, 0, 0, 0, (80 - t, 0, 0), 10 + t) for t in range(20)]
    drifted = report([ShotEvidence(Span(0, 20), "cut", (10,), torch.rand(1, 8, 8, 3), at(0))], of=fading)
    # First fifth: 80..77, last: 64..61; contrast 11.5 to 27.5.
    assert drifted.shots[0].colour_drift == pytest.approx(16)
    assert drifted.shots[0].contrast_drift == pytest.approx(100 * (27.5 / 11.5 - 1))


def test_a_shot_that_goes_on_has_no_cut():
    shots = [evidence(0, 0), evidence(1, 1)]
    assert report([shots[0], replace(shots[1], begins="continue")]).shots[1].cut is None


@pytest.mark.parametrize("count", [1, 2, 40])
def test_any_number_of_shots_is_drawn_and_told(count: int):
    made = report([evidence(number, number) for number in range(count)])
    assert plot_continuity(made).size == (1080, 720)
    assert continuity_table(made).count("\n") > count
