"""An original MemFlow checkout (KlingTeam/MemFlow) made to film with given weights, for `rollout.py --upstream PATH`
and `parity.py`; LongLive's (NVlabs/LongLive), which it came from, has the same entry points and no bank.

Nothing of it is copied or changed: its packages are imported from PATH, without their `__init__` files, which would
load training and text encoder. What is replaced is named in what `open_upstream` returns: diffusers' base classes where
diffusers is not installed, and flash attention where that is not installed (by PyTorch's own, to be told with the
figures). The rollout, its caches and its bank are the original's. Sizes are fixed in its source: 832x480.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["MEMORY", "MODEL", "film_upstream", "open_upstream"]

MODEL = {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, "num_heads": 12, "text_len": 512, "freq_dim": 256}
MEMORY = {"local_attn_size": 12, "sink_size": 3, "bank_size": 3, "record_interval": 3, "SMA": False}


class _Settings(dict[str, Any]):
    """Read by key and by attribute, as OmegaConf's are."""

    __getattr__ = dict.__getitem__


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


class _Stub:
    """Stands for what is imported and never called."""


class _ModelMixin(torch.nn.Module):
    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """[B, L, H, D] each, as flash attention takes them."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _prepare_imports(path: Path) -> list[str]:
    """Make the checkout importable; returns what had to be replaced."""
    replaced = []
    for name in ("wan", "wan.modules", "pipeline", "utils"):
        _module(name, __path__=[str(path / name.replace(".", "/"))])
    _module("wan.modules.tokenizers", HuggingfaceTokenizer=_Stub)
    _module("wan.modules.t5", umt5_xxl=_Stub)
    _module("wan.modules.vae", _video_vae=_Stub)
    if not torch.cuda.is_available():
        names = ("gpu", "get_cuda_free_memory_gb", "DynamicSwapInstaller", "log_gpu_memory",
                 "move_model_to_device_with_memory_preservation")  # fmt: skip
        _module("utils.memory", **dict.fromkeys(names, _Stub))
    if "diffusers" not in sys.modules and importlib.util.find_spec("diffusers") is None:
        replaced.append("diffusers' base classes")
        _module("diffusers", __path__=[])
        _module("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda function: function)
        _module("diffusers.models", __path__=[])
        _module("diffusers.models.modeling_utils", ModelMixin=_ModelMixin)
    if importlib.util.find_spec("flash_attn") is None and importlib.util.find_spec("flash_attn_interface") is None:
        replaced.append("flash attention, by PyTorch's own")
        _module("wan.modules.attention", flash_attention=_sdpa, attention=_sdpa)
    return replaced


def open_upstream(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    context: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
    model: Mapping[str, int] = MODEL,
    memory: Mapping[str, Any] = MEMORY,
) -> tuple[Any, list[str]]:
    """Its interactive pipeline over `weights` (Wan's names), every prompt encoded as `context` [1, 512, 4096]; and what
    was replaced.
    """
    if not (path / "pipeline" / "interactive_causal_inference.py").is_file():
        raise SystemExit(
            f"{path} is no checkout of MemFlow or LongLive: it has no pipeline/interactive_causal_inference.py."
        )
    replaced = _prepare_imports(path)
    causal = importlib.import_module("wan.modules.causal_model")
    wrapper = importlib.import_module("utils.wan_wrapper")
    scheduler = importlib.import_module("utils.scheduler")
    interactive = importlib.import_module("pipeline.interactive_causal_inference")

    class Generator(wrapper.WanDiffusionWrapper):  # type: ignore[misc, name-defined]
        """Its wrapper around a model that is there already."""

        def __init__(self, dit: torch.nn.Module) -> None:
            torch.nn.Module.__init__(self)
            self.model, self.uniform_timestep, self.seq_len = dit, False, 32760
            self.scheduler = scheduler.FlowMatchScheduler(shift=5.0, sigma_min=0.0, extra_one_step=True)
            self.scheduler.set_timesteps(1000, training=True)
            self.post_init()

    dit = causal.CausalWanModel(model_type="t2v", **model, **memory)
    dit.load_state_dict(dict(weights))
    dit = dit.to(device, dtype).eval().requires_grad_(False)
    arguments = SimpleNamespace(
        denoising_step_list=[1000, 750, 500, 250], warp_denoising_step=True, num_frame_per_block=3, context_noise=0,
        global_sink=True, model_kwargs=_Settings(memory, timestep_shift=5.0),
    )  # fmt: skip
    pipeline = interactive.InteractiveCausalInferencePipeline(
        arguments,
        device,
        generator=Generator(dit),
        text_encoder=lambda text_prompts: {"prompt_embeds": context.to(device, dtype)},
        vae=SimpleNamespace(decode_to_pixel=lambda latents, use_cache: latents[:, :1]),
    )
    pipeline.num_transformer_blocks = model["num_layers"]
    return pipeline, replaced


@torch.inference_mode()
def film_upstream(pipeline: Any, noise: torch.Tensor, tick: Callable[[], object]) -> torch.Tensor:
    """Film noise [1, T, 16, 60, 104] under one prompt; `tick` is called after every block. Returns the latents."""

    def after(_: Any, __: Any, given: Mapping[str, Any], ___: Any) -> None:
        if given.get("update_cache"):
            tick()

    hook = pipeline.generator.register_forward_hook(after, with_kwargs=True)
    try:
        _, latents = pipeline.inference(noise, text_prompts_list=[[""]], switch_frame_indices=[], return_latents=True)
    finally:
        hook.remove()
    result: torch.Tensor = latents
    return result
