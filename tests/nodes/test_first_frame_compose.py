"""The nodes of the cast, called as ComfyUI calls them: masks of core's nodes, the canvas' text, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_compositing import JoinImageWithAlpha
from comfy_extras.nodes_mask import ImageCompositeMasked
from longreel.film.first_frame import Reference
from longreel.film.pixels import MAX_PIXELS, PixelError
from longreel.nodes.first_frame_compose import LongreelFirstFrameComposer, LongreelReference
from longreel.nodes.first_frame_prompt import LongreelFirstFramePrompt, LongreelTrimTransition
from longreel.nodes.miniature import LongreelMiniaturePicture
from PIL import Image

import nodes as core_nodes

KEEP, REMOVE = "mask (1 = keep)", "mask (1 = remove)"


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("temp", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))


def picture(width: int = 60, height: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def middle(width: int = 60, height: int = 40) -> torch.Tensor:
    """A mask that is 1 in the middle."""
    mask = torch.zeros(1, height, width)
    mask[:, 10:30, 20:50] = 1.0
    return mask


def refer(image: torch.Tensor, mask: torch.Tensor | None = None, cut_out: str = KEEP, name: str = "mug") -> Any:
    return LongreelReference.execute(image, name, "", cut_out, mask)


def compose(
    references: list[Reference],
    plate: torch.Tensor | None = None,
    size: tuple[int, int] = (128, 64),
    layout: str = "auto",
    canvas: str = "",
    swap: bool = False,
    boxes: Any = None,
) -> Any:
    sockets = {f"reference_{number}": each for number, each in enumerate(references, start=1)}
    return LongreelFirstFrameComposer.execute(sockets, *size, layout, canvas, 3.0, swap, plate, boxes)


def thing(width: int = 60, height: int = 40, seed: int = 1, name: str = "mug") -> Reference:
    return refer(picture(width, height, seed), name=name).args[0]


# Mask polarity, against core's own nodes


def test_load_images_mask_marks_what_is_transparent(tmp_path: Path):
    alpha = (middle()[0].numpy() * 255).astype(np.uint8)
    rgb = (picture()[0].numpy() * 255).astype(np.uint8)
    Image.fromarray(np.dstack((rgb, alpha))).save(tmp_path / "input" / "cut.png")
    image, mask = core_nodes.LoadImage().load_image("cut.png")
    made, cut_out, kept = refer(image, mask, REMOVE).args
    assert torch.equal(kept, middle())
    assert (made.crop_box(0).x, made.crop_box(0).y, made.crop_box(0).width) == (20, 10, 30)
    assert cut_out.shape == (1, 30, 40, 3)  # 5 pixels around
    assert torch.equal(cut_out[0, 0], torch.ones(40, 3))
    # As published, the pixels of the thing are not touched.
    assert torch.allclose(cut_out[0, 5:25, 5:35], image[0, 10:30, 20:50], atol=1e-6)


def test_load_images_mask_of_an_opaque_picture_keeps_all(tmp_path: Path):
    Image.fromarray((picture()[0].numpy() * 255).astype(np.uint8)).save(tmp_path / "input" / "whole.png")
    image, mask = core_nodes.LoadImage().load_image("whole.png")
    assert mask.shape[-2:] == (64, 64)
    assert refer(image, mask, REMOVE).args[2].min() == 1


def test_foreground_mask_is_that_of_cores_compositing():
    """Remove Background and SAM3 Detect mark the foreground with 1, as Image Composite Masked expects it."""
    image, white = picture(), torch.ones(1, 40, 60, 3)
    pasted = ImageCompositeMasked.execute(white, image, 0, 0, False, middle()).args[0]
    cut_out = refer(image, middle(), KEEP).args[1]
    assert torch.allclose(cut_out, pasted[:, 5:35, 15:55], atol=1 / 255)


def test_alpha_of_cores_join():
    joined = JoinImageWithAlpha.execute(picture(), 1 - middle()).args[0]
    for cut_out in ("alpha", KEEP):
        assert torch.equal(refer(joined, None, cut_out).args[2], middle())
    assert refer(joined, None, "nothing").args[2].min() == 1


def test_wrong_way_round_is_warned_about():
    (warning,) = (said for said in refer(picture(), middle(), REMOVE).ui["text"] if "wrong way round" in said)
    assert warning.startswith('Reference "mug"')
    assert not any("wrong way round" in said for said in refer(picture(), middle(), KEEP).ui["text"])


# Composing


def test_outputs_are_in_the_order_of_the_sockets():
    cast = [thing(seed=1, name="one"), thing(seed=2, name="two")]
    straight = compose(cast, picture(64, 32), layout="grid")
    turned = compose(cast, picture(64, 32), layout="grid", canvas="2\n1")
    assert turned.args[3] == [straight.args[3][0][::-1]]
    assert torch.equal(turned.args[1], straight.args[1].flip(0))
    assert [place["name"] for place in json.loads(turned.args[4])["placements"]] == ["two", "one"]
    shown = turned.ui["longreel_canvas"][0]
    assert [each["number"] for each in shown["references"]] == [2, 1]


def test_boxes_typed_on_the_canvas_give_the_same_picture():
    cast, plate = [thing(seed=1), thing(30, 90, seed=2)], picture(64, 32)
    auto = compose(cast, plate)
    lines = [
        f"{number}: {box['x']} {box['y']} {box['width']} {box['height']}"
        for number, box in enumerate(auto.args[3][0], start=1)
    ]
    manual = compose(cast, plate, layout="manual", canvas="\n".join(("canvas 128 x 64", *lines)))
    assert torch.equal(manual.args[0], auto.args[0])
    assert manual.args[3] == auto.args[3]
    from_core = compose(cast, plate, layout="manual", boxes=auto.args[3])
    assert torch.equal(from_core.args[0], auto.args[0])


def test_swapped_halves():
    cast, plate = [thing()], picture(64, 32)
    straight, swapped = (compose(cast, plate, swap=swap).args for swap in (False, True))
    assert torch.equal(swapped[0], straight[0].roll(64, dims=2))


def test_portrait_splits_in_two_rows():
    made = compose([thing()], picture(64, 32), size=(64, 128))
    assert made.args[0].shape == (1, 128, 64, 3)
    assert made.args[2][0, :64].max() == 0
    assert any("Portrait" in said for said in made.ui["longreel_canvas"][0]["warnings"])


def test_five_references_and_a_plate_at_720p():
    cast = []
    for seed in range(5):
        mask = torch.zeros(1, 768, 1344)
        mask[:, 100 : 600 - 40 * seed, 200 + 50 * seed : 900] = 1.0
        cast.append(refer(picture(1344, 768, seed), mask, name=f"thing {seed}").args[0])
    plate = picture(1344, 768, 9)
    for layout in ("paper (training)", "auto"):
        made = compose(cast, plate, (1280, 720), layout)
        assert made.args[0].shape == (1, 720, 1280, 3)
        assert made.args[1].shape == (5, 720, 1280)
        assert all(mask.any() for mask in made.args[1])


# One sentence for each mistake


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: refer(picture(), torch.zeros(1, 40, 60)), 'Reference "mug" has an empty mask: mark the thing to keep'),
        (lambda: refer(picture(), torch.ones(1, 40, 60), REMOVE), "has an empty mask"),
        (lambda: refer(picture(), torch.ones(1, 20, 60)), "is 60 x 40 but its mask has the shape"),
        (lambda: refer(picture(), None, "alpha"), "has no alpha channel: connect a mask instead"),
        (lambda: refer(picture(), None, REMOVE), "has no mask that could say what to remove"),
        (lambda: refer(picture()[..., :1]), "must be one RGB or RGBA picture"),
        (lambda: refer(picture().repeat(2, 1, 1, 1)), "must be one RGB or RGBA picture"),
        (lambda: refer(torch.empty(1, 1, MAX_PIXELS + 1, 3)), "scale it down to at most 67 megapixels"),
        (lambda: compose([thing()] * 9, picture()), "takes 1 to 8 references, not 9"),
        (lambda: compose([], picture()), "takes 1 to 8 references, not 0"),
        (lambda: compose([thing()], picture(), size=(127, 64)), "127 x 64: both sides must be even"),
        (lambda: compose([thing()], picture()[..., :1]), "The plate must be one RGB picture"),
        (lambda: compose([thing()], layout="paper (test)"), "needs a background plate: connect one"),
        (
            lambda: compose([thing()], picture(), layout="manual", canvas="canvas 128 x 64\n1: 128 0 20 20"),
            'Reference 1 "mug" lies off the canvas: move its box into 128 x 64',
        ),
        (lambda: compose([thing()], picture(), layout="manual"), "no box for reference 1"),
        (
            lambda: compose([thing()], picture(), layout="manual", boxes=[[]]),
            "There are 1 references and 0 boxes: give one for each",
        ),
    ],
)
def test_bad_input(make: Any, message: str):
    with pytest.raises(PixelError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        make()
    assert str(caught.value).endswith((".", ")."))
    assert "\n" not in str(caught.value)


def test_canvas_text_is_checked_before_running():
    assert LongreelFirstFrameComposer.validate_inputs(canvas=None) is True
    assert LongreelFirstFrameComposer.validate_inputs(canvas="2\n1") is True
    assert "Line 1 of the canvas" in str(LongreelFirstFrameComposer.validate_inputs(canvas="here"))


# Prompt and trim


def test_prompt_names_every_reference_and_warns():
    sockets = {
        "reference_2": LongreelReference.execute(picture(), "robot", "a yellow robot", KEEP).args[0],
        "reference_1": LongreelReference.execute(picture(), "mug", "a white enamel mug", KEEP).args[0],
    }
    text, report = LongreelFirstFramePrompt.execute(
        "A hand lifts the red mug.", "A kitchen", "", "", "ad23r2 the camera view suddenly changes.", sockets
    ).args
    assert text == (
        "ad23r2 the camera view suddenly changes. A hand lifts the red mug. The mug is a white enamel mug. "
        "The robot is a yellow robot. A kitchen."
    )
    assert 'The caption calls "mug" red but its description says white' in report


def test_trim_reports_where_and_draws_it():
    first = picture(160, 90, 3)
    clip = torch.cat((first.repeat(7, 1, 1, 1), picture(160, 90, 4).repeat(30, 1, 1, 1)))
    frames, index, plot, report = LongreelTrimTransition.execute(clip, "auto", 24, first).args
    assert index == 7
    assert torch.equal(frames, clip[7:])
    assert "frame 7" in report
    without = LongreelTrimTransition.execute(clip, "fixed", 24).args
    assert without[1] == 4
    assert plot.shape == without[2].shape == (1, 240, 640, 3)
    assert not torch.equal(plot, without[2])
    # The shading ends where the shot begins: orange on its left, white on its right.
    row = plot[0, 40]
    orange = (row - torch.tensor([255, 227, 214]) / 255).abs().sum(-1) < 0.01
    assert int(orange.nonzero().max()) == pytest.approx(32 + 6.5 / 36 * 576, abs=4)


def test_miniature_pictures_can_be_cast():
    character, mask, plate = LongreelMiniaturePicture.execute("red", "ball", "crown", "beach").args
    assert character.shape == plate.shape == (1, 256, 256, 3)
    made, _, _ = refer(character, mask).args
    assert made.warnings == ()
    outside = mask == 0
    assert torch.allclose(character[outside], plate[outside], atol=0.02)
    assert not torch.allclose(character[~outside], plate[~outside], atol=0.2)
    (box,) = compose([made], plate, size=(64, 64)).args[3][0]
    assert box["height"] > 20
