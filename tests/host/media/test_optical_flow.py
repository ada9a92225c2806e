"""Flow by a network and by blocks: right vectors at every size."""

from __future__ import annotations

import pytest
import torch
from longreel.film.motion import MotionError, measure_flow
from longreel.host.media.optical_flow import flow_between, measure_motion
from longreel.host.media.source import footage_of


class Shift(torch.nn.Module):
    """Stands in for RAFT: says how far the brightest column moved, for every pixel, as a list of refinements."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, before, after):
        self.sizes.append(tuple(before.shape[-2:]))
        places = [frame[0].mean(dim=(0, 1)).argmax() for frame in (before, after)]
        flow = torch.zeros(1, 2, *before.shape[-2:])
        flow[:, 0] = float(places[1] - places[0])
        return [torch.full_like(flow, 99.0), flow]


class Patcher:
    load_device = torch.device("cpu")

    def __init__(self):
        self.model = Shift()


@pytest.fixture(autouse=True)
def no_loading(monkeypatch):
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda models: None)


def bar(height: int, width: int, *places: int) -> torch.Tensor:
    frames = torch.zeros(len(places), height, width, 3)
    for frame, place in zip(frames, places):
        frame[:, place : place + 3] = 1.0
    return frames


@pytest.mark.parametrize("size", [(128, 256), (60, 90), (131, 203)])
def test_vectors_are_right_at_sizes_that_are_no_multiple_of_eight(size):
    patcher = Patcher()
    flow = flow_between(bar(*size, 20, 30, 20), patcher)
    assert flow.shape == (2, 2, *size)
    assert all(side % 8 == 0 and side >= 128 for side in patcher.model.sizes[0])
    assert flow[0, 0].mean() == pytest.approx(10.0, abs=1.0)
    assert flow[1, 0].mean() == pytest.approx(-10.0, abs=1.0)
    assert (flow[:, 1] == 0).all()


def test_blocks_find_a_shift():
    picture = torch.rand(80, 96, 3, generator=torch.Generator().manual_seed(1))
    flow = flow_between(torch.stack([picture, picture.roll((2, 5), (0, 1))]))
    inner = flow[0, :, 16:-16, 16:-16]
    assert inner[0].median() == pytest.approx(5.0, abs=0.3)
    assert inner[1].median() == pytest.approx(2.0, abs=0.3)
    assert (flow_between(torch.stack([picture, picture])) == 0).all()


def test_progress_and_refusal():
    told = []
    flow_between(torch.zeros(4, 16, 16, 3), None, lambda done, pairs: told.append((done, pairs)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(MotionError, match="two frames"):
        flow_between(torch.zeros(1, 16, 16, 3))


def test_a_video_is_measured_as_it_streams_by():
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
    frames = torch.stack([picture.roll(3 * index, 1) for index in range(20)])
    flow = flow_between(frames)
    streamed = measure_motion(footage_of(frames, 8.0, None, None, None), predicted=flow)
    assert streamed == measure_flow(frames, flow, 8.0, predicted=flow)
    assert streamed.predicted.endpoint == 0
    for count, said in ((18, "18 pairs"), (20, "20 pairs")):
        with pytest.raises(MotionError, match=said):
            measure_motion(footage_of(frames, 8.0, None, None, None), predicted=torch.zeros(count, 2, 64, 64))
    with pytest.raises(MotionError, match="two frames"):
        measure_motion(footage_of(frames[:1], 8.0, None, None, None))
