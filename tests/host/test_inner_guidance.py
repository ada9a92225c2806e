"""Inner guidance on a tiny Wan model."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple
from longreel.film.motion import FlowGate, GateLevel, MotionError
from longreel.host.adapters.motion import attach, zero_adapter
from longreel.host.guidance import Window
from longreel.host.inner_guidance import MotionGuidance, guide, inner_guider

from .joint_models import SIZE, conds, info, load, network_inputs, random_adapter, sample

ALWAYS = Window(0.0, 1.0)


@pytest.fixture(scope="module")
def base():
    return load()


@pytest.fixture(scope="module")
def joint(base):
    return attach(base, random_adapter(base))


def counts(model, guidance, **options) -> list[int]:
    """Forward passes' batch sizes."""
    looked, seen = network_inputs(guide(model, guidance))
    sample(looked, **options)
    return [len(x) for x, _ in seen]


def run_alone(model, x, sigma, *, positive=True, drop=False):
    """One denoised prediction of the network, outside every guider."""
    from longreel.host.wan.joint_latent import DROP

    context = (conds() if positive else conds(seed=3))[0][0]
    options = {"wrappers": model.wrappers}
    flag = torch.full((len(x), 1), float(drop))
    return model.model.apply_model(
        x, sigma, c_crossattn=context.expand(len(x), -1, -1), transformer_options=options, **{DROP: flag}
    )


def predictions(model) -> list[torch.Tensor]:
    """What the sampler is given in each call; filled as the model samples."""
    kept = []

    def keep(executor, *args, **kwargs):
        kept.append(executor(*args, **kwargs))
        return kept[-1]

    wrappers = model.wrappers.setdefault(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, {})
    model.wrappers[comfy.patcher_extension.WrappersMP.PREDICT_NOISE] = {"keep": [keep], **wrappers}
    return kept


@pytest.mark.parametrize("mode", ["inner", "ip2p"])
def test_scale_zero_is_plain_guidance(joint, mode):
    assert torch.equal(sample(guide(joint, MotionGuidance(0.0, mode=mode))), sample(joint))


def test_no_guidance_at_all_is_the_conditional_prediction(joint):
    assert torch.equal(sample(guide(joint, MotionGuidance(0.0)), cfg=1.0), sample(joint, cfg=1.0))
    assert counts(joint, MotionGuidance(0.0), cfg=1.0) == [1, 1, 1, 1]


def test_zero_adapter_guided_is_plain_guidance(base, monkeypatch):
    # One pass a batch: the bits of a matrix product depend on its number of rows on some processors.
    monkeypatch.setattr(type(base), "get_free_memory", lambda self, device: 0)
    zero = attach(base, zero_adapter(base, info()))
    assert counts(zero, MotionGuidance(3.0, ALWAYS)) == [1] * 12
    assert torch.equal(sample(guide(zero, MotionGuidance(3.0, ALWAYS))), sample(base))


@pytest.mark.parametrize("mode", ["inner", "ip2p"])
def test_result_is_the_explicit_formula(joint, mode):
    """In denoised and in velocity space."""
    looked, seen = network_inputs(guide(joint, MotionGuidance(3.0, ALWAYS, mode=mode)))
    results = predictions(looked)
    sample(looked, steps=2)
    x, w1, w2 = seen[1][0][:1], 5.0, 3.0
    sigma = comfy.samplers.calculate_sigmas(joint.get_model_object("model_sampling"), "simple", 2)[1:2]
    with torch.no_grad():
        pos, neg = run_alone(joint, x, sigma), run_alone(joint, x, sigma, positive=False)
        third = run_alone(joint, x, sigma, positive=mode == "inner", drop=True)
    if mode == "inner":
        terms = ((1 + w1 + w2, pos), (-w1, neg), (-w2, third))
    else:
        terms = ((1 + w1, pos), (-w1 + w2, neg), (-w2, third))
    expected = sum(weight * each for weight, each in terms)
    velocity = sum(weight * (x - each) / sigma for weight, each in terms)
    assert (results[1] - expected).abs().max() < 2e-5 * expected.abs().max().clamp_min(1)
    assert (x - sigma * velocity - results[1]).abs().max() < 5e-5 * expected.abs().max().clamp_min(1)


def test_the_dropped_branch_does_not_depend_on_motion(joint):
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(1, 32, *SIZE, generator=generator)
    other = torch.cat([x[:, :16], torch.randn(1, 16, *SIZE, generator=generator)], dim=1)
    sigma = torch.tensor([0.7])
    with torch.no_grad():
        kept = [run_alone(joint, each, sigma)[:, :16] for each in (x, other)]
        dropped = [run_alone(joint, each, sigma, drop=True)[:, :16] for each in (x, other)]
    assert torch.equal(*dropped)
    assert not torch.equal(*kept)


def test_one_batch_is_separate_evaluations(joint, monkeypatch):
    guided = guide(joint, MotionGuidance(3.0, ALWAYS))
    together = sample(guided)
    assert counts(joint, MotionGuidance(3.0, ALWAYS)) == [3, 3, 3, 3]
    monkeypatch.setattr(type(joint), "get_free_memory", lambda self, device: 0)
    assert counts(joint, MotionGuidance(3.0, ALWAYS)) == [1] * 12
    assert torch.allclose(sample(guided), together, atol=2e-5)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(0.0, 0.5), [3, 3, 3, 2, 2, 2]),
        (Window(0.5, 1.0), [2, 2, 2, 3, 3, 3]),
        (Window(0.0, 0.0), [2] * 6),
        (Window(0.0, 0.5, "sigma"), [3, 3, 3, 2, 2, 2]),
        (Window(0.0, 1.0, "sigma"), [3] * 6),
    ],
)
def test_window(joint, window, expected):
    assert counts(joint, MotionGuidance(3.0, window), steps=6) == expected


def test_a_curve_is_a_factor_of_the_scale_by_steps(joint):
    falling = MotionGuidance(3.0, ALWAYS, curve=(1.0, 1.0, 0.0, 0.0))
    assert counts(joint, falling, steps=4) == [3, 3, 2, 2]
    assert torch.equal(sample(guide(joint, falling)), sample(guide(joint, MotionGuidance(3.0, Window(0.0, 0.5)))))
    half = MotionGuidance(6.0, ALWAYS, curve=(0.5, 0.5))
    assert torch.equal(sample(guide(joint, half)), sample(guide(joint, MotionGuidance(3.0, ALWAYS))))


def test_window_of_a_sampler_that_asks_twice_a_step(joint):
    assert counts(joint, MotionGuidance(3.0, Window(0.0, 0.5)), steps=4, sampler="heun") == [3, 3, 3, 2, 2, 2, 2]


def test_window_by_noise_does_not_depend_on_the_number_of_steps(joint):
    halves = [counts(joint, MotionGuidance(3.0, Window(0.0, 0.5, "sigma")), steps=steps) for steps in (4, 8)]
    assert halves == [[3] * 2 + [2] * 2, [3] * 4 + [2] * 4]


def test_cost_at_guidance_one(joint):
    assert counts(joint, MotionGuidance(3.0, Window(0.0, 0.5)), cfg=1.0) == [2, 2, 1, 1]
    assert counts(joint, MotionGuidance(3.0, Window(0.0, 0.5), mode="ip2p"), cfg=1.0) == [3, 3, 1, 1]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc"])
def test_guider_and_model_patch_are_the_same(joint, sampler):
    guidance = MotionGuidance(3.0)
    guider = inner_guider(joint, conds(), conds(seed=3), 6.0, guidance)
    latent = torch.zeros(1, 16, *SIZE)
    sigmas = comfy.samplers.KSampler(
        joint, steps=4, device=joint.load_device, sampler=sampler, scheduler="simple", denoise=1.0
    ).sigmas
    noise = comfy.sample.prepare_noise(latent, 5)
    made = guider.sample(noise, latent, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=5)
    assert torch.equal(made, sample(guide(joint, guidance), sampler=sampler))


def test_two_patches_add_up_in_one_batch(joint):
    twice = guide(guide(joint, MotionGuidance(1.0)), MotionGuidance(2.0))
    assert torch.allclose(sample(twice), sample(guide(joint, MotionGuidance(3.0))), atol=1e-4)
    looked, seen = network_inputs(twice)
    sample(looked, steps=1)
    assert [len(x) for x, _ in seen] == [3]


def test_chains_with_skip_layer_guidance_on_either_side(joint):
    slg = {"start_percent": 0.0, "end_percent": 1.0, "double_layers": "1", "single_layers": ""}

    def skipping(model):
        return SkipLayerGuidanceDiTSimple.execute(model, **slg).args[0]

    guidance = MotionGuidance(3.0, ALWAYS)
    before, after = sample(guide(skipping(joint), guidance)), sample(skipping(guide(joint, guidance)))
    assert torch.equal(before, after)
    assert not torch.equal(before, sample(guide(joint, guidance)))
    assert not torch.equal(before, sample(skipping(joint)))


def test_rescale_brings_the_contrast_of_the_appearance_back(joint):
    spreads = []

    def look(args):
        spreads.append([float(args["cond_denoised"][:, :16].std())])
        return args["denoised"]

    guided = guide(joint, MotionGuidance(3.0, ALWAYS, rescale=1.0))
    guided.set_model_sampler_post_cfg_function(look)
    results = predictions(guided)
    sample(guided)
    assert [float(result[:, :16].std()) for result in results] == [
        pytest.approx(wanted, rel=1e-4) for (wanted,) in spreads
    ]


def test_motion_half_alone_can_be_left_to_the_prompt(joint):
    results = []
    for half in ("full", "cfg_only"):
        guided = guide(joint, MotionGuidance(3.0, ALWAYS, motion_half=half))
        kept = predictions(guided)
        sample(guided, steps=1)
        results += kept
    plain = predictions(clone := joint.clone())
    sample(clone, steps=1)
    full, cfg_only = results
    assert torch.allclose(full[:, :16], cfg_only[:, :16], atol=1e-5)
    assert torch.allclose(cfg_only[:, 16:], plain[0][:, 16:], atol=1e-4)
    assert not torch.allclose(full[:, 16:], cfg_only[:, 16:], atol=1e-2)


def test_the_gate_takes_guidance_away_where_the_prediction_is_bad(joint):
    bad = FlowGate((GateLevel(0.5, 5.0, 4.0, 80.0),))
    good = FlowGate((GateLevel(0.5, 1.0, 4.0, 10.0),))
    half = FlowGate((GateLevel(0.5, 3.6, 4.0, 10.0),))
    guidance = MotionGuidance(3.0, ALWAYS)
    assert torch.equal(sample(guide(joint, replace(guidance, gate=bad))), sample(joint))
    assert torch.equal(sample(guide(joint, replace(guidance, gate=good))), sample(guide(joint, guidance)))
    lowered = sample(guide(joint, replace(guidance, scale=1.5)))
    assert torch.allclose(sample(guide(joint, replace(guidance, gate=half))), lowered, atol=1e-4)


def test_a_second_stage_without_its_motion_is_not_guided(base, joint):
    latent = torch.randn(1, 16, *SIZE)
    still = {"noise": torch.zeros_like(latent), "latent": latent, "start_step": 1, "last_step": 4}
    assert torch.equal(sample(guide(joint, MotionGuidance(3.0, ALWAYS)), **still), sample(joint, **still))


def test_a_dropped_branch_has_an_id_of_its_own(joint):
    ids = []

    def look(executor, x, t, context, clip_fea, time_dim_concat, options, **kwargs):
        ids.append(tuple(options["uuids"]))
        return executor(x, t, context, clip_fea, time_dim_concat, options, **kwargs)

    guided = guide(joint, MotionGuidance(3.0, ALWAYS))
    guided.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "look", look)
    sample(guided, steps=2)
    assert len(set(ids[0])) == 3
    assert ids[0] == ids[1]


def test_ip2p_needs_a_negative_prompt(joint):
    guider = comfy.samplers.CFGGuider(guide(joint, MotionGuidance(3.0, ALWAYS, mode="ip2p")))
    guider.inner_set_conds({"positive": conds()})
    latent = torch.zeros(1, 16, *SIZE)
    with pytest.raises(MotionError, match="mode inner"):
        guider.sample(latent + 1, latent, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]), seed=5)


def test_refusals(base):
    with pytest.raises(MotionError, match="connect Apply Motion Adapter"):
        guide(base, MotionGuidance())
