"""More motion without an adapter: skip-layer and value-attention guidance, at guidance 1 too."""

from __future__ import annotations

import pytest
import torch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from longreel.film.motion import MotionError
from longreel.host.guidance import Window
from longreel.host.wan.weak_guidance import WeakGuidance, default_layers, guide_from_weak

from ...device import same
from ..joint_models import load, network_inputs, sample

ALWAYS = Window(0.0, 1.0)


@pytest.fixture(scope="module")
def model():
    return load()


def weak(model, **settings):
    return guide_from_weak(model, WeakGuidance(**{"layers": (1,), "window": ALWAYS, "rescale": 0.0} | settings))


def test_scale_zero_and_an_empty_window_are_the_model(model):
    same(sample(weak(model, scale=0.0)), sample(model))
    same(sample(weak(model, window=Window(0.0, 0.0))), sample(model))


@pytest.mark.parametrize("cfg", [1.0, 6.0])
def test_skipping_is_cores_skip_layer_guidance(model, cfg):
    theirs = SkipLayerGuidanceDiT.execute(model, 1.0, 0.0, 1.0, "1", "").args[0]
    assert torch.equal(sample(weak(model), cfg=cfg), sample(theirs, cfg=cfg))


@pytest.mark.parametrize("kind", ["skip", "values"])
def test_cost_at_guidance_one(model, kind):
    looked, seen = network_inputs(weak(model, kind=kind, window=Window(0.0, 0.5)))
    result = sample(looked, cfg=1.0)
    assert [len(x) for x, _ in seen] == [1, 1, 1, 1, 1, 1]
    assert not torch.equal(result, sample(model, cfg=1.0))


def test_values_replace_self_attention_alone(model):
    """A model whose self-attention gives values, as its weights may, has a weak pass equal to itself."""
    calls = []

    def values_first(function, q, k, v, heads, **named):
        calls.append(q.shape[1] == k.shape[1])
        return v if q.shape[1] == k.shape[1] else function(q, k, v, heads, **named)

    valued = model.clone()
    valued.model_options["transformer_options"] = {"optimized_attention_override": values_first}
    same(sample(weak(valued, kind="values", layers=(0, 1)), cfg=1.0), sample(valued, cfg=1.0))
    assert set(calls) == {True, False}
    assert not torch.equal(sample(weak(model, kind="values")), sample(model))


def test_rescale(model):
    spreads = []

    def look(args):
        spreads.append([float(args[name].std()) for name in ("denoised", "cond_denoised")])
        return args["denoised"]

    scaled = weak(model, scale=4.0, rescale=1.0)
    scaled.set_model_sampler_post_cfg_function(look)
    sample(scaled)
    assert all(result == pytest.approx(wanted, rel=1e-4) for result, wanted in spreads)


def test_both_kinds_chain_and_the_later_of_one_kind_acts(model):
    both = weak(weak(model), kind="values")
    assert not torch.equal(sample(both), sample(weak(model)))
    assert torch.equal(sample(weak(weak(model, scale=9.0))), sample(weak(model)))


def test_layers_by_depth_and_refusals(model):
    assert [default_layers(depth) for depth in (40, 30, 8)] == [(10,), (8,), (2,)]
    with pytest.raises(MotionError, match="numbered 0 to 1"):
        weak(model, layers=(5,))


def test_another_model_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.model, "diffusion_model", torch.nn.Identity())
    with pytest.raises(MotionError, match="not a Wan model"):
        weak(model)
