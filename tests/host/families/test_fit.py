"""Pictures cut to the shape of a film: all that core can cut, and a sentence for the others."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from comfy.utils import common_upscale
from longreel.film.pixels import PixelError, check_cover
from longreel.host.families.family import fit
from longreel.host.files.pictures import cover

SHAPES = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (1, 700), (700, 1), (2, 700), (3, 40), (64, 48)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("wanted", [(32, 16), (16, 32), (16, 16)])
def test_thin_pictures_are_refused_where_core_has_nothing_left(wanted: tuple[int, int], size: tuple[int, int]):
    picture = torch.zeros(1, size[1], size[0], 3)
    try:
        common_upscale(picture.movedim(-1, 1), *wanted, "bicubic", "center")
    except RuntimeError:
        for refuse in (
            partial(check_cover, size, wanted),
            partial(fit, picture, *wanted),
            partial(cover, picture, *wanted),
        ):
            with pytest.raises(PixelError, match="too thin for a film"):
                refuse()
    else:
        check_cover(size, wanted)
        assert fit(picture, *wanted).shape == (1, wanted[1], wanted[0], 3)
