"""Pictures of the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .continuity import ContinuityReport
from .identity import IdentityReport

__all__ = ["plot_continuity", "plot_identity"]

_PAPER, _INK, _GREY, _FAINT = "white", "black", "#909090", "#e4e4e4"
_COLOURS = ("#1f6fb2", "#d1401f", "#2f8f4e", "#8a4fb0", "#c08a1e", "#1c9a9a", "#b0476e", "#5b6b7b")
_LOW, _HIGH = (250, 244, 232), (31, 111, 178)
_SEEN, _MISSING = "#8cc79a", "#e08a74"
_CURVES = (
    ("motion", "motion, % of the diagonal per second"),
    ("colour", "colour, distance from the start (CIE76)"),
    ("contrast", "contrast, % against the start"),
)
_LEFT, _TOP, _WIDTH, _STEP, _HEIGHT = 56, 40, 560, 168, 124
_RIGHT, _MAP = 690, 330
_MAX_LABELS = 14


def plot_continuity(report: ContinuityReport) -> Image.Image:
    """A report as 1080 x 720 RGB: motion, colour and contrast over time with a line at each shot, alignment of each
    shot, consistency of each pair, and the whole film's figures.
    """
    picture = Image.new("RGB", (1080, 720), _PAPER)
    draw = ImageDraw.Draw(picture)
    edges = [shot.stop for shot in report.shots[:-1]]
    count = report.shots[-1].stop
    seconds = float(report.film["seconds"] or 0.0)
    for row, (name, title) in enumerate(_CURVES):
        panel = (_LEFT, _TOP + row * _STEP, _LEFT + _WIDTH, _TOP + row * _STEP + _HEIGHT)
        _curve(draw, panel, title, report.curves[name], edges, _COLOURS[row])
        for second in (0.0, seconds / 2, seconds):
            x = panel[0] + (second / seconds) * _WIDTH
            draw.text((x, panel[3] + 4), f"{second:.1f} s", fill=_GREY, anchor="ma")
    every = -(-len(report.shots) // _MAX_LABELS)
    for shot in report.shots[::every]:
        x = _LEFT + (shot.start + shot.stop) / 2 / count * _WIDTH
        draw.text((x, 6), f"shot {shot.shot}" if len(report.shots) < 9 else str(shot.shot), fill=_INK, anchor="ma")
    _bars(draw, report)
    _matrix(draw, report)
    _figures(draw, report)
    return picture


def _curve(
    draw: ImageDraw.ImageDraw,
    panel: tuple[int, int, int, int],
    title: str,
    values: Sequence[float],
    edges: Sequence[int],
    colour: str,
) -> None:
    left, top, right, bottom = panel
    low, high = min(0.0, *values, 0.0), max(1.0, *values, 1.0)
    for edge in edges:
        x = left + edge / len(values) * (right - left)
        draw.line((x, top, x, bottom), fill=_GREY)

    def place(index: float, value: float) -> tuple[float, float]:
        return left + index / len(values) * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    draw.line((left, place(0, 0.0)[1], right, place(0, 0.0)[1]), fill=_FAINT)
    draw.line([place(index + 0.5, value) for index, value in enumerate(values)], fill=colour, width=2)
    draw.rectangle(panel, outline=_GREY)
    draw.text((left, top - 14), title, fill=_INK)
    draw.text((left - 6, top), f"{high:.0f}", fill=_INK, anchor="ra")
    draw.text((left - 6, bottom - 10), f"{low:.0f}", fill=_INK, anchor="ra")


def _bars(draw: ImageDraw.ImageDraw, report: ContinuityReport) -> None:
    """Alignment of each shot."""
    top, bottom = _TOP + 3 * _STEP, 690
    draw.text((_LEFT, top - 14), "alignment of each shot with its prompt (CLIP x 100)", fill=_INK)
    known = [shot.alignment for shot in report.shots if shot.alignment is not None]
    low, high = min(0.0, *known, 0.0), max(1.0, *known, 1.0)
    zero = bottom - (0.0 - low) / (high - low) * (bottom - top)
    width = _WIDTH / len(report.shots)
    every = -(-len(report.shots) // _MAX_LABELS)
    for index, shot in enumerate(report.shots):
        left = _LEFT + index * width
        if shot.alignment is not None:
            y = bottom - (shot.alignment - low) / (high - low) * (bottom - top)
            draw.rectangle((left + 0.15 * width, min(y, zero), left + 0.85 * width, max(y, zero)), fill=_COLOURS[0])
        if index % every == 0:
            said = str(shot.shot) if shot.alignment is None else f"{shot.shot}: {shot.alignment:.1f}"
            draw.text((left + width / 2, bottom + 4), said, fill=_INK, anchor="ma")
    if not known:
        draw.text((_LEFT + _WIDTH / 2, (top + bottom) / 2), "no prompts were given", fill=_GREY, anchor="mm")
    draw.rectangle((_LEFT, top, _LEFT + _WIDTH, bottom), outline=_GREY)


def _matrix(draw: ImageDraw.ImageDraw, report: ContinuityReport) -> None:
    """Consistency of each pair of shots; the darkest is the largest."""
    shots = len(report.shots)
    draw.text((_RIGHT, _TOP - 14), "consistency of each pair of shots (CLIP x 100)", fill=_INK)
    cell = _MAP / shots
    values = [pair.consistency for pair in report.pairs]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    for pair in report.pairs:
        share = (pair.consistency - low) / (high - low) if high > low else 1.0
        colour = tuple(round(a + (b - a) * share) for a, b in zip(_LOW, _HIGH))
        for row, column in (pair.shots, pair.shots[::-1]):
            left, top = _RIGHT + (column - 1) * cell, _TOP + (row - 1) * cell
            draw.rectangle((left, top, left + cell, top + cell), fill=colour)
            if shots <= _MAX_LABELS - 4:
                ink = "white" if share > 0.6 else _INK
                draw.text((left + cell / 2, top + cell / 2), f"{pair.consistency:.1f}", fill=ink, anchor="mm")
    for shot in range(shots):
        left = _RIGHT + shot * cell
        draw.rectangle((left, _TOP + shot * cell, left + cell, _TOP + (shot + 1) * cell), fill=_FAINT)
    every = -(-shots // _MAX_LABELS)
    for shot in range(0, shots, every):
        middle = (shot + 0.5) * cell
        draw.text((_RIGHT - 6, _TOP + middle), str(shot + 1), fill=_INK, anchor="rm")
        draw.text((_RIGHT + middle, _TOP + _MAP + 4), str(shot + 1), fill=_INK, anchor="ma")
    draw.rectangle((_RIGHT, _TOP, _RIGHT + _MAP, _TOP + _MAP), outline=_GREY)


def _figures(draw: ImageDraw.ImageDraw, report: ContinuityReport) -> None:
    for index, (name, value) in enumerate(report.film.items()):
        y = _TOP + _MAP + 30 + index * 17
        said = "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
        draw.text((_RIGHT, y), name, fill=_INK)
        draw.text((_RIGHT + _MAP, y), said, fill=_INK, anchor="ra")


def plot_identity(report: IdentityReport, least: float) -> Image.Image:
    """A report as RGB 960 wide: likeness of each reference over time, by CLIP and, if measured, DINO; below, a strip
    for each, green where it is present. least: the line below which a reference is missing.
    """
    panels: list[tuple[str, str, float | None]] = [("CLIP likeness to each reference (x 100)", "clip", least)]
    if any(look.dino is not None for row in report.references for look in row.looks):
        panels.append(("DINO likeness (x 100)", "dino", None))
    left, width, height, gap = 120, 800, 220, 44
    strips = 40 + len(panels) * (height + gap)
    picture = Image.new("RGB", (960, strips + 24 * len(report.references) + 40), _PAPER)
    draw = ImageDraw.Draw(picture)
    # Every sample stands for the time up to the next one.
    edges = [0.0, *((a + b) / 2 for a, b in zip(report.times, report.times[1:])), report.seconds]

    def at(seconds: float) -> float:
        return left + seconds / report.seconds * width

    for index, (title, field, line) in enumerate(panels):
        top = 40 + index * (height + gap)
        bottom = top + height
        values = [getattr(look, field) or 0.0 for row in report.references for look in row.looks]
        # Cosines lie close together: the scale begins a little below the smallest, at a whole ten.
        low = 10.0 * math.floor((min([*values, *([] if line is None else [line])]) - 5.0) / 10.0)
        draw.text((left, top - 16), title, fill=_INK)

        def level(value: float, low: float = low, bottom: int = bottom) -> float:
            return bottom - (value - low) / (100.0 - low) * height

        if line is not None:
            draw.line((left, level(line), left + width, level(line)), fill=_GREY)
            draw.text((left + width + 4, level(line)), f"{line:.0f}", fill=_GREY, anchor="lm")
        for number, row in enumerate(report.references):
            points = [(at(t), level(getattr(look, field) or 0.0)) for t, look in zip(report.times, row.looks)]
            draw.line(points, fill=_COLOURS[number % len(_COLOURS)], width=2)
            for x, y in points:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_COLOURS[number % len(_COLOURS)])
        draw.rectangle((left, top, left + width, bottom), outline=_GREY)
        draw.text((left - 6, top), "100", fill=_INK, anchor="ra")
        draw.text((left - 6, bottom - 10), f"{low:.0f}", fill=_INK, anchor="ra")
    for number, row in enumerate(report.references):
        top = strips + 24 * number
        draw.text((left - 8, top + 9), row.name[:18], fill=_COLOURS[number % len(_COLOURS)], anchor="rm")
        for start, stop, look in zip(edges, edges[1:], row.looks):
            colour = _SEEN if look.is_seen(least) else _MISSING
            draw.rectangle((at(start), top, at(stop) - 1, top + 18), fill=colour)
    bottom = strips + 24 * len(report.references)
    for second in (0.0, report.seconds / 2, report.seconds):
        draw.text((at(second), bottom + 6), f"{second:.1f} s", fill=_INK, anchor="ma")
    draw.text((left, 6), "green: seen, red: missing (below the line, or more like another reference)", fill=_GREY)
    return picture
