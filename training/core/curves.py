"""Loss curves of a run as a picture: one panel a stage, from the logs that `training.core.loop` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _MARGIN = 420, 240, 40


def draw_curves(folder: Path, path: Path) -> None:
    """Draw the loss over steps of every `*.jsonl` in `folder`, logarithmic in the loss, into the PNG `path`."""
    logs = sorted(folder.glob("*.jsonl"))
    picture = Image.new("RGB", (_WIDTH * max(len(logs), 1), _HEIGHT), "white")
    for index, log in enumerate(logs):
        picture.paste(draw_panel(log.stem, read_losses(log)), (_WIDTH * index, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def read_losses(log: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of a log; none if there is no such file."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def draw_panel(name: str, points: Sequence[tuple[int, float]]) -> Image.Image:
    """One panel: the loss over steps, from at least one point (step from 0, loss above 0)."""
    panel = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    last = max(points[-1][0], 1)
    low, high = (math.log(bound(value for _, value in points)) for bound in (min, max))
    span = max(high - low, 1e-6)

    def place(step: int, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * step / last
        return x, _MARGIN + (_HEIGHT - 2 * _MARGIN) * (high - math.log(value)) / span

    frame = (_MARGIN, _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN)
    draw.rectangle(frame, outline="gray")
    draw.line([place(*point) for point in points], fill="navy", width=2)
    draw.text((_MARGIN, 8), f"{name}: loss (log scale)", fill="black")
    draw.text((2, _MARGIN), f"{math.exp(high):.3g}", fill="black")
    draw.text((2, _HEIGHT - _MARGIN - 10), f"{math.exp(low):.3g}", fill="black")
    draw.text((_WIDTH - _MARGIN - 70, _HEIGHT - _MARGIN + 8), f"step {last}", fill="black")
    return panel
