"""Identities of the method (docs/first-frame.md) that no other file here holds."""

from __future__ import annotations

import json
from itertools import permutations
from math import ceil

import comfy.utils
import pytest
import torch
from longreel.film.first_frame import COLLAGE_FRAMES, Reference, clean_frames, compose, target_modules, to_released_keys
from longreel.film.first_frame.lora import PARTS
from longreel.film.reel.takes import FrameGrid

SIZE = (320, 192)


def block(seed: int) -> Reference:
    """A picture of 40 x 30, all of it kept."""
    return Reference.from_image(torch.rand(30, 40, 3, generator=torch.Generator().manual_seed(seed)))


def test_the_first_frame_is_not_resized_by_cores_conditioning():
    picture = compose([block(1)], torch.rand(50, 90, 3), "auto", SIZE).picture
    assert picture.shape == (1, SIZE[1], SIZE[0], 3)
    resized = comfy.utils.common_upscale(picture.movedim(-1, 1), *SIZE, "bilinear", "center").movedim(1, -1)
    assert torch.equal(resized, picture)


@pytest.mark.parametrize("kind", ["paper (training)", "grid", "auto"])
def test_permuting_references_of_one_size_permutes_boxes_only(kind: str):
    cast, plate = [block(seed) for seed in range(3)], torch.rand(50, 90, 3)
    straight = compose(cast, plate, kind, SIZE)
    for order in permutations(range(3)):
        turned = compose([cast[index] for index in order], plate, kind, SIZE)
        assert turned.boxes == straight.boxes
        for place, index in enumerate(order):
            here, there = straight.boxes[index], turned.boxes[place]
            one = straight.picture[0, here.y : here.bottom, here.x : here.right]
            assert torch.equal(one, turned.picture[0, there.y : there.bottom, there.x : there.right])


def test_an_opaque_picture_is_its_own_full_frame():
    pixels = torch.rand(30, 40, 3)
    plain = Reference.from_image(pixels)
    assert plain == Reference.from_image(pixels, torch.ones(30, 40))
    assert plain == Reference.from_image(torch.cat((pixels, torch.ones(30, 40, 1)), dim=-1))
    assert (plain.crop_box().width, plain.crop_box().height) == (40, 30)


@pytest.mark.parametrize("filmed", [81, 85])
def test_what_is_left_of_a_clip(filmed: int):
    assert clean_frames(filmed) == filmed - COLLAGE_FRAMES


def test_the_collage_lies_in_two_latent_frames():
    """Latent 0 holds pixel 0, latent k the four pixels up to 4 k: so the cut lies inside latent 1."""
    clock = FrameGrid(fps=16, compression=4, block=1)
    latent = [clock.latent_frames(pixel + 1) - 1 for pixel in range(81)]
    assert latent == [ceil(pixel / 4) for pixel in range(81)]
    assert {latent[pixel] for pixel in range(COLLAGE_FRAMES)} == {0, 1}
    assert latent[COLLAGE_FRAMES] == 1


def test_the_released_files_have_the_size_of_our_key_layout():
    """1,236,150,882 bytes each: header of 1,203 tensors, rank 128 in bf16, and the trainer's two hashes."""
    wide = {"ffn.0": (5120, 13824), "ffn.2": (13824, 5120), "time_projection.1": (5120, 30720)}
    shapes = {}
    for module in target_modules(40):
        inner, outer = next((size for end, size in wide.items() if module.endswith(end)), (5120, 5120))
        shapes |= {
            f"diffusion_model.{module}.{part}": {"alpha": [], "lora_down.weight": [128, inner]}.get(part, [outer, 128])
            for part in PARTS
        }
    names = to_released_keys(shapes)
    header: dict[str, object] = {"__metadata__": {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}}
    end = 0
    for key, shape in sorted((names[key], shape) for key, shape in shapes.items()):
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    assert len(shapes) == 1203
    text = len(json.dumps(header, separators=(",", ":")))
    assert 8 + (text + 7) // 8 * 8 + end == 1_236_150_882
