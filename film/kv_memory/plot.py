"""A plot of the KV memory over a film: a column for every block, a row for every latent frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

__all__ = ["draw_log"]

_WIDTH, _HEIGHT = 960, 540
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 56, 20, 44
_PAPER, _INK, _LINE = (24, 26, 30), (222, 222, 222), (70, 74, 80)
_COLOURS = {"window": (88, 160, 120), "sink": (90, 140, 220), "bank": (240, 160, 60)}
_PICKED = (255, 240, 200)


def draw_log(lines: Sequence[Mapping[str, Any]], layer: int | None = None) -> Image.Image:
    """Draw which frames the blocks attended to, 960 x 540 RGB. lines: of film.kv_memory.observe with `shot` added;
    layer: one, or None for all.

    Left to right the blocks, bottom to top the latent frames of the film. Green is the window, blue the sink, orange
    the bank: the more saturated, the more layers hold the frame. A bright edge marks frames that sparse activation
    chose. Raises ValueError for a layer that the model does not have, and for a film without a log.
    """
    if not lines:
        raise ValueError("This reel has no record of what was remembered: film it again with the causal engine.")
    layers = len(lines[-1]["bank"])
    if layer is not None and layers and layer >= layers:
        raise ValueError(f"The model has layers 0 to {layers - 1}, not {layer}: choose one of them or all.")
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    frames = max(line["position"] for line in lines)
    cell_x = (_WIDTH - _LEFT - _RIGHT) / len(lines)
    cell_y = (_HEIGHT - _TOP - _BOTTOM) / frames

    def box(column: int, frame: int) -> tuple[float, float, float, float]:
        bottom = _HEIGHT - _BOTTOM - frame * cell_y
        left = _LEFT + column * cell_x
        return left, bottom - cell_y, left + cell_x, bottom

    for column, line in enumerate(lines):
        if column and line["shot"] != lines[column - 1]["shot"]:
            x = _LEFT + column * cell_x
            draw.line((x, _TOP, x, _HEIGHT - _BOTTOM), fill=_LINE)
        for frame, (role, share) in _seen(line, layer).items():
            colour = tuple(round(p + (c - p) * (0.25 + 0.75 * share)) for p, c in zip(_PAPER, _COLOURS[role]))
            draw.rectangle(box(column, frame), fill=colour)
        for frame in _picked(line, layer):
            draw.rectangle(box(column, frame), outline=_PICKED)
    draw.rectangle((_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM), outline=_LINE)
    _label(draw, lines, frames, layer)
    return picture


def _seen(line: Mapping[str, Any], layer: int | None) -> dict[int, tuple[str, float]]:
    """Role and share of layers of every latent frame that a block attended to."""
    seen: dict[int, tuple[str, float]] = dict.fromkeys(line["window"], ("window", 1.0))
    seen |= dict.fromkeys(line["sink"], ("sink", 1.0))
    rows = line["bank"] if layer is None else line["bank"][layer : layer + 1]
    held = [frame for row in rows for frame in set(row)]
    for frame in set(held):
        if frame not in seen:
            seen[frame] = ("bank", held.count(frame) / len(rows))
    return seen


def _picked(line: Mapping[str, Any], layer: int | None) -> set[int]:
    rows = line["picks"] if layer is None else line["picks"][layer : layer + 1]
    return {int(frame) for row in rows for frame in row}


def _label(draw: ImageDraw.ImageDraw, lines: Sequence[Mapping[str, Any]], frames: int, layer: int | None) -> None:
    which = "all layers" if layer is None else f"layer {layer}"
    draw.text((_LEFT, 12), f"What each block saw, {which}", fill=_INK)
    for index, (role, colour) in enumerate(_COLOURS.items()):
        key = _WIDTH - 300 + index * 95
        draw.rectangle((key, 14, key + 10, 24), fill=colour)
        draw.text((key + 16, 12), role, fill=_INK)
    draw.text((_LEFT, _HEIGHT - _BOTTOM + 24), f"blocks 1 to {len(lines)}, a line where a shot begins", fill=_INK)
    shots = sorted({line["shot"] for line in lines})
    for shot in shots:
        column = next(index for index, line in enumerate(lines) if line["shot"] == shot)
        x = _LEFT + column * (_WIDTH - _LEFT - _RIGHT) / len(lines)
        draw.text((x + 2, _HEIGHT - _BOTTOM + 6), f"shot {shot}", fill=_INK)
    for mark in range(5):
        frame = round(frames * mark / 4)
        y = _HEIGHT - _BOTTOM - frame * (_HEIGHT - _TOP - _BOTTOM) / frames
        draw.text((8, y - 6), f"#{frame}", fill=_INK)
