"""How far things move between two frames, by matching blocks.

Learned flow needs weights to download; this needs none, gives the same numbers on every machine, and is accurate enough
for its uses: how much a video moves, and whether a frame follows from the one before. Without texture there is no
motion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["BLOCK", "REACH", "block_motion"]

BLOCK = 8
"""Side of a block in pixels of the working size."""
REACH = 7
"""Farthest a block is looked for, in pixels: 5 % of a frame's longer side."""
STILL = (1.5 / 255) ** 2
"""Mean square difference that is noise: what differs by no more stands still, and of shifts that match equally well up
to this the shortest is taken.
"""


def block_motion(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each block of `after` came from.

    before, after: brightness [h, w] in 0..1 of the working size, h and w at least 2.

    Returns the motion [2, blocks down, blocks across] in pixels (right and down are positive), finer than a pixel, and
    [blocks down, blocks across], what the best match leaves unexplained: the root of the mean square difference.
    """
    block = min(BLOCK, *after.shape)
    side = 2 * REACH + 1
    padded = F.pad(before[None, None], (REACH,) * 4, mode="replicate")[0, 0]
    around = padded.unfold(0, block + 2 * REACH, block).unfold(1, block + 2 * REACH, block)
    down, across = around.shape[:2]
    # (x - y)^2 = x^2 + y^2 - 2 x y, as one convolution for each block. Around grey, where rounding is least.
    around = around.reshape(1, down * across, *around.shape[2:]) - 0.5
    blocks = after.unfold(0, block, block).unfold(1, block, block).reshape(down * across, 1, block, block) - 0.5
    both = F.conv2d(around, blocks, groups=down * across)[0] / block**2
    theirs = F.avg_pool2d(around[0, :, None].square(), block, stride=1)[:, 0]
    cost = (theirs + blocks.square().mean(dim=(1, 2, 3))[:, None, None] - 2 * both).clamp_min(0)
    cost = cost.reshape(down, across, side * side).movedim(-1, 0)
    steps = torch.arange(side) - REACH
    lengths = (steps[:, None].square() + steps[None].square()).reshape(-1)
    best = cost.amin(dim=0)
    # Shifts in the order of their length: the first good one is the shortest.
    order = torch.argsort(lengths, stable=True)
    good = (cost <= best + STILL)[order]
    chosen = order[good.to(torch.uint8).argmax(dim=0)]
    grid = cost.reshape(side, side, down, across)
    rows, columns = chosen // side, chosen % side
    flow = torch.stack((-_finer(grid, rows, columns, 1), -_finer(grid, rows, columns, 0)))
    flow[:, grid[REACH, REACH] <= STILL] = 0.0
    return flow, best.sqrt()


def _finer(grid: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, axis: int) -> torch.Tensor:
    """The chosen shift along an axis (0 down, 1 across) at the vertex of the parabola through it and its neighbours."""
    side = grid.shape[0]
    chosen = (rows, columns)[axis]
    down, across = torch.meshgrid(*(torch.arange(count) for count in rows.shape), indexing="ij")

    def at(step: int) -> torch.Tensor:
        moved = (chosen + step).clamp(0, side - 1)
        return grid[moved, columns, down, across] if axis == 0 else grid[rows, moved, down, across]

    less, here, more = at(-1), at(0), at(1)
    bend = less + more - 2 * here
    vertex = ((less - more) / (2 * bend.clamp_min(1e-12))).clamp(-0.5, 0.5)
    edge = (chosen == 0) | (chosen == side - 1) | (bend <= 0)
    return chosen - REACH + torch.where(edge, 0.0, vertex)
