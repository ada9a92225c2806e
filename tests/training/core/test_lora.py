"""LoRA: what is trained beside a model is what core's loader makes of the file, layer by layer and in the output."""

from __future__ import annotations

import json
import logging

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import WanModel
from comfy.ops import disable_weight_init
from longreel.film.first_frame import check_keys, target_modules, to_released_keys
from longreel.training.core.lora import (
    WAN_SELF_ATTENTION,
    LoraError,
    adapt,
    choose_layers,
    differentiable,
    merge,
    save_lora,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ...tiny_models import dit_metadata, dit_weights, random_weights

SIZES = {"dim": 12, "ffn_dim": 8, "freq_dim": 8, "text_dim": 8, "num_heads": 1, "operations": disable_weight_init}


def patcher(causal=True, in_dim=16, dtype=torch.float32):
    """A tiny Wan as core's stock loader gives it."""
    weights = {f"model.diffusion_model.{key}": value for key, value in dit_weights(in_dim=in_dim).items()}
    return comfy.sd.load_diffusion_model_state_dict(
        weights, model_options={"dtype": dtype}, metadata=dit_metadata(causal)
    )


def trained(model, **options):
    """An adapter that changes the output, as one that has been trained does."""
    tree, adapter = adapt(model, choose_layers(model, **options), 4, alpha=6.0)
    with torch.no_grad():
        for pair in adapter.pairs:
            pair.up.normal_(std=0.3, generator=torch.Generator().manual_seed(pair.up.shape[0]))
    return tree, adapter


def inputs(in_dim=16):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(2, in_dim, 3, 4, 4, generator=generator),
        torch.tensor([[0.0, 700.0, 700.0], [0.0, 200.0, 200.0]]),
        torch.randn(2, 5, 128, generator=generator),
    )


@pytest.mark.parametrize(("causal", "in_dim"), [(True, 16), (False, 16), (False, 36)])
@torch.no_grad()
def test_core_loads_the_file_completely_and_gives_the_same_output(causal, in_dim, tmp_path, caplog):
    loaded = patcher(causal, in_dim)
    dit = loaded.model.diffusion_model
    assert type(dit) is (CausalWanModel if causal else WanModel)
    before = dit(*inputs(in_dim), transformer_options={})
    tree, adapter = trained(dit)
    merged = merge(dit, adapter)
    path = save_lora(adapter, tmp_path / "lora.safetensors", {"expert": "high", "base": "tiny"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"expert": "high", "base": "tiny", "rank": "4", "alpha": "6"}

    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(loaded, None, load_file(path), 1.0, 0.0)
    assert not caplog.records, "core names every key that it does not load"
    assert set(patched.patches) == {f"diffusion_model.{name}.weight" for name in adapter.names}
    patched.patch_model()
    for name in adapter.names:
        assert torch.equal(merged.get_parameter(f"{name}.weight"), dit.get_parameter(f"{name}.weight"))
    by_core = dit(*inputs(in_dim), transformer_options={})
    patched.unpatch_model()
    assert torch.allclose(tree(*inputs(in_dim), transformer_options={}), by_core, atol=1e-5)
    assert torch.allclose(merged(*inputs(in_dim), transformer_options={}), by_core, atol=1e-5)
    assert not torch.allclose(before, by_core, atol=1e-2)
    assert torch.equal(dit(*inputs(in_dim), transformer_options={}), before), "the caller's model is as it was"


def test_a_fresh_adapter_changes_nothing_and_only_pairs_learn():
    dit = patcher().model.diffusion_model.requires_grad_(True)
    tree, adapter = adapt(dit, choose_layers(dit), 4)
    with torch.no_grad():
        assert torch.equal(tree(*inputs(), transformer_options={}), dit(*inputs(), transformer_options={}))
    with torch.no_grad():
        for pair in adapter.pairs:
            pair.up.fill_(0.1)
    with differentiable():
        assert comfy.model_management.in_training
        tree(*inputs(), transformer_options={}).square().mean().backward()
    assert not comfy.model_management.in_training
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert {id(p) for p in tree.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}
    assert all(p.grad is None and p.requires_grad for p in dit.parameters())
    shared = {p.data_ptr() for p in dit.parameters()}
    assert shared <= {p.data_ptr() for p in tree.parameters()}, "no second copy of the base in memory"


def test_half_precision_bases_keep_their_precision():
    dit = patcher(dtype=torch.bfloat16).model.diffusion_model
    tree, adapter = trained(dit)
    x, time, text = inputs()
    with differentiable():
        y = tree(x.bfloat16(), time, text.bfloat16(), transformer_options={})
        y.square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in adapter.parameters())


def test_dropout_acts_in_training_only():
    dit = patcher().model.diffusion_model
    tree, adapter = adapt(dit, choose_layers(dit), 4, dropout=0.5)
    pair = adapter.pairs[0]
    with torch.no_grad():
        pair.up.fill_(0.1)
        x = torch.ones(64, pair.down.shape[1])
        assert not torch.equal(pair(x)[0], pair(x)[1])
        tree.eval()
        assert torch.equal(pair(x)[0], pair(x)[1])
        assert torch.allclose(pair(x), x @ pair.delta().T, atol=1e-5)


def test_filters_and_refusals():
    dit = patcher().model.diffusion_model
    assert set(choose_layers(dit)) == set(target_modules(1))
    assert choose_layers(dit, WAN_SELF_ATTENTION) == tuple(f"blocks.0.self_attn.{part}" for part in "qkvo")
    with pytest.raises(LoraError, match="has a name like 'nowhere'"):
        choose_layers(dit, "nowhere")
    for options in ({"rank": 0}, {"rank": 4, "alpha": 0.0}, {"rank": 4, "dropout": 1.0}):
        with pytest.raises(LoraError, match="do not fit"):
            adapt(dit, ["time_projection.1"], **options)


def forty_blocks():
    """A Wan with the 14B's layers, 12 wide."""
    config = {name: value for name, value in SIZES.items() if name != "operations"}
    model = WanModel(in_dim=36, num_layers=40, **SIZES)
    weights = {f"model.diffusion_model.{key}": value for key, value in random_weights(model, 7).items()}
    metadata = {
        "config": json.dumps({"transformer": {name: config[name] for name in ("num_heads", "text_dim", "freq_dim")}})
    }
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32}, metadata=metadata)


@pytest.mark.parametrize("released", [True, False])
def test_the_released_layout_is_patched_whole(released, tmp_path, caplog):
    loaded = forty_blocks()
    dit = loaded.model.diffusion_model
    _, adapter = adapt(dit, choose_layers(dit), 128)
    assert set(adapter.names) == set(target_modules(40))
    for pair in adapter.pairs:
        nn.init.normal_(pair.up, std=0.1)
    tensors = load_file(save_lora(adapter, tmp_path / "lora.safetensors", {}))
    assert check_keys(tensors, target_modules(40)).warnings == ()
    if released:
        tensors = {name: tensors[key] for key, name in to_released_keys(tensors).items()}
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(loaded, None, tensors, 1.0, 0.0)
    assert not caplog.records
    assert len(patched.patches) == 401
    merged = merge(dit, adapter)
    patched.patch_model()
    for name in adapter.names:
        assert torch.equal(merged.get_parameter(f"{name}.weight"), dit.get_parameter(f"{name}.weight"))
    patched.unpatch_model()


def test_an_adapted_layer_stays_a_layer_for_those_who_compute_with_its_weight():
    """As core's feed-forward does since 0.33: it reads the down-projection's weight and may compute with it."""
    dit = patcher().model.diffusion_model
    tree, adapter = trained(dit)
    layer, base = tree.blocks[0].ffn[2], dit.blocks[0].ffn[2]
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (base.in_features, base.out_features)
    assert layer.bias.data_ptr() == base.bias.data_ptr()
    assert layer.comfy_cast_weights == base.comfy_cast_weights
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = layer.nothing_of_the_kind
    x = torch.randn(2, 3, layer.in_features)
    by_weight = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(by_weight, layer(x))
    assert not torch.allclose(by_weight, base(x), atol=1e-3)
    pair = adapter.pairs[adapter.names.index("blocks.0.ffn.2")]
    gradients = [torch.autograd.grad(y.square().sum(), [pair.up, pair.down]) for y in (by_weight, layer(x))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    names = {name for name, _ in tree.named_parameters()}
    assert {"blocks.0.ffn.2.base.weight", "blocks.0.ffn.2.pair.up"} <= names
    assert "blocks.0.ffn.2.weight" not in names, "it has none of its own"
    exact = layer.weight.detach()
    layer.base.weight = nn.Parameter(base.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight.detach(), exact, rtol=0.1, atol=0.02)


def test_a_feed_forward_that_folds_its_activation_trains_the_same():
    """A fake of 0.33's WanFeedForward in every block: output and gradients as of the one that calls its layers."""

    class Folded(nn.Sequential):
        def forward(self, x):
            linear, inner = self[2], self[0](x)
            weight = linear.weight
            assert weight.shape == (linear.out_features, linear.in_features)
            return torch.nn.functional.linear(torch.nn.functional.gelu(inner, approximate="tanh"), weight, linear.bias)

    outputs, gradients = [], []
    for folds in (False, True):
        tree, adapter = trained(patcher().model.diffusion_model)
        if folds:
            for block in tree.blocks:
                block.ffn = Folded(*block.ffn)
        with differentiable():
            y = tree(*inputs(), transformer_options={})
            y.square().mean().backward()
        outputs.append(y.detach())
        gradients.append([p.grad for p in adapter.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
