"""ComfyUI's record of what a forward pass allocates, and allocations that must stay out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_prefetch

__all__ = ["outside_memory_graph"]


def outside_memory_graph() -> AbstractContextManager[Any]:
    """A context for allocations inside a forward pass that outlive the block they are made in.

    From 0.33 on ComfyUI may record the allocations of a model's blocks, to give the same memory to the next pass; what
    is kept beyond its block then ends the process. Releases before that record nothing and have nothing to pause.
    """
    pause = getattr(comfy.model_prefetch, "pause_malloc_graph", None)
    return nullcontext() if pause is None else pause()
