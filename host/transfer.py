"""Small tensors to and from a GPU without waiting for it: through pinned memory, in the order of its work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["join_on_host", "to_device", "to_host"]


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x, made on the CPU, on a device. Only a CUDA device has pinned memory; others copy as always."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(x: Tensor) -> Tensor:
    """A copy on the CPU that may not be complete yet: read it through `join_on_host`."""
    if not x.is_cuda:
        return x.to("cpu")
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def join_on_host(parts: Sequence[Tensor], dim: int, device: torch.device) -> Tensor:
    """What `to_host` gave for tensors of `device`, joined along `dim`, fp32; waits for them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return torch.cat(list(parts), dim=dim).float()
