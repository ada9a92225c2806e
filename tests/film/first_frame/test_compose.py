"""Pixels: the published recipe bit for bit, masks, and one sentence for bad input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from longreel.film.first_frame import Box, Reference, compose
from longreel.film.pixels import PixelError
from PIL import Image

SIZE = (1280, 720)
# Opaque parts (left, top, width, height) of cut-outs on 1344 x 768: with 5 px around, the published sizes.
CASES = [
    [(70, 200, 1194, 163)],
    [(300, 300, 126, 128)],
    [(0, 100, 490, 561)],  # clamped on the left: 5 px on one side only
    [(200, 300, 741, 272)],
    [(100, 100, 586, 508), (60, 40, 719, 667)],
    [(100 + 9 * k, 30, 400, 700) for k in range(5)],  # shrunk more than four times: Pillow then works in two stages
]


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """A smooth picture with detail, uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).resize((width, height))
    return np.asarray(coarse) // 2 + rng.integers(0, 128, (height, width, 3), dtype=np.uint8)


def cut_out(box: tuple[int, int, int, int], seed: int, frame: tuple[int, int] = (1344, 768)) -> np.ndarray:
    """An ellipse with a soft edge that fills the box, on a transparent frame, uint8 RGBA."""
    left, top, width, height = box
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5)
    alpha = np.zeros((frame[1], frame[0]), np.uint8)
    soft = np.clip((0.52 - radius) * 900, 0, 255)
    soft[height // 2, :] = soft[:, width // 2] = 255  # reaches all four sides
    alpha[top : top + height, left : left + width] = soft
    return np.dstack((noise(*frame, seed), alpha))


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def recipe(cut_outs: Sequence[np.ndarray], plate: np.ndarray, *, stretch: bool) -> np.ndarray:
    """The published recipe, spelled out with Pillow's own thumbnail (docs/methods/ffgo.md, canvas)."""
    width, height = SIZE
    half, slot = width // 2, height // len(cut_outs)
    canvas = Image.new("RGB", SIZE, (255, 255, 255))
    background = Image.fromarray(plate)
    if stretch:
        background = background.resize(SIZE)
    background.thumbnail((half, height), Image.Resampling.LANCZOS)
    canvas.paste(background, (half + (half - background.width) // 2, (height - background.height) // 2))
    for index, pixels in enumerate(cut_outs):
        picture = Image.fromarray(pixels)
        left, top, right, bottom = picture.getchannel("A").getbbox()
        picture = picture.crop(
            (max(left - 5, 0), max(top - 5, 0), min(right + 5, picture.width), min(bottom + 5, picture.height))
        )
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.split()[3])
        white.thumbnail((half, slot), Image.Resampling.LANCZOS)
        canvas.paste(white, ((half - white.width) // 2, index * slot + (slot - white.height) // 2))
    return np.asarray(canvas)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_paper_layouts_are_bit_exact(case: list[tuple[int, int, int, int]]):
    cut_outs = [cut_out(box, seed) for seed, box in enumerate(case)]
    references = [Reference.from_image(tensor(pixels)) for pixels in cut_outs]
    for layout, frame in (("paper (training)", (1344, 768)), ("paper (test)", (1000, 900))):
        plate = noise(*frame, seed=99)
        made = compose(references, tensor(plate), layout, SIZE)
        wanted = tensor(recipe(cut_outs, plate, stretch=layout == "paper (training)"))
        assert made.picture.shape == (1, 720, 1280, 3)
        assert torch.equal(made.picture[0], wanted)


def test_boxes_of_published_cut_outs():
    references = [Reference.from_image(tensor(cut_out(box, seed))) for seed, box in enumerate(CASES[4])]
    made = compose(references, tensor(noise(1344, 768, 5)), "paper (training)", SIZE)
    assert made.boxes == (Box(113, 0, 414, 360), Box(126, 360, 388, 360))


@pytest.fixture(scope="module")
def small() -> tuple[list[Reference], torch.Tensor]:
    """Three small references and a plate."""
    boxes = [(10, 10, 60, 40), (30, 5, 30, 70), (8, 20, 80, 44)]
    references = [
        Reference.from_image(tensor(cut_out(box, seed, (100, 80))), name=name)
        for seed, (box, name) in enumerate(zip(boxes, ("cat", "hat", "bat")))
    ]
    return references, tensor(noise(200, 120, 7))


@pytest.mark.parametrize("kind", ["paper (training)", "paper (test)", "grid", "auto"])
def test_white_outside_the_boxes_and_masks_inside(small: tuple[list[Reference], torch.Tensor], kind: str):
    references, plate = small
    made = compose(references, plate, kind, (320, 192))
    inside = torch.zeros(192, 320, dtype=torch.bool)
    for index, box in enumerate((*made.boxes, made.layout.plate)):
        inside[box.y : box.bottom, box.x : box.right] = True
        if index < len(references):
            mask = made.masks[index].clone()
            assert mask[box.y : box.bottom, box.x : box.right].max() == 1
            mask[box.y : box.bottom, box.x : box.right] = 0
            assert mask.max() == 0
    assert (made.picture[0][~inside] == 1).all()
    assert made.picture.min() >= 0
    assert made.masks.min() >= 0
    assert made.masks.max() <= 1
    assert made.plate_mask.sum() == made.layout.plate.width * made.layout.plate.height


def test_padding_a_cut_out_changes_nothing(small: tuple[list[Reference], torch.Tensor]):
    pixels = cut_out((10, 10, 60, 40), 0, (100, 80))
    padded = np.pad(pixels, ((30, 7), (11, 50), (0, 0)))
    both = [compose([Reference.from_image(tensor(p))], small[1], "auto", (320, 192)).picture for p in (pixels, padded)]
    assert torch.equal(*both)


def test_boxes_given_back_draw_the_same_picture(small: tuple[list[Reference], torch.Tensor]):
    references, plate = small
    made = compose(references, plate, "auto", (320, 192))
    again = compose(references, plate, "manual", (320, 192), boxes=made.boxes)
    assert torch.equal(again.picture, made.picture)


def test_a_planned_layout_is_drawn_as_it_is(small: tuple[list[Reference], torch.Tensor]):
    references, plate = small
    made = compose(references, plate, "auto", (320, 192))
    swapped = compose(references, plate, made.layout.swapped(), (320, 192))
    assert torch.equal(swapped.picture, made.picture.roll(160, dims=2))


def test_later_references_cover_earlier_ones_and_the_plate(small: tuple[list[Reference], torch.Tensor]):
    references, plate = small
    boxes = [Box(100, 50, 100, 100)] * 2
    made = compose(references[:2], plate, "manual", (320, 192), boxes=boxes)
    covered = made.boxes[1]
    assert made.masks[0, covered.y : covered.bottom, covered.x : covered.right].max() == 0
    assert made.plate_mask[0, covered.y : covered.bottom, covered.x : covered.right].max() == 0


def test_mask_polarity():
    """1 = keep; LoadImage's MASK is the other way round."""
    picture = torch.rand(20, 30, 3)
    mask = torch.zeros(20, 30)
    mask[4:9, 10:20] = 1
    kept = Reference.from_image(picture, mask)
    assert kept.crop_box(pad=0) == Box(10, 4, 10, 5)
    assert Reference.from_image(picture, 1 - mask, mask_marks="background") == kept
    assert Reference.from_image(picture[None], mask[None]) == kept
    assert Reference.from_image(torch.cat((picture, mask[..., None]), -1)) == kept
    assert Reference.from_image(picture, torch.ones(20, 30)).crop_box() == Box(0, 0, 30, 20)


def test_half_transparent_pixels_are_mixed_with_white_before_resizing():
    picture = torch.cat((torch.zeros(8, 8, 3), torch.full((8, 8, 1), 64 / 255)), -1)
    made = compose([Reference.from_image(picture)], None, "grid", (64, 64))
    box = made.boxes[0]
    assert made.picture[0, box.y, box.x].mul(255).round().tolist() == [191, 191, 191]


def test_reference_round_trip(small: tuple[list[Reference], torch.Tensor]):
    for reference in small[0]:
        assert Reference.from_dict(reference.to_dict()) == reference
    for data in ({}, {"name": "", "description": "", "png": "!"}, {"name": "", "description": "", "png": "aGVsbG8="}):
        with pytest.raises(PixelError, match="not a saved reference"):
            Reference.from_dict(data)


def test_reference_warnings():
    mask = torch.zeros(100, 100)
    mask[50:54, 50:54] = 1
    (warning,) = Reference.from_image(torch.rand(100, 100, 3), mask, "pin").warnings
    assert warning == 'Reference "pin" fills less than 1 % of its picture: use a closer one.'
    mask[0:54, 50:90] = 1
    (warning,) = Reference.from_image(torch.rand(100, 100, 3), mask).warnings
    assert "probably cut off" in warning
    assert Reference.from_image(torch.rand(9, 9, 3)).warnings == ()


PICTURE = torch.rand(8, 8, 3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Reference.from_image(PICTURE, torch.zeros(8, 8), "mug"), 'Reference "mug" has an empty mask'),
        (lambda: Reference.from_image(PICTURE[..., :1]), "must be one RGB or RGBA picture"),
        (lambda: Reference.from_image(PICTURE.expand(2, 8, 8, 3)), "must be one RGB or RGBA picture"),
        (lambda: Reference.from_image(PICTURE, torch.ones(4, 4)), r"8 x 8 but its mask has the shape \[4, 4\]"),
        (lambda: Reference.from_image(torch.zeros(1).expand(9000, 9000, 3)), "scale it down to at most 67 megapixels"),
        (lambda: Reference.from_image(torch.zeros(0, 8, 3)), "has no pixels"),
        (lambda: make_with(plate=PICTURE[..., :1]), "plate must be one RGB picture"),
        (lambda: make_with(plate=torch.zeros(1).expand(9000, 9000, 3)), "The plate is 9000 x 9000 pixels"),
        (lambda: make_with(plate=None, layout="paper (test)"), "needs a background plate"),
        (lambda: make_with(size=(65, 64)), "both sides must be even"),
        (lambda: make_with(count=9), "1 to 8 references, not 9"),
        (lambda: make_with(layout="manual", boxes=[Box(64, 0, 8, 8)]), "Reference 1 lies off the canvas"),
        (lambda: make_with(layout=planned(), size=(80, 64)), "layout is for 64 x 64, not 80 x 64"),
        (lambda: make_with(layout=planned(), count=2), "layout places 1 references, not 2"),
        (lambda: make_with(layout=planned(), plate=None), "layout needs a background plate"),
    ],
)
def test_bad_input_is_one_clear_sentence(make, sentence: str):
    with pytest.raises(PixelError, match=sentence) as caught:
        make()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def make_with(*, plate=PICTURE, layout="auto", size=(64, 64), count=1, boxes=()):
    return compose([Reference.from_image(PICTURE)] * count, plate, layout, size, boxes=boxes)


def planned():
    return make_with().layout
