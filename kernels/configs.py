"""Tile sizes of the Triton kernels by compute capability: a static table, never a search at run time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AttentionConfig", "PrepConfig", "attention_config", "prep_config"]


@dataclass(frozen=True)
class AttentionConfig:
    """One way to compile the attention kernel.

    block_m: query rows of a program; block_n: keys of one step; warps: of a program; stages: of the load pipeline.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class PrepConfig:
    """One way to compile the QK-preparation kernel. tokens: that one program walks through; warps: of a program."""

    tokens: int
    warps: int


_HOPPER = AttentionConfig(block_m=128, block_n=64, warps=8, stages=3)
_OTHER = AttentionConfig(block_m=128, block_n=32, warps=8, stages=3)


def attention_config(capability: tuple[int, int], head_dim: int) -> AttentionConfig:
    """The attention kernel's tiles on a device of `capability` (major, minor).

    Chosen so that heads of 128 channels neither spill registers nor exceed an architecture's shared memory; tests
    compile every entry. 128 query rows everywhere: smaller tiles re-read keys more often than a large L2 hides. Source:
    docs/kernels.md, tiles.
    """
    if head_dim <= 64:
        return AttentionConfig(block_m=128, block_n=64, warps=4, stages=3)
    return _HOPPER if capability[0] == 9 else _OTHER


def prep_config(channels: int) -> PrepConfig:
    """The QK-preparation kernel's shape for `channels` = heads * head_dim of one token."""
    return PrepConfig(tokens=8, warps=8 if channels <= 2048 else 16)
