"""The optimizers of a run: AdamW, and Muon for the matrices that are to have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .muon import BatchedMuon
from .trainable import ParamGroup


class Optimizers:
    """AdamW and Muon over one model's groups, stepped together; parameters lie in the order that the model names them,
    so that a checkpoint does not depend on how they are grouped.

    Muon takes matrices only; a convolution's kernel is handed to it as the matrix [out, in * taps] on the same storage.
    muon_lr: 0 leaves everything to AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        *,
        lr: float,
        muon_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ):
        of = {id(p): group for group in groups for p in group.params}
        trained = [p for p in model.parameters() if p.requires_grad]
        missing = sum(id(p) not in of for p in trained)
        if missing:
            raise ValueError(f"{missing} trained parameters are in no group: groups() must name every one.")
        adamw: dict[tuple[float, float], list[nn.Parameter]] = {}
        muon: dict[tuple[float, float], list[nn.Parameter]] = {}
        for p in trained:
            group = of[id(p)]
            decay = weight_decay if group.weight_decay is None else group.weight_decay
            kind = muon if muon_lr and group.muon and p.ndim > 1 else adamw
            kind.setdefault((group.lr_scale, decay), []).append(p)
        self.kernels = [(p, nn.Parameter(p.detach().flatten(1))) for inner in muon.values() for p in inner]
        matrix_of = {id(p): matrix for p, matrix in self.kernels}
        self.all: list[torch.optim.Optimizer] = []
        if adamw:
            fused = trained[0].is_cuda
            self.all.append(torch.optim.AdamW(_groups(adamw, lr), lr=lr, betas=betas, fused=fused))
        if muon:
            matrices = {key: [matrix_of[id(p)] for p in inner] for key, inner in muon.items()}
            self.all.append(BatchedMuon(_groups(matrices, muon_lr), muon_lr, weight_decay))
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.all]

    def step(self, lr_scale: float) -> None:
        """One update at `lr_scale` of the full learning rates; clears the gradients."""
        for kernel, matrix in self.kernels:
            matrix.grad = kernel.grad.flatten(1) if kernel.grad is not None else None
        for optimizer, rates in zip(self.all, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * lr_scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for kernel, _ in self.kernels:
            kernel.grad = None

    def state_dicts(self) -> list[dict[str, Any]]:
        """Of each optimizer, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dicts(self, saved: Sequence[dict[str, Any]]) -> None:
        """What `state_dicts` gave for a model and groups of the same kind; learning rates stay those of this run."""
        for optimizer, state in zip(self.all, saved, strict=True):
            optimizer.load_state_dict(state)


def _groups(params: dict[tuple[float, float], list[nn.Parameter]], lr: float) -> list[dict[str, Any]]:
    return [{"params": own, "lr": lr * scale, "weight_decay": decay} for (scale, decay), own in params.items()]
