"""A steady block of a causal film never waits for the GPU and makes no tensor on the host: counted on the CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from longreel.film.kv_memory import LONGLIVE, MEMFLOW
from longreel.host.wan.rollout import Prompt, roll_out
from torch.overrides import TorchFunctionMode

WAITS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "equal",
    "allclose",
}
MAKERS = {"tensor", "as_tensor", "from_numpy", "arange", "linspace", "zeros", "ones", "full", "eye", "randn", "rand"}
"""Given no device they make their tensor on the host, from where it must be copied."""
DRAWN = "noise.py"
"""The noise is drawn on the CPU, so that a seed is the same film on every machine."""
SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
FIRST, LAST = 5, 8


class Watch(TorchFunctionMode):
    """Notes the calls that wait for a GPU and those that make tensors on the host, with who made them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.made: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in WAITS or (name in MAKERS and named.get("device") is None):
            frames = [f for f in traceback.extract_stack(limit=6) if "torch/" not in f.filename][:-1]
            caller = frames[-1] if frames else None
            place = f"{name} at {caller.filename}:{caller.lineno}" if caller else name
            if DRAWN not in place:
                (self.waits if name in WAITS else self.made).append(place)
        return func(*args, **named)


@pytest.mark.parametrize("settings", [LONGLIVE, MEMFLOW, replace(MEMFLOW, active=3)], ids=["window", "bank", "sparse"])
def test_a_steady_block_neither_waits_nor_makes_tensors_on_the_host(tiny_wan, golden, settings):
    watch, prompt = Watch(), [[golden.tensors["prompt.p0"], {}]]

    def on_block(block: int, _: torch.Tensor) -> None:
        if block == FIRST:
            watch.__enter__()
        if block == LAST:
            watch.__exit__(None, None, None)

    roll_out(tiny_wan, [Prompt(0, prompt)], (1, 16, 3 * (LAST + 1), 4, 6), SIGMAS, settings=settings, on_block=on_block)
    assert watch.waits == []
    assert watch.made == []
