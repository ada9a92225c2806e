"""Guidance: the parts' arithmetic over given predictions, and the same on a model, beside core's guiders and hooks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple
from longreel.host import guider
from longreel.host.guidance import (
    Cfg,
    Conds,
    DualCfg,
    Guidance,
    GuidanceError,
    InnerGuidance,
    SpatioTemporalGuidance,
    Step,
    Window,
    evaluations,
    formula_of,
)
from longreel.host.guider import Guider, patch_guidance
from longreel.host.sampling import Inputs, Stage, sample, schedule

from .. import tiny_models

NAMES = ("positive", "negative", "middle", "nomotion", "no_text")
STEPS = 4


def step(index: int = 0, shape: tuple[int, ...] = (1, 2, 3, 4, 4)) -> Step:
    sampling = SimpleNamespace(percent_to_sigma=lambda part: 1.0 - part)
    return Step(1.0 - index / STEPS, index, STEPS, shape, SimpleNamespace(model_sampling=sampling))


def predictions(shape: tuple[int, ...] = (1, 2, 3, 4, 4)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name in NAMES}


def test_formulas_of_the_papers():
    p = predictions()
    inner = InnerGuidance(3.0, Window()).at(step())
    merged = formula_of((Cfg(6.0), InnerGuidance(3.0, Window())), step())
    assert torch.allclose(merged.apply(p), 9 * p["positive"] - 5 * p["negative"] - 3 * p["nomotion"], atol=1e-5)
    assert inner.base is None
    dual = p["negative"] + 2 * (p["middle"] - p["negative"]) + 5 * (p["positive"] - p["middle"])
    assert torch.allclose(DualCfg(5.0, 2.0).at(step()).apply(p), dual, atol=1e-5)
    assert torch.allclose(DualCfg(2.0, 5.0, text_first=True).at(step()).apply(p), dual, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((1, 2, 3, 4, 4), 2), ((3, 2, 4, 4), 0)], ids=["video", "frames as rows"])
def test_frames_and_text_guide_apart_frame_by_frame(shape: tuple[int, ...], axis: int):
    p = predictions(shape)
    guided = SpatioTemporalGuidance((1.0, 2.0), 3.0).at(step(shape=shape)).apply(p)
    for frame, weight in enumerate((1.0, 1.5, 2.0)):
        one = {name: value.select(axis, frame) for name, value in p.items()}
        wanted = one["negative"] + weight * (one["no_text"] - one["negative"]) + 3 * (one["positive"] - one["no_text"])
        assert torch.allclose(guided.select(axis, frame), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([Cfg(1.0)], {"positive"}),
        ([Cfg(5.0)], {"positive", "negative"}),
        ([DualCfg(5.0, 5.0)], {"positive", "middle", "negative"}),
        ([DualCfg(5.0, 1.0)], {"positive", "middle"}),
        ([DualCfg(1.0, 1.0)], {"positive"}),
        ([DualCfg(1.0, 5.0, text_first=True)], {"positive", "middle"}),
        ([Cfg(1.0), InnerGuidance(3.0, Window())], {"positive", "nomotion"}),
        ([Cfg(1.0), InnerGuidance(0.0, Window())], {"positive"}),
        ([SpatioTemporalGuidance((1.0, 2.0), 3.0)], {"positive", "no_text", "negative"}),
        ([SpatioTemporalGuidance((3.0, 3.0), 3.0)], {"positive", "negative"}),
        ([SpatioTemporalGuidance((2.0, 2.0), 0.0)], {"no_text", "negative"}),
        ([SpatioTemporalGuidance((1.0, 1.0), 1.0)], {"positive"}),
        ([SpatioTemporalGuidance((1.0, 1.0), 3.0)], {"positive", "no_text"}),
    ],
)
def test_passes_without_weight_are_not_run(parts: list[Guidance], names: set[str]):
    formula = formula_of(parts, step())
    assert formula.needed() == names
    p = predictions()
    left_out = {name: value if name in names else torch.full_like(value, 0.0) for name, value in p.items()}
    assert torch.allclose(formula.apply(left_out), formula.apply(p), atol=1e-5)


def test_a_window_counts_steps_or_noise():
    assert [Window(0.0, 0.5).holds(step(i)) for i in range(STEPS)] == [True, True, False, False]
    assert [Window(0.25, 0.75, "sigma").holds(step(i)) for i in range(STEPS)] == [False, True, True, False]
    assert not Window(0.5, 0.5, "sigma").holds(step(2))
    with pytest.raises(GuidanceError, match="0 <= start <= end <= 1"):
        Window(0.6, 0.5)


@pytest.fixture(scope="module")
def model() -> Any:
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(causal=False)
    )


def text(seed: int) -> list[Any]:
    return [[torch.randn(1, 8, tiny_models.TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]


NOISE = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(5))
CONDS = {"positive": text(1), "negative": text(2)}


def run(guider: Any, model: Any, sampler: str = "euler") -> torch.Tensor:
    sigmas = schedule(model, "simple", STEPS, sampler)
    made = guider.sample(
        NOISE, torch.zeros_like(NOISE), comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=1
    )
    return made.float().cpu()


def plain(model: Any, cfg: float) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(CONDS["positive"], CONDS["negative"])
    guider.set_cfg(cfg)
    return guider


@dataclass(frozen=True)
class Halved(InnerGuidance):
    """A third pass that is made of the positive one."""

    def derive(self, conds: Conds) -> Conds:
        def half(cond: dict[str, Any]) -> dict[str, Any]:
            read = cond["model_conds"]["c_crossattn"]
            return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": read._copy_with(read.cond * 0.5)}}

        return {**conds, "nomotion": [half(cond) for cond in conds["positive"]]}


HALF = [[CONDS["positive"][0][0] * 0.5, {}]]


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "heun"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_plain_guidance_is_cores(model: Any, sampler: str, cfg: float):
    assert torch.equal(run(Guider(model, [Cfg(cfg)], CONDS), model, sampler), run(plain(model, cfg), model, sampler))


@pytest.mark.parametrize("weights", [(5.0, 5.0), (2.0, 1.0), (1.0, 1.0)])
def test_dual_guidance_is_cores(model: Any, weights: tuple[float, float]):
    core = Guider_DualCFG(model)
    core.set_conds(CONDS["positive"], text(3), CONDS["negative"])
    core.set_cfg(*weights)
    mine = Guider(model, [DualCfg(*weights)], {**CONDS, "middle": text(3)})
    assert torch.equal(run(mine, model), run(core, model))


def test_guider_and_patch_are_one(model: Any):
    parts = [Cfg(3.0), Halved(2.0, Window(0.0, 0.5))]
    guided = run(Guider(model, parts, CONDS), model)
    assert torch.equal(guided, run(plain(patch_guidance(model, parts[1]), 3.0), model))
    assert torch.equal(guided, run(Guider(patch_guidance(model, parts[1]), [Cfg(3.0)], CONDS), model))
    given = patch_guidance(model, InnerGuidance(2.0, Window(0.0, 0.5)), {"nomotion": HALF})
    assert torch.allclose(guided, run(plain(given, 3.0), model), atol=1e-5)
    assert not torch.allclose(guided, run(plain(model, 3.0), model), atol=1e-3)
    none = patch_guidance(model, Halved(0.0))
    assert torch.equal(run(plain(none, 3.0), model), run(plain(model, 3.0), model))


def test_a_patch_with_a_base_of_its_own_guides_alone(model: Any):
    part = SpatioTemporalGuidance((1.5, 1.5), 3.0)
    alone = run(Guider(model, [part], {**CONDS, "no_text": text(3)}), model)
    assert torch.equal(alone, run(plain(patch_guidance(model, part, {"no_text": text(3)}), 7.0), model))
    with pytest.raises(GuidanceError, match="no_text"):
        run(plain(patch_guidance(model, part), 7.0), model)


def test_evaluations_are_those_that_are_made(model: Any, monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []

    def calc(inner: Any, conds: list[Any], *rest: Any) -> Any:
        counted.append(sum(cond is not None for cond in conds))
        return comfy.samplers.calc_cond_batch(inner, conds, *rest)

    monkeypatch.setattr(guider, "calc_cond_batch", calc)
    parts = [Cfg(3.0), Halved(2.0, Window(0.0, 0.5))]
    run(Guider(model, parts, CONDS), model)
    assert counted == evaluations(parts, model, schedule(model, "simple", STEPS)) == [3, 3, 2, 2]


def test_hooks_of_other_packs_act_on_the_pair(model: Any):
    parts = [Cfg(3.0), Halved(2.0, Window())]
    hooked = model.clone()
    hooked.set_model_sampler_cfg_function(lambda args: args["uncond"] + (args["cond"] - args["uncond"]) * 5.0)
    wanted = run(Guider(model, [Cfg(5.0), parts[1]], CONDS), model)
    assert torch.allclose(run(Guider(hooked, parts, CONDS), model), wanted, atol=1e-4)
    seen: list[tuple[Any, ...]] = []

    def after(args: dict[str, Any]) -> torch.Tensor:
        seen.append((args["cond_scale"], args["cond"] is not None, args["uncond"] is not None))
        return args["denoised"]

    hooked = model.clone()
    hooked.set_model_sampler_post_cfg_function(after)
    hooked.set_model_sampler_pre_cfg_function(lambda args: args["conds_out"])
    assert torch.equal(
        run(plain(patch_guidance(hooked, parts[1]), 3.0), model), run(Guider(model, parts, CONDS), model)
    )
    assert seen == [(3.0, True, True)] * STEPS


def test_a_pack_that_runs_the_passes_gets_the_pair_alone(model: Any):
    """Core's own Skip Layer Guidance takes exactly two conditionings."""
    slg = SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0", "")[0]
    skipped = run(plain(slg, 3.0), model)
    assert torch.equal(run(Guider(slg, [Cfg(3.0)], CONDS), model), skipped)
    assert not torch.equal(run(plain(patch_guidance(slg, Halved(2.0, Window())), 3.0), model), skipped)


def test_terms_are_added_to_another_packs_guider(model: Any):
    def perpendicular(model: Any) -> Any:
        guider = Guider_PerpNeg(model)
        guider.set_conds(CONDS["positive"], CONDS["negative"], text(3))
        guider.set_cfg(3.0, 1.0)
        return guider

    alone = run(perpendicular(model), model)
    assert torch.equal(run(perpendicular(patch_guidance(model, Halved(0.0))), model), alone)
    assert not torch.allclose(run(perpendicular(patch_guidance(model, Halved(2.0, Window()))), model), alone, atol=1e-3)


def test_parts_patched_one_after_the_other_chain(model: Any):
    twice = patch_guidance(patch_guidance(model, Halved(0.5, Window())), Halved(1.5, Window()))
    once = patch_guidance(model, Halved(2.0, Window()))
    assert torch.allclose(run(plain(twice, 3.0), model), run(plain(once, 3.0), model), atol=1e-4)


def test_a_stage_without_steps_is_left_out(model: Any):
    sigmas = schedule(model, "simple", STEPS)
    alone, first, second = (
        sample(stages, Inputs(CONDS), [Cfg(2.0)], NOISE, sigmas=sigmas, sampler="euler", seed=1)
        for stages in (
            [Stage(model, 0, STEPS)],
            [Stage(model, 0, 0), Stage(model, 0, STEPS)],
            [Stage(model, 0, STEPS), Stage(model, STEPS, STEPS)],
        )
    )
    assert torch.equal(alone, first)
    assert torch.equal(alone, second)
