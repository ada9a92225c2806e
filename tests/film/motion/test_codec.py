"""Flow as pictures, and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.motion import ENCODINGS, FlowCodec, MotionError, check_flow, pad_flow, resize_flow

EVERY = pytest.mark.parametrize("encoding", ENCODINGS)


def of(u: float, v: float, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, height, width)


@pytest.mark.parametrize(("encoding", "colour"), [("hsv_black", 0.0), ("wheel_white", 1.0)])
def test_what_stands_still_is_black_or_white(encoding, colour):
    codec = FlowCodec(encoding)
    assert (codec.encode(of(0.0, 0.0)) == colour).all()
    assert torch.equal(codec.encode(of(0.0, 0.0)), codec.still(48, 64))
    assert (codec.decode(codec.still(48, 64)) == 0).all()


@EVERY
@given(length=st.floats(0.0, 0.999), angle=st.floats(-3.14, 3.14), height=st.integers(2, 700))
def test_round_trip(encoding, length, angle, height):
    codec = FlowCodec(encoding)
    reach = length * codec.limit(height, 5)
    flow = of(reach * math.cos(angle), reach * math.sin(angle), height, 5)
    assert (codec.decode(codec.encode(flow)) - flow).abs().max() < 2e-4 * max(1.0, reach / 20)


@EVERY
def test_round_trip_of_a_field_is_within_a_ten_thousandth_of_a_pixel(encoding):
    flow = torch.randn(3, 2, 65, 97, generator=torch.Generator().manual_seed(1)) * 4
    flow[0, 1] = 0.0
    flow[1, 0] = 0.0
    codec = FlowCodec(encoding)
    assert (codec.decode(codec.encode(flow)) - flow).abs().max() < 1e-4


@EVERY
def test_the_picture_does_not_depend_on_the_resolution(encoding):
    codec = FlowCodec(encoding)
    small, large = codec.encode(of(3.0, -2.0, 32, 48)), codec.encode(of(7.5, -5.0, 80, 120))
    assert torch.allclose(small[0, 0, 0], large[0, 0, 0], atol=1e-6)


@EVERY
def test_saturates_at_sigma_times_the_diagonal(encoding):
    codec = FlowCodec(encoding)
    limit = codec.limit(48, 64)
    assert limit == pytest.approx(0.15 * 80)
    at, beyond = codec.encode(of(limit, 0.0)), codec.encode(of(3 * limit, 0.0))
    assert torch.equal(at, beyond)
    assert not torch.equal(codec.encode(of(0.99 * limit, 0.0)), at)
    assert codec.decode(beyond)[0, 0, 0, 0] == pytest.approx(limit, abs=1e-3)


def test_hues_of_the_four_directions():
    codec = FlowCodec("hsv_black")
    limit = codec.limit(48, 64)
    colours = [codec.encode(of(u * limit, v * limit))[0, 0, 0] for u, v in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    cyan, red, violet, green = colours
    assert torch.allclose(cyan, torch.tensor([0.0, 1.0, 1.0]), atol=1e-5)
    assert torch.allclose(red, torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert torch.allclose(violet, torch.tensor([0.5, 0.0, 1.0]), atol=1e-5)
    assert torch.allclose(green, torch.tensor([0.5, 1.0, 0.0]), atol=1e-5)


def test_the_wheel_is_torchvisions():
    from torchvision.utils import _normalized_flow_to_image

    codec = FlowCodec("wheel_white")
    flow = torch.randn(2, 2, 40, 56, generator=torch.Generator().manual_seed(2)) * 3
    limit = codec.limit(40, 56)
    clipped = flow / torch.linalg.vector_norm(flow, dim=1, keepdim=True).clamp_min(limit)
    theirs = _normalized_flow_to_image(clipped).movedim(1, -1).float() / 255
    # Theirs rounds its wheel and its result down to whole bytes, and wraps around where a channel is below 0.
    short = torch.linalg.vector_norm(clipped, dim=1) < 0.999
    assert (codec.encode(flow) - theirs).abs()[short].max() <= 2.01 / 255
    assert short.float().mean() > 0.8


@EVERY
@given(red=st.floats(0, 1), green=st.floats(0, 1), blue=st.floats(0, 1))
def test_any_colour_decodes_to_finite_flow_within_the_limit(encoding, red, green, blue):
    codec = FlowCodec(encoding)
    flow = codec.decode(torch.tensor([red, green, blue]).expand(1, 3, 3, 3))
    check_flow(flow)
    assert torch.linalg.vector_norm(flow, dim=1).max() <= codec.limit(3, 3) * 1.001


def test_resizing_scales_the_vectors():
    resized = resize_flow(of(4.0, 3.0, 40, 60), (45, 30))
    assert resized.shape == (1, 2, 45, 30)
    assert torch.allclose(resized[0, :, 7, 7], torch.tensor([2.0, 3.375]))
    assert resize_flow(of(1.0, 1.0), (48, 64)).shape[-2:] == (48, 64)


def test_padding():
    flow = torch.randn(3, 2, 4, 4)
    assert torch.equal(pad_flow(flow)[1:], flow)
    assert (pad_flow(flow)[0] == 0).all()
    assert torch.equal(pad_flow(flow, "repeat_first")[0], flow[0])


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (torch.zeros(2, 3, 4, 4), "Flow is"),
        (torch.full((1, 2, 4, 4), math.nan), "NaN"),
        (torch.zeros(1, 2, 4, 6), "6x4 and the video 4x4"),
    ],
)
def test_bad_flow_is_refused_in_one_sentence(flow, said):
    with pytest.raises(MotionError, match=said):
        check_flow(flow, (4, 4))


def test_bad_settings_are_refused():
    with pytest.raises(MotionError, match="encoding"):
        FlowCodec("rgb")
    with pytest.raises(MotionError, match="above 0"):
        FlowCodec(sigma=0.0)
    with pytest.raises(MotionError, match="Pictures of flow"):
        FlowCodec().decode(torch.zeros(3, 4, 4))
