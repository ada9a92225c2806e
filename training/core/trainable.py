"""What a run trains: parameters in groups that learn at rates of their own, and the file that they become."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ...film.reel.atomic import whole_file


@dataclass(frozen=True, eq=False)
class ParamGroup:
    """Parameters that are trained alike.

    lr_scale: times the run's learning rates, AdamW's and Muon's. weight_decay: None is the run's. muon: Muon trains the
    matrices among them (more than one dimension) in runs that use it; AdamW trains all others.
    """

    params: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    muon: bool = False


class Trainable(nn.Module):
    """What is trained, averaged and checkpointed: all of its state dict; nothing of the base that it is a part of."""

    def groups(self) -> Sequence[ParamGroup]:
        """All trained parameters, each in one group."""
        return [ParamGroup(tuple(p for p in self.parameters() if p.requires_grad))]

    @abstractmethod
    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the file that is used afterwards, replaced whole; returns its path."""


class FullModel(Trainable):
    """A model all of whose parameters are trained. prefix: of its keys in the file, "diffusion_model." for example."""

    def __init__(self, model: nn.Module, prefix: str = ""):
        super().__init__()
        self.model, self.prefix = model.requires_grad_(True), prefix

    def groups(self) -> Sequence[ParamGroup]:
        """One group, matrices to Muon where a run uses it."""
        return [ParamGroup(tuple(self.model.parameters()), muon=True)]

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """A checkpoint of the whole model, in the dtype of its parameters."""
        tensors = {f"{self.prefix}{key}": value.detach() for key, value in self.model.state_dict().items()}
        return write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """A safetensors file, replaced whole, readable by all: a server often runs as another user."""
    own = {key: value.cpu().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_bytes(save(own, dict(metadata) or None))  # not save_file, whose files only their owner may read
    return path
