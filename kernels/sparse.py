"""Sparse activation in three launches a layer call: mean query, score and pick, copy of keys and values together.

Plain functions and no `torch.library` operators: nothing compiles across the memory's host bookkeeping, and an
operator's dispatch costs more CPU time than these kernels take on the GPU. Words as in `ops.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from .backends import Problem, run, select_backend

__all__ = ["copy_frames", "has_kernel", "pick_frames", "sparse_runs"]

_checked: set[tuple[str, Problem]] = set()


def has_kernel(q: torch.Tensor) -> bool:
    """Whether queries q [1, H, n, D] are of a device and dtype that our kernels run for. Raises BackendError."""
    return select_backend(Problem(q.device, q.dtype, q.shape[3])).backend in ("triton", "interpret")


def pick_frames(q: torch.Tensor, means: torch.Tensor, active: int) -> torch.Tensor:
    """Per head the `active` candidates whose mean key fits the mean query best: int64 [H, active], ascending.

    q [1, H, n, D]; means: mean keys of the candidates [C, H, D] fp32, contiguous, C > active. Of equal scores the
    earlier candidate is better. Scores are sums in fp32, in another order than PyTorch's: candidates whose scores
    differ by no more than rounding may change places. The first picks on a device are compared with PyTorch's scores,
    as in `copy_frames`. Source: docs/methods/memflow.md, sparse activation.
    """
    query, problem = q[0].mean(dim=1, dtype=torch.float32), Problem(q.device, q.dtype, q.shape[3])

    def scores() -> torch.Tensor:
        return torch.einsum("hd,nhd->hn", query, means)

    def with_triton(module: Any, _: tuple[int, int]) -> torch.Tensor:
        picks: torch.Tensor = module.pick(query, means, active)
        if ("pick", problem) not in _checked:
            found = scores()
            lowest, wanted = found.gather(1, picks).amin(dim=1), found.topk(active, dim=1).values[:, -1]
            if not bool(
                ((lowest >= wanted - 1e-4 * found.abs().amax(dim=1)) & (picks.diff(dim=1) > 0).all(dim=1)).all()
            ):
                raise RuntimeError("the picked frames are not those of the best scores")
            _checked.add(("pick", problem))
        return picks

    def with_torch(_: str) -> torch.Tensor:
        return scores().argsort(dim=1, descending=True, stable=True)[:, :active].sort(dim=1).values

    return run(problem, "sparse_triton", with_triton, with_torch)


def copy_frames(k: torch.Tensor, v: torch.Tensor, picks: torch.Tensor, first: int, to: int, tokens: int) -> None:
    """Copy each head's picked frames into slots `to` and on, of keys and values alike.

    k, v: arenas [1, H, S * T, D], contiguous; picks int64 [H, n]: counted from slot `first`, all before slot `to`;
    tokens: T. The first copy on a device is compared with PyTorch's, which waits for the GPU once; where it differs,
    that is logged and PyTorch copies from then on.
    """
    problem = Problem(k.device, k.dtype, k.shape[3])

    def with_triton(module: Any, _: tuple[int, int]) -> None:
        module.copy(k, v, picks, first, to, tokens)
        if ("copy", problem) in _checked:
            return
        n = picks.shape[1]
        for arena in (k, v):
            frames = arena[0].unflatten(1, (-1, tokens))
            if not torch.equal(frames[:, to : to + n], _picked(frames, picks + first)):
                raise RuntimeError("the copied frames are not those that were picked")
        _checked.add(("copy", problem))

    def with_torch(_: str) -> None:
        for arena in (k, v):
            frames = arena[0].unflatten(1, (-1, tokens))
            frames[:, to : to + picks.shape[1]].copy_(_picked(frames, picks + first))

    run(problem, "sparse_triton", with_triton, with_torch)


def _picked(frames: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Of frames [H, S, T, D] each head's `slots` [H, n]."""
    return frames[torch.arange(len(slots), device=slots.device).unsqueeze(1), slots]


def sparse_runs(picks: torch.Tensor, first: int, window: range, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The run table for `ops.frame_attention` over picked frames and the window: one run each, without a sort.

    picks int64 [H, n], counted from slot `first`. Returns runs int32 [1, H, 1, n + 1, 2] and count int32 [1, H, 1].
    """
    heads, n = picks.shape
    runs = torch.full((1, heads, 1, n + 1, 2), tokens, dtype=torch.int32, device=picks.device)
    runs[0, :, 0, :n, 0] = (picks + first) * tokens
    runs[0, :, 0, n, 0].fill_(window.start * tokens)
    runs[0, :, 0, n, 1].fill_(len(window) * tokens)
    return runs, torch.full((1, heads, 1), n + 1, dtype=torch.int32, device=picks.device)
