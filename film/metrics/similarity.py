"""Consistency, alignment and copying, computed from embeddings. All cosines are given times 100."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from .values import Found

__all__ = [
    "assign",
    "cosines",
    "join",
    "layout_likeness",
    "margin",
    "mean_of_pairs",
]

LAYOUT_SIDE = 32


def join(rows: torch.Tensor) -> torch.Tensor:
    """Embeddings [n, d] as the direction of their mean, [d] of length 1."""
    return F.normalize(F.normalize(rows.double(), dim=-1).mean(dim=0), dim=0)


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """100 times the cosine of every row of [n, d] with every row of [m, d]: [n, m] float64."""
    return 100.0 * F.normalize(one.double(), dim=-1) @ F.normalize(other.double(), dim=-1).T


def mean_of_pairs(rows: torch.Tensor) -> float | None:
    """Mean cosine x 100 over all pairs of different rows of [n, d]; None for fewer than two rows."""
    count = rows.shape[0]
    if count < 2:
        return None
    above = torch.triu_indices(count, count, offset=1)
    return float(cosines(rows, rows)[above[0], above[1]].mean())


def margin(shot: torch.Tensor, own: torch.Tensor, others: torch.Tensor) -> float | None:
    """How much nearer a shot comes to the pictures it could copy than to others: the copy score.

    shot [n, d]: its keyframes; own [m, d]: keyframes that conditioned it; others [k, d]: keyframes that did not. The
    largest cosine x 100 with the former less the largest with the latter; None where one of them is empty.
    """
    if not own.shape[0] or not others.shape[0]:
        return None
    return float(cosines(shot, own).max() - cosines(shot, others).max())


def layout_likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """How alike two pictures [H, W, 3] of one size are place by place: the correlation of their brightness at 32 x 32,
    -1..1.

    1 for a copy, whatever CLIP thinks; near 0 for two views of one thing. 0 for a picture without any structure.
    """
    rows = []
    for picture in (one, other):
        grey = picture[None, ..., :3].to("cpu", torch.float32).mean(dim=-1)[None]
        level = F.interpolate(grey, size=(LAYOUT_SIDE, LAYOUT_SIDE), mode="area").double().flatten()
        rows.append(level - level.mean())
    return float(F.cosine_similarity(rows[0], rows[1], dim=0))


def assign(found: Sequence[Found], names: Sequence[str], scores: torch.Tensor, least: float) -> dict[int, int]:
    """Which box shows which character, at most one for each: {character: box}, by index.

    scores: cosine x 100 of each box' crop with each character's description, [boxes, characters]. A box whose label is
    a character's name is that character; of several the largest. The others are given out so that the sum of scores
    is largest, and those below `least` are taken back.
    """
    given: dict[int, int] = {}
    for character, name in enumerate(names):
        named = [index for index, each in enumerate(found) if each.label == name]
        if named:
            given[character] = max(named, key=lambda index: (_area(found[index]), -index))
    boxes = [index for index, each in enumerate(found) if each.label not in names]
    wanted = [character for character in range(len(names)) if character not in given]
    if boxes and wanted:
        rows, columns = linear_sum_assignment(scores[boxes][:, wanted].numpy(), maximize=True)
        for row, column in zip(rows.tolist(), columns.tolist()):
            if float(scores[boxes[row], wanted[column]]) >= least:
                given[wanted[column]] = boxes[row]
    return dict(sorted(given.items()))


def _area(found: Found) -> int:
    return found.box.width * found.box.height
