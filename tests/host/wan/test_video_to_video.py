"""Causal Sampler with a clip in its latent: changed with a schedule that begins below full noise, else refused."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from longreel.host.wan.noise import SeededNoise
from longreel.host.wan.rollout import RolloutError, RolloutSampler

FULL = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
PART = torch.tensor([0.8333333, 0.625, 0.0])


@pytest.fixture(scope="module")
def guider(tiny_wan: Any, golden: Any) -> comfy.samplers.CFGGuider:
    made = comfy.samplers.CFGGuider(tiny_wan)
    made.set_conds([[golden.tensors["prompt.p0"], {}]], [[golden.tensors["prompt.p1"], {}]])
    made.set_cfg(1.0)
    return made


def normal(seed: int, frames: int = 6) -> torch.Tensor:
    return torch.randn(1, 16, frames, 4, 6, generator=torch.Generator().manual_seed(seed))


def film(guider: Any, latent: torch.Tensor, sigmas: torch.Tensor, loop: Any = "renoise") -> torch.Tensor:
    made: torch.Tensor = guider.sample(normal(0), latent, RolloutSampler(loop=loop), sigmas, seed=9)
    return made


@pytest.mark.parametrize("loop", ["renoise", "euler"])
def test_two_clips_are_two_films_and_less_noise_keeps_more(guider: Any, loop: str):
    red, blue = normal(1), normal(2)
    distances = []
    for sigmas in (PART, PART[1:]):
        of_red, of_blue = film(guider, red, sigmas, loop), film(guider, blue, sigmas, loop)
        assert (of_red - of_blue).abs().mean() > 0.05
        assert (of_red - red).abs().mean() < (of_red - blue).abs().mean()
        distances.append(float((of_red - red).abs().mean()))
    assert distances[1] < distances[0]
    assert torch.equal(film(guider, red, PART, loop), film(guider, red, PART, loop))


def test_each_block_begins_with_its_own_frames_of_the_clip_under_noise(guider: Any, monkeypatch: pytest.MonkeyPatch):
    clip, seen = normal(1), []
    plain = comfy.samplers.CFGGuider.predict_noise
    monkeypatch.setattr(
        comfy.samplers.CFGGuider,
        "predict_noise",
        lambda self, x, timestep, *rest, **more: (
            seen.append((float(timestep), x.clone())) or plain(self, x, timestep, *rest, **more)
        ),
    )
    film(guider, clip, PART)
    first = [x for sigma, x in seen if sigma == pytest.approx(float(PART[0]))]
    inner = guider.model_patcher.model.process_latent_in(clip)
    noise = SeededNoise(9, given=normal(0))
    for block, x in enumerate(first):
        frames = slice(3 * block, 3 * block + 3)
        expected = PART[0] * noise(block, 0, (1, 16, 3, 4, 6)) + (1 - PART[0]) * inner[:, :, frames]
        assert (x - expected).abs().max() < 1e-5
    assert len(first) == 2


def test_what_the_schedule_would_ignore_is_refused_before_a_pass(guider: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", lambda *_, **__: pytest.fail("it filmed"))
    with pytest.raises(RolloutError, match="nothing is left at the full noise"):
        film(guider, normal(1), FULL)
    with pytest.raises(RolloutError, match=r"begins at 0\.833 of the noise"):
        film(guider, torch.zeros(1, 16, 6, 4, 6), PART)
    two = torch.zeros(2, 16, 6, 4, 6)
    with pytest.raises(RolloutError, match="set its batch size to 1"):
        guider.sample(two, two, RolloutSampler(), FULL, seed=9)
