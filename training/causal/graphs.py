"""Work without gradients, or whose gradients are its own, as CUDA graphs: a small model's time goes into launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Captured:
    """Runs functions as they are the first time, and from the second on as a graph, one for each key.

    A function reads and writes tensors that stay where they are, draws no random numbers, never waits for the device,
    and is made of the same operations whenever its key is the same. Where a capture fails everything runs uncaptured.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool: Any = None

    def __call__(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do `work`, under no_grad."""
        with torch.no_grad():
            if not self.enabled:
                work()
            elif key not in self.graphs:
                self.graphs[key] = None
                work()
            elif (graph := self.graphs[key] or self._capture(key, work)) is not None:
                graph.replay()
            else:
                work()

    def _capture(self, key: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                work()
        except RuntimeError as error:
            print(f"CUDA graphs are left out: {error}", flush=True)
            self.enabled = False
            return None
        self.pool = self.pool or graph.pool()
        self.graphs[key] = graph
        return graph
