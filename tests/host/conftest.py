"""Tiny models of this room's tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """The golden rollouts: .info (dict) and .tensors (fp32)."""
    tensors = {name: tensor.float() for name, tensor in load_file(GOLDEN / "rollout_tiny.safetensors").items()}
    return SimpleNamespace(info=json.loads((GOLDEN / "rollout_tiny.json").read_text()), tensors=tensors)


def load_tiny_wan(golden, causal=True, **model_options):
    """The golden file's tiny Wan model through ComfyUI's stock loader."""
    import comfy.sd

    named = ((name, t) for name, t in golden.tensors.items() if name.startswith("weights."))
    weights = {name.removeprefix("weights."): t.clone() for name, t in named}
    config = json.loads(golden.info["comfyui_metadata"])
    if not causal:
        del config["transformer"]["causal_ar"]
    metadata = {"config": json.dumps(config)}
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options=model_options, metadata=metadata)


@pytest.fixture
def load_tiny(golden):
    """Loader of fresh tiny models: load_tiny(causal=True, **model_options)."""
    return lambda causal=True, **model_options: load_tiny_wan(golden, causal, **model_options)


@pytest.fixture(scope="session")
def tiny_wan(golden):
    """One shared tiny model in fp32."""
    return load_tiny_wan(golden)


@pytest.fixture
def paused(monkeypatch):
    """How often ComfyUI's record of allocations was paused, as a list with an entry for each time."""
    from contextlib import contextmanager

    import comfy.model_prefetch

    times = []

    @contextmanager
    def pause():
        times.append(True)
        yield

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", pause, raising=False)
    return times
