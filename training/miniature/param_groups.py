"""Which parameters of the small world's models learn like matrices and which do not."""

from __future__ import annotations

from torch import nn

from ..core.trainable import ParamGroup

_EDGES = ("patch_embedding", "head.head", "words", "places", "modulation", "encoder.conv1", "decoder.head", "gamma")


def split_matrices(model: nn.Module) -> list[ParamGroup]:
    """Matrices inside the model, which Muon may train, and the rest: input, output and embedding layers keep AdamW, as
    Muon's authors advise; modulation is a bias in matrix form.
    """
    inner: list[nn.Parameter] = []
    edges: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (edges if _is_edge(name) else inner).append(p)
    return [ParamGroup(tuple(inner), muon=True), ParamGroup(tuple(edges))]


def _is_edge(name: str) -> bool:
    return any(edge in name for edge in _EDGES) or name.startswith(("conv1", "conv2"))
