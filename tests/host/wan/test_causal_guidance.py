"""A causal film with guidance from a weak model, and without a joint latent."""

from __future__ import annotations

from dataclasses import replace

import comfy.patcher_extension
import pytest
import torch
from longreel.film.motion import AdapterInfo
from longreel.host.adapters.motion import attach, zero_adapter
from longreel.host.guidance import Window
from longreel.host.wan.causal_models import UnsupportedModelError
from longreel.host.wan.rollout import Prompt, roll_out
from longreel.host.wan.weak_guidance import WeakGuidance, guide_from_weak

from ...device import same

SIGMAS = torch.tensor([1.0, 0.8, 0.0])


@pytest.fixture(scope="module")
def conds(golden):
    return [[golden.tensors["prompt.p0"], {}]]


def film(model, conds, blocks):
    shape = (1, model.model.latent_format.latent_channels, 3 * blocks, 4, 6)
    return roll_out(model, [Prompt(0, conds)], shape, SIGMAS, seed=3)


@pytest.mark.parametrize("kind", ["skip", "values"])
def test_guidance_from_a_weak_model_works_block_by_block(tiny_wan, conds, kind):
    """One evaluation more a denoising step, none in clean passes; the memory stays the strong passes'."""
    layers = (1,) if len(tiny_wan.model.diffusion_model.blocks) > 1 else (0,)
    guidance = WeakGuidance(kind, layers, 1.0, Window(0.0, 1.0), 0.0)
    plain = film(tiny_wan, conds, 2)
    none = film(guide_from_weak(tiny_wan, replace(guidance, window=Window(0.0, 0.0))), conds, 2)
    same(none.latents, plain.latents)
    passes = []
    watched = guide_from_weak(tiny_wan, guidance)

    def count(executor, *args, **kwargs):
        passes.append(1)
        return executor(*args, **kwargs)

    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "count", count)
    guided = film(watched, conds, 2)
    assert len(passes) == 2 * (2 * (len(SIGMAS) - 1) + 1)
    assert torch.isfinite(guided.latents).all()
    assert not torch.equal(guided.latents, plain.latents)
    again = film(watched, conds, 2)
    assert torch.equal(again.latents, guided.latents)


def test_guidance_from_a_weak_model_leaves_the_memory_to_the_strong_passes(tiny_wan, conds):
    """Of a scale too small to change a latent nothing remains, although the weak passes ran and wrote."""
    layer = len(tiny_wan.model.diffusion_model.blocks) - 1
    guidance = WeakGuidance("skip", (layer,), 1e-30, Window(0.0, 1.0), 0.0)
    assert torch.equal(film(guide_from_weak(tiny_wan, guidance), conds, 3).latents, film(tiny_wan, conds, 3).latents)


def test_a_joint_latent_is_refused(tiny_wan, conds):
    dit = tiny_wan.model.diffusion_model
    info = AdapterInfo("tiny", tiny_wan.model.latent_format.latent_channels, dit.dim)
    with pytest.raises(UnsupportedModelError, match="remove Apply Motion Adapter"):
        film(attach(tiny_wan, zero_adapter(tiny_wan, info)), conds, 1)
