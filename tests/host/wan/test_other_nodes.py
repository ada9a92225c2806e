"""Nodes of other packs on the models that film: each takes part, or is refused by name before anything is filmed."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_attention_multiply import UNetCrossAttentionMultiply, UNetSelfAttentionMultiply
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from comfy_extras.nodes_tcfg import TCFG
from longreel.host.guidance import Window
from longreel.host.wan.causal_models import UnsupportedModelError, check_model
from longreel.host.wan.other_nodes import patch_fault
from longreel.host.wan.rollout import Prompt, RolloutError, roll_out
from longreel.host.wan.weak_guidance import WeakGuidance, guide_from_weak

from ... import tiny_models
from ..joint_models import conds

Model = comfy.model_patcher.ModelPatcher
SIGMAS = torch.tensor([1.0, 0.8, 0.0])
TABLE = Path(__file__).parents[3] / "docs" / "other-nodes.md"


def patched(model: Model, **options: Any) -> Model:
    clone = model.clone()
    clone.model_options["transformer_options"] = {**clone.model_options["transformer_options"], **options}
    return clone


def override(function: Any, *inputs: Any, **named: Any) -> torch.Tensor:
    attended: torch.Tensor = function(*inputs, **named) * 1.25
    return attended


def block_sparse_attention(function: Any, *inputs: Any, **named: Any) -> torch.Tensor:
    return override(function, *inputs, **named)


def compiled(model: Model) -> Model:
    clone = model.clone()
    set_torch_compile_wrapper(clone, "eager")
    return clone


def windows(model: Model) -> Model:
    clone = model.clone()
    handler = comfy.context_windows.IndexListContextHandler
    clone.model_options["context_handler"] = object.__new__(handler)
    return clone


def core(node: Any, *values: Any) -> Callable[[Model], Model]:
    def apply(model: Model) -> Model:
        patch = getattr(node, "execute", None)
        made = patch(model, *values).args[0] if patch is not None else node().patch(model, *values)[0]
        assert isinstance(made, comfy.model_patcher.ModelPatcher)
        return made

    return apply


NODES: dict[str, Callable[[Model], Model]] = {
    "ModelComputeDtype": core(ModelComputeDtype, "bf16"),
    "ModelSamplingSD3": core(ModelSamplingSD3, 9.0),
    "Skip Layer Guidance (DiT)": core(SkipLayerGuidanceDiT, 3.0, 0.0, 1.0, "1", ""),
    "Attention override (SageAttention)": partial(patched, optimized_attention_override=override),
    "TorchCompileModel": compiled,
    "UNet Self/Cross-Attention Multiply": lambda model: core(UNetSelfAttentionMultiply, 2.0, 2.0, 2.0, 2.0)(
        core(UNetCrossAttentionMultiply, 2.0, 2.0, 2.0, 2.0)(model)
    ),
    "EasyCache": core(EasyCacheNode, 3.0, 0.0, 1.0, False),
    "LazyCache": core(LazyCacheNode, 3.0, 0.0, 1.0, False),
    "Normalized Attention Guidance": core(NAGuidance, 5.0, 0.5, 1.5),
    "Skip Layer Guidance (DiT, simple)": core(SkipLayerGuidanceDiTSimple, 0.0, 1.0, "1", ""),
    "Perturbed-Attention Guidance": core(PerturbedAttentionGuidance, 3.0),
    "RescaleCFG": core(RescaleCFG, 0.7),
    "CFG-Zero-Star": core(CFGZeroStar),
    "Tangential Damping CFG": core(TCFG),
    "Context Windows": windows,
    "Block Sparse Attention": partial(patched, optimized_attention_override=block_sparse_attention),
}
"""By its name in the table of docs/other-nodes.md; LoRA loaders have tests of their own."""
NAMED = {"CFG-Zero-Star": "CFGZeroStar", "RescaleCFG": "RescaleCFG", "Block Sparse Attention": "block_sparse"}
"""What a refusal says where that is not the table's name."""


def said(engine: int) -> dict[str, str]:
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row[engine] for row in rows[2:] if row[0] in NODES}


@pytest.fixture(scope="module")
def model() -> Model:
    return comfy.sd.load_diffusion_model_state_dict(tiny_models.wan_weights(2), metadata=tiny_models.dit_metadata())


def film(model: Model) -> torch.Tensor:
    return roll_out(model, [Prompt(0, conds())], (1, 16, 6, 4, 6), SIGMAS, seed=3).latents


@pytest.fixture(scope="module")
def plain(model: Model) -> torch.Tensor:
    return film(model)


def test_the_table_has_every_node():
    assert set(said(1)) == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_a_causal_film_with_it_is_what_the_table_says_and_the_next_is_plain(
    model: Model, plain: torch.Tensor, name: str
):
    what, changed = said(1)[name], NODES[name](model)
    if what == "refused":
        for refuse in (lambda: check_model(changed), lambda: film(changed)):
            with pytest.raises(UnsupportedModelError, match=NAMED.get(name, name.replace("(", r"\(")[:20])) as refused:
                refuse()
            assert "remove" in str(refused.value)
    else:
        check_model(changed)
        latents = film(changed)
        assert torch.isfinite(latents).all()
        same = name in ("TorchCompileModel", "ModelSamplingSD3") or what == "unchanged"
        assert torch.equal(latents, plain) == same
    assert torch.equal(film(model), plain)


def test_compute_dtype_is_that_of_its_own_model_alone(model: Model, plain: torch.Tensor):
    """The weights are shared and patches lie on them until another model is loaded."""
    half = core(ModelComputeDtype, "bf16")(model)
    assert torch.allclose(film(half), plain, atol=0.5)
    assert torch.equal(film(core(ModelComputeDtype, "default")(model)), plain)
    assert torch.equal(film(half), film(half.clone()))


def test_skip_layer_guidance_is_our_own_of_the_same_block(model: Model):
    ours = guide_from_weak(model, WeakGuidance("skip", (1,), 3.0, Window(0.0, 1.0), 0.0))
    theirs = core(SkipLayerGuidanceDiT, 3.0, 0.0, 1.0, "1", "")(model)
    assert torch.equal(film(theirs), film(ours))


def test_guidance_by_another_prompt_is_refused(model: Model, plain: torch.Tensor):
    import comfy.samplers

    def towards(args: dict[str, Any]) -> torch.Tensor:
        cond = [{**args["cond"][0]}]
        cond[0]["model_conds"] = {**cond[0]["model_conds"]}
        context = cond[0]["model_conds"]["c_crossattn"]
        cond[0]["model_conds"]["c_crossattn"] = type(context)(context.cond + 1)
        comfy.samplers.calc_cond_batch(args["model"], [cond], args["input"], args["sigma"], args["model_options"])
        denoised: torch.Tensor = args["denoised"]
        return denoised

    other = model.clone()
    other.set_model_sampler_post_cfg_function(towards)
    with pytest.raises(UnsupportedModelError, match="one prompt at a time"):
        film(other)
    assert torch.equal(film(model), plain)


def replaced(name: str) -> Callable[[Model], Model]:
    class EnhanceAVideo:
        def forward(self, *inputs: Any, **named: Any) -> None: ...

    EnhanceAVideo.__module__ = "/comfy/custom_nodes/ComfyUI-KJNodes.nodes.model_optimization_nodes"
    EnhanceAVideo.__qualname__ = "EnhanceAVideo"
    EnhanceAVideo.forward.__module__ = EnhanceAVideo.__module__
    EnhanceAVideo.forward.__qualname__ = "EnhanceAVideo.forward"

    def apply(model: Model) -> Model:
        clone = model.clone()
        clone.add_object_patch(name, EnhanceAVideo().forward)
        return clone

    return apply


def step_cache(model: Model) -> Model:
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "magcache", lambda executor, *a, **k: executor(*a, **k))
    return clone


def patched_while_sampling(model: Model) -> Model:
    """As KJNodes' TeaCache: the network's forward pass is another one for the length of a call."""

    def teacache_forward(self: Any, *inputs: Any, **named: Any) -> torch.Tensor:
        raise AssertionError("not reached")

    def wrapper(apply: Any, args: dict[str, Any]) -> torch.Tensor:
        dit = model.model.diffusion_model
        dit.forward_orig = types.MethodType(teacache_forward, dit)
        try:
            flow: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
            return flow
        finally:
            del dit.forward_orig

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replaced("diffusion_model.blocks.1.self_attn.forward"),
            "EnhanceAVideo .*KJNodes.* blocks.1.self_attn.forward",
        ),
        (replaced("diffusion_model.blocks.0.cross_attn.forward"), "EnhanceAVideo .*KJNodes"),
        (replaced("diffusion_model.forward_orig"), "EnhanceAVideo .* replaces forward_orig"),
        (step_cache, "magcache"),
        (patched_while_sampling, "patched_while_sampling.* while it samples"),
        (core(APG, 1.0, 5.0, 0.0), "Adaptive Projected Guidance"),
    ],
)
def test_what_a_causal_film_does_not_run_is_refused(
    model: Model, plain: torch.Tensor, change: Callable[[Model], Model], message: str
):
    with pytest.raises(UnsupportedModelError, match=message):
        film(change(model))
    assert torch.equal(film(model), plain)


def test_a_skipped_step_is_said(model: Model, plain: torch.Tensor):
    skipping = model.clone()
    skipping.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "x", lambda executor, x, *args, **named: x)
    with pytest.raises(RolloutError, match="leave steps out"):
        film(skipping)
    assert torch.equal(film(model), plain)


def test_layers_that_are_called_may_be_replaced(model: Model, plain: torch.Tensor):
    clone = model.clone()
    ffn = model.model.diffusion_model.blocks[0].ffn
    clone.add_object_patch("diffusion_model.blocks.0.ffn", torch.nn.Sequential(ffn, torch.nn.Tanh()))
    assert not torch.equal(film(clone), plain)
    assert torch.equal(film(model), plain)


def test_what_no_wan_reads_is_named_for_every_engine(model: Model):
    assert patch_fault(model) == patch_fault(NODES["Skip Layer Guidance (DiT)"](model)) == ""
    fault = patch_fault(NODES["Normalized Attention Guidance"](model))
    assert "Normalized Attention Guidance patches 'attn1_output_patch'" in fault
