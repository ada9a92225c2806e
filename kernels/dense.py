"""PyTorch's own attention with the fastest of its backends first, for the devices where its default is the wrong one.

On compute capability 9.0 and 10.x cuDNN's attention reaches about twice the rate of the flash kernel that PyTorch and
ComfyUI put first; elsewhere it is no faster. Source: published measurements, docs/kernels.md, dense backend.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["dense_attention", "prefers_cudnn"]

_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def prefers_cudnn(q: torch.Tensor) -> bool:
    """Whether cuDNN's attention should come first for queries q [B, H, n, D]: fp16 or bf16 on a 9.0 or 10.x device."""
    if q.device.type != "cuda" or torch.version.hip is not None or q.dtype not in (torch.float16, torch.bfloat16):
        return False
    return _is_data_center(q.device)


@lru_cache(maxsize=16)
def _is_data_center(device: torch.device) -> bool:
    major, minor = torch.cuda.get_device_capability(device)
    return (major, minor) == (9, 0) or major == 10


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of q [B, H, n, D] over k, v [B, H, m, D], cuDNN first: [B, n, H * D]."""
    with sdpa_kernel(_ORDER, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)
