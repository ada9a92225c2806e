"""A scaled-down Stable Video Diffusion of ComfyUI's real classes, and adapters that fit it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from longreel.film.instruction.adapters import AidAdapter
from longreel.film.instruction.settings import AdapterSettings
from longreel.host.svd.adapters import sites_of
from longreel.host.svd.model import SvdSize, make_svd

SIZE = SvdSize(32, (1, 2), (True, True), 1, 16, 24)
FRAMES, TOKENS = 4, 5


def random_weights(model: torch.nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one and no layer silent."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            weights[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            weights[name] = torch.randn(value.shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)
    return weights


@pytest.fixture(scope="session")
def svd():
    """The model, of 5 sites; clones share its weights."""
    model = make_svd(SIZE)
    unet = model.model.diffusion_model
    unet.load_state_dict(random_weights(unet))
    return model


@pytest.fixture(scope="session")
def settings(svd) -> AdapterSettings:
    return AdapterSettings(
        sites=sites_of(svd.model.diffusion_model), num_frames=FRAMES, context_dim=SIZE.context_dim, text_dim=24,
        vision_dim=20, tokens_per_frame=TOKENS, num_states=3, dq_heads=4, ff_mult=2, lt_head_width=8, cross_rank=2,
        width=64, height=64,
    )  # fmt: skip


@pytest.fixture
def make(settings):
    """make(seed, random=False, **changes): an adapter, fresh or with every weight random."""

    def made(seed: int = 3, random: bool = False, **changes) -> AidAdapter:
        adapter = AidAdapter(replace(settings, **changes), torch.nn)
        adapter.initialise(torch.Generator().manual_seed(seed))
        if random:
            adapter.load_state_dict(random_weights(adapter, seed))
        return adapter.eval().requires_grad_(False)

    return made
