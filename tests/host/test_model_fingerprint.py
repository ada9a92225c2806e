"""Fingerprints stay the same when nothing changed and change with everything that changes the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from longreel.host.model_fingerprint import (
    _tensor_digest,
    fingerprint_clip,
    fingerprint_image,
    fingerprint_model,
    fingerprint_vae,
)
from safetensors.torch import save_file

CONFIG = {"num_heads": 4, "text_dim": 32, "freq_dim": 32}
METADATA = {"config": json.dumps({"transformer": CONFIG})}


def _random(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in model.state_dict().items()}


def _checkpoint(seed: int = 0) -> dict[str, torch.Tensor]:
    model = WanModel(
        dim=64, ffn_dim=96, num_layers=2, in_dim=16, out_dim=16, operations=comfy.ops.disable_weight_init, **CONFIG
    )
    return _random(model, seed)


def _model(sd: dict[str, torch.Tensor] | None = None, **options: object) -> ModelPatcher:
    return comfy.sd.load_diffusion_model_state_dict(sd or _checkpoint(), model_options=options, metadata=METADATA)


def _lora(rank: int = 2, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    name = "diffusion_model.blocks.0.self_attn.q"
    return {
        f"{name}.lora_A.weight": torch.randn(rank, 64, generator=generator),
        f"{name}.lora_B.weight": scale * torch.randn(64, rank, generator=generator),
    }


def _with_lora(model: ModelPatcher, strength: float, **lora: float) -> ModelPatcher:
    return comfy.sd.load_lora_for_models(model, None, _lora(**lora), strength, 0)[0]


def test_same_model_loaded_twice() -> None:
    first, second = _model(), _model()
    assert fingerprint_model(first) == fingerprint_model(second) == fingerprint_model(first.clone())
    assert len(fingerprint_model(first)) == 64


def test_same_after_a_restart(tmp_path: Path) -> None:
    """Another process, hash seed and a memory-mapped file give the same digits."""
    save_file(_checkpoint(), tmp_path / "dit.safetensors", METADATA)
    save_file(_random(WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])), tmp_path / "vae.safetensors")
    script = (
        "import sys, comfy.options; sys.argv = [sys.argv[0], '--cpu']; comfy.options.enable_args_parsing()\n"
        "import comfy.sd, comfy.utils\n"
        "from longreel.host.model_fingerprint import fingerprint_model, fingerprint_vae\n"
        "print(fingerprint_model(comfy.sd.load_diffusion_model('dit.safetensors')))\n"
        "print(fingerprint_vae(comfy.sd.VAE(sd=comfy.utils.load_torch_file('vae.safetensors'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tmp_path / "vae.safetensors")))
    assert done.stdout.split()[-2:] == [fingerprint_model(_model()), fingerprint_vae(vae)]


def _other_weight(model: ModelPatcher) -> ModelPatcher:
    sd = _checkpoint()
    sd["blocks.1.ffn.0.weight"] *= 1.01
    return _model(sd)


def _other_bias(model: ModelPatcher) -> ModelPatcher:
    sd = _checkpoint()
    sd["blocks.1.ffn.0.bias"][-1] += 1
    return _model(sd)


def _shift(model: ModelPatcher) -> ModelPatcher:
    return ModelSamplingSD3().patch(model, 3.0)[0]


def _scaled_attention(model: ModelPatcher, scale: float) -> ModelPatcher:
    def patch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> tuple:
        return q * scale, k, v

    model = model.clone()
    model.set_model_attn1_patch(patch)
    return model


def _wrapped(model: ModelPatcher) -> ModelPatcher:
    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "test", lambda executor, *a, **k: executor(*a, **k))
    return model


CHANGES: dict[str, Callable[[ModelPatcher], ModelPatcher]] = {
    "weight": _other_weight,
    "bias": _other_bias,
    "dtype": lambda model: _model(dtype=torch.bfloat16),
    "fp8": lambda model: _model({k: v.to(torch.float8_e4m3fn) for k, v in _checkpoint().items()}),
    "lora": lambda model: _with_lora(model, 1.0),
    "lora strength": lambda model: _with_lora(model, 0.9),
    "lora weights": lambda model: _with_lora(model, 1.0, scale=1.1),
    "lora rank": lambda model: _with_lora(model, 1.0, rank=3),
    "lora twice": lambda model: _with_lora(_with_lora(model, 1.0), 1.0),
    "shift": _shift,
    "attention patch": lambda model: _scaled_attention(model, 1.5),
    "attention patch setting": lambda model: _scaled_attention(model, 2.5),
    "wrapper": _wrapped,
}


def test_every_change_counts_and_is_stable() -> None:
    fingerprints = {"base": fingerprint_model(_model())}
    for name, change in CHANGES.items():
        fingerprints[name] = fingerprint_model(change(_model()))
        assert fingerprint_model(change(_model())) == fingerprints[name], name
    assert len(set(fingerprints.values())) == len(fingerprints), fingerprints


def test_same_while_patched_in_place() -> None:
    """Loading merges the LoRA into the weights and swaps the sampling object; neither may change the answer."""
    plain = _model()
    patched = _shift(_with_lora(plain, 1.0))
    before = fingerprint_model(plain), fingerprint_model(patched)
    weight = plain.model.diffusion_model.blocks[0].self_attn.q.weight.clone()
    comfy.model_management.load_models_gpu([patched], force_patch_weights=True)
    assert not torch.equal(plain.model.diffusion_model.blocks[0].self_attn.q.weight, weight)
    assert (fingerprint_model(plain), fingerprint_model(patched)) == before
    patched.detach()
    assert (fingerprint_model(plain), fingerprint_model(patched)) == before


def test_tensor_digests() -> None:
    """Only the logical values count: not the strides, not where the storage begins."""
    base = torch.randn(64, 96)
    digest = _tensor_digest(base)
    assert _tensor_digest(base.t().contiguous().t()) == digest
    assert _tensor_digest(torch.cat([base, base])[64:]) == digest
    assert _tensor_digest(base.reshape(96, 64)) != digest
    assert _tensor_digest(torch.nn.Parameter(base)) == digest
    for position in ((0, 0), (63, 95)):
        other = base.clone()
        other[position] += 1
        assert _tensor_digest(other) != digest
    for value in (torch.tensor(1.0), torch.tensor([True, False]), torch.zeros(0), base.to(torch.float8_e5m2)):
        assert _tensor_digest(value) == _tensor_digest(value.clone()) != digest


def test_quantized_weights() -> None:
    weight = torch.randn(32, 32)
    quantized = [
        QuantizedTensor.from_float(w, "TensorCoreFP8Layout", scale="recalculate") for w in (weight, weight * 2)
    ]
    # Twice the weight has the same fp8 bytes and twice the scale.
    assert torch.equal(quantized[0]._qdata.view(torch.uint8), quantized[1]._qdata.view(torch.uint8))
    assert _tensor_digest(quantized[0]) != _tensor_digest(quantized[1])
    assert _tensor_digest(quantized[0]) == _tensor_digest(quantized[0].clone())


def _clip(network: torch.nn.Module, **settings: object) -> SimpleNamespace:
    patcher = ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    fields = {"layer_idx": None, "tokenizer_options": {}, "use_clip_schedule": False, "apply_hooks_to_conds": None}
    return SimpleNamespace(patcher=patcher, tokenizer=object(), **(fields | settings))


def test_clip() -> None:
    network = torch.nn.Linear(4, 4)
    base = fingerprint_clip(_clip(network))
    assert fingerprint_clip(_clip(network)) == base
    assert fingerprint_clip(_clip(network, layer_idx=-2)) != base
    assert fingerprint_clip(_clip(network, tokenizer_options={"min_length": 1})) != base
    assert fingerprint_clip(_clip(torch.nn.Linear(4, 4))) != base


def test_image_counts_every_value() -> None:
    image = torch.rand(1, 40, 40, 3)
    other = image.clone()
    other[0, 17, 23, 1] += 1e-3
    assert fingerprint_image(image) == fingerprint_image(image.clone()) != fingerprint_image(other)


def _network(layers: int, width: int) -> ModelPatcher:
    """As many tensors as Wan 2.1 1.3B; at width 1536 also of its sizes. Their memory is never touched."""
    network = torch.nn.Module()
    for layer in range(layers):
        shapes = [(width, width)] * 8 + [(6 * width, width), (width, 6 * width)] + [(width,)] * 15
        for i, shape in enumerate(shapes):
            network.register_parameter(f"{layer}_{i}", torch.nn.Parameter(torch.empty(shape, dtype=torch.bfloat16)))
    return ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))


def test_cost_does_not_grow_with_the_weights() -> None:
    """Measured on one core: 0.05 s for 1.3B. Here 400 times the weights may cost at most three times as much."""
    times = []
    for width in (64, 1536):
        patcher = _network(30, width)
        spans = []
        for _ in range(5):
            start = time.process_time()
            fingerprint_model(patcher)
            spans.append(time.process_time() - start)
        times.append(min(spans))
    assert times[1] < 3 * times[0], times
