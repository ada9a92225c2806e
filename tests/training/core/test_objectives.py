"""Flow matching and EDM: their arithmetic against closed forms and against ComfyUI's sampling, and the one loop."""

from __future__ import annotations

import comfy.model_sampling
import pytest
import torch
from longreel.training.core.objectives.denoiser import levels_of, stratified
from longreel.training.core.objectives.edm import EDM
from longreel.training.core.objectives.flow_matching import FlowMatching, SigmaRange
from torch import nn


class Net(nn.Module):
    """A model with one weight that notes what it is fed."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.inner = nn.Linear(1, 1, dtype=dtype)
        self.fed: list[torch.dtype] = []

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        self.fed.append(x.dtype)
        return self.inner(x[..., None])[..., 0]


class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION):
    pass


def latents(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def edm(**options: float) -> EDM:
    return EDM(Net(), bf16=False, like="inner.weight", **options)


SIGMA = torch.tensor([0.02, 1.3, 700.0])


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_is_comfyuis(sigma_data: float):
    own, theirs = edm(sigma_data=sigma_data), Sampling()
    theirs.set_parameters(0.002, 700.0, sigma_data)
    x, output = latents(), latents(seed=1)
    torch.testing.assert_close(own.scaled_input(x, SIGMA), theirs.calculate_input(SIGMA, x))
    torch.testing.assert_close(own.denoised(x, SIGMA, output), theirs.calculate_denoised(SIGMA, output, x))
    torch.testing.assert_close(own.timestep(SIGMA), theirs.timestep(SIGMA))
    noise = latents(seed=2)
    torch.testing.assert_close(own.add_noise(x, SIGMA, noise), theirs.noise_scaling(SIGMA, noise.clone(), x))


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_learns_the_clean_latents_with_unit_weight(sigma_data: float):
    own, clean, noise = edm(sigma_data=sigma_data), latents(), latents(seed=1)
    sigma = torch.tensor([0.3, 1.3, 8.0])
    x = own.add_noise(clean, sigma, noise)
    target = own.target(clean, noise, sigma)
    torch.testing.assert_close(own.denoised(x, sigma, target), clean, atol=1e-4, rtol=1e-4)
    output = latents(seed=3)
    level = levels_of(sigma, x)
    weight = (level**2 + sigma_data**2) / (level * sigma_data) ** 2
    errors = weight * (own.denoised(x, sigma, output) - clean).square()
    torch.testing.assert_close(own.loss(output, clean, noise, sigma), errors, atol=1e-3, rtol=1e-3)
    # Input, output and target of unit variance, at every level: what preconditioning is for.
    many = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(4)) * sigma_data
    other = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(5))
    for level_of_all in (0.05, 1.0, 50.0):
        levels = torch.full((20_000,), level_of_all)
        assert own.scaled_input(own.add_noise(many, levels, other), levels).std() == pytest.approx(1, abs=0.02)
        assert own.target(many, other, levels).std() == pytest.approx(1, abs=0.02)


def test_edm_draws_log_normal_levels_and_karras_steps():
    own = edm()
    logs = own.quantile(stratified(20_000)).log()
    assert logs.mean() == pytest.approx(0.7, abs=0.01)
    assert logs.std() == pytest.approx(1.6, abs=0.02)
    assert own.quantile(torch.tensor([0.0, 1.0])).isfinite().all()
    levels = own.sigmas(5, 0.002, 80.0)
    assert len(levels) == 6
    assert levels[0] == pytest.approx(80)
    assert levels[-2:] == [pytest.approx(0.002), 0.0]
    assert levels == sorted(levels, reverse=True)


def test_sampling_ends_at_what_a_perfect_model_predicts():
    clean, noise = latents(2), latents(2, seed=1)
    own, flow = edm(), FlowMatching(Net(), bf16=False, like="inner.weight")
    levels = own.sigmas(6, high=80.0)
    for again in (None, lambda: latents(2, seed=2)):
        found = own.denoise(
            clean + 80 * noise,
            levels,
            lambda x, sigma: own.target(clean, (x - clean) / levels_of(sigma, x), sigma),
            again,
        )
        torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
        steps = SigmaRange().quantile(torch.linspace(1, 0, 5)).tolist()
        found = flow.denoise(noise, steps, lambda x, sigma: (x - clean) / levels_of(sigma, x), again)
        torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)
    x = flow.add_noise(clean, torch.tensor([0.3, 0.8]), noise)
    torch.testing.assert_close(flow.guess(x, torch.tensor([0.3, 0.8]), noise - clean), clean)


def test_what_is_given_is_put_back_after_every_step():
    flow, shown = FlowMatching(Net(), bf16=False, like="inner.weight"), []

    def given(x: torch.Tensor) -> torch.Tensor:
        shown.append(x)
        return x.clone().fill_(7.0)

    found = flow.denoise(latents(), [1.0, 0.5, 0.0], lambda x, sigma: x, given=given)
    assert len(shown) == 2
    assert found.eq(7).all()


@pytest.mark.parametrize(
    ("base", "bf16", "fed"),
    [
        (torch.float32, False, torch.float32),
        (torch.float32, True, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_a_model_is_fed_what_it_computes_in_and_answers_in_float32(base: torch.dtype, bf16: bool, fed: torch.dtype):
    net = Net(base)
    flow = FlowMatching(net, bf16=bf16, like="inner.weight")
    assert flow.network(latents(), torch.ones(3), torch.zeros(3, 1, 1)).dtype == torch.float32
    assert net.fed == [fed]
    assert flow.autocast == (bf16 and base == torch.float32)


def test_stratified_draws_have_one_in_each_part():
    drawn = stratified(8)
    assert (drawn * 8).floor().sort().values.tolist() == list(range(8))
