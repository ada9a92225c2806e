"""Reports as plain text: columns in a fixed width."""

from __future__ import annotations

from collections.abc import Sequence

from .continuity import ContinuityReport
from .identity import IdentityReport

__all__ = ["continuity_table", "identity_table"]


def continuity_table(report: ContinuityReport) -> str:
    """The whole film, then a line for each shot, each pair of shots and each character, then the notes."""
    film = [[name, _number(value)] for name, value in report.film.items()]
    lines = [_header(report.model, report.options), "", *_columns(["the film", ""], film), ""]
    shots = [
        [
            str(row.shot),
            f"{row.seconds:.1f}",
            row.begins,
            *map(_number, (row.alignment, row.alignment_sentences, row.cut, row.motion, row.colour_drift)),
            *map(_number, (row.contrast_drift, row.copy, row.layout_copy)),
            ", ".join(row.characters) or "-",
        ]
        for row in report.shots
    ]
    titles = ["shot", "s", "begins", "align", "(sent.)", "cut", "motion", "colour", "contr.%", "copy", "layout", "seen"]
    lines += [*_columns(titles, shots), ""]
    pairs = [
        [
            f"{row.shots[0]}-{row.shots[1]}",
            *map(_number, (row.consistency, row.colour, row.contrast, row.layout)),
            _listed(row.characters),
        ]
        for row in report.pairs
    ]
    if pairs:
        lines += [*_columns(["pair", "consist.", "colour", "contr.%", "layout", "characters"], pairs), ""]
    cast = [
        [name, str(figures["shots"]), _number(figures["consistency"]), _number(figures["alignment"])]
        for name, figures in report.characters.items()
    ]
    if cast:
        lines += [*_columns(["character", "shots", "consist.", "align"], cast), ""]
    return "\n".join([*lines, *report.notes]).rstrip()


def identity_table(report: IdentityReport) -> str:
    """A line for each reference, and when it is missing."""
    rows = [
        [
            row.name,
            f"{row.seen:.0f} %",
            *map(_number, (row.mean, row.least, row.control, row.dino_mean, row.dino_least)),
            ", ".join(f"{start:.1f}-{stop:.1f} s" for start, stop in row.missing) or "never",
        ]
        for row in report.references
    ]
    titles = ["reference", "seen", "CLIP", "least", "others", "DINO", "least", "missing"]
    lines = [_header(report.model, report.options), "", *_columns(titles, rows), "", *report.notes]
    return "\n".join(lines).rstrip()


def _header(model: dict[str, object], options: dict[str, object]) -> str:
    said = [f"{name}: {value}" for name, value in {**model, **options}.items() if not name.endswith("fingerprint")]
    return "\n".join(said)


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items()) or "-"


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned first column, right-aligned numbers, left-aligned last column where it is text."""
    table = [list(titles), *map(list, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(titles) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in table
    ]
