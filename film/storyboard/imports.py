"""Shot lists that other programs write: tables (CSV) and screenplays (Fountain, https://fountain.io/syntax)."""

from __future__ import annotations

import csv
import io
import re

from .grammar import read_seconds
from .shot import Shot, Storyboard, StoryboardError, TimedPrompt

__all__ = ["from_csv", "from_fountain"]

_COLUMNS = {
    "prompt": "prompts", "text": "prompts", "description": "prompts", "action": "prompts",
    "seconds": "seconds", "duration": "seconds", "length": "seconds",
    "seed": "seed", "start": "start", "references": "references",
}  # fmt: skip
"""Columns of a table by the words people head them with; others are passed over."""
_HEADING = re.compile(r"(?:INT|EXT|EST|I/E|INT\.?/EXT)[. ]\s*\S|\.(?=\w)", re.IGNORECASE)
_CUE = re.compile(r"[A-Z][A-Z0-9 .'()-]*")


def from_csv(text: str) -> Storyboard:
    """A storyboard from a table with a head: a shot a row, from a column `prompt` and, where there, `seconds`, `seed`,
    `start` and `references` (separated by semicolons). Columns are separated by commas, semicolons or tabs.

    Raises StoryboardError with the line.
    """
    try:
        return _from_table(text.lstrip("\ufeff"))
    except csv.Error as error:
        raise StoryboardError(f"This table cannot be read ({error}): save it again as CSV in UTF-8.", 1, 1) from error


def _from_table(text: str) -> Storyboard:
    head = text.split("\n", 1)[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    columns = [_COLUMNS.get(name.strip().lower()) for name in next(rows, [])]
    if "prompts" not in columns:
        raise StoryboardError(
            "A table of shots needs a column called prompt: name the columns in its first line.", 1, 1
        )
    shots: list[Shot] = []
    for row in rows:
        cells = {name: cell.strip() for name, cell in zip(columns, row) if name and cell.strip()}
        if not cells:
            continue
        try:
            if "prompts" not in cells:
                raise StoryboardError("This shot has no prompt: write what is seen.")
            settings = {
                "seconds": read_seconds(cells["seconds"], rows.line_num, 1, bare=True) if "seconds" in cells else None,
                "seed": _seed(cells["seed"]) if "seed" in cells else len(shots),
                "start": cells.get("start"),
                "references": tuple(name.strip() for name in cells.get("references", "").split(";") if name.strip()),
            }
            given = {name: value for name, value in settings.items() if value is not None}
            shots.append(Shot((TimedPrompt(0.0, cells["prompts"]),), **given))  # type: ignore[arg-type]
        except StoryboardError as error:
            raise StoryboardError(error.message, rows.line_num, 1) from None
    return Storyboard(tuple(shots))


def _seed(cell: str) -> int:
    if not re.fullmatch(r"\d{1,20}", cell, re.ASCII):
        raise StoryboardError(f'The seed is "{cell}": write a whole number from 0 on.')
    return int(cell)


def from_fountain(text: str) -> Storyboard:
    """A storyboard from a screenplay: each scene is a shot of the usual length, its prompt the place of the heading and
    the action; dialogue becomes a sentence that says who speaks. Title page, notes, sections and transitions are passed
    over.

    Raises StoryboardError for a text without a scene.
    """
    text = re.sub(r"\[\[.*?\]\]|/\*.*?\*/", "", text.lstrip("\ufeff").replace("\r\n", "\n"), flags=re.DOTALL)
    scenes: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.strip().split("\n") if line.strip()]
        if not lines or lines[0].startswith(("#", "=", ">")) or re.fullmatch(r"[A-Z ]+TO:", lines[0]):
            continue
        if _HEADING.match(lines[0]):
            scenes.append([lines[0].lstrip(".").rstrip(".").capitalize() + "."])
            lines = lines[1:]
        if not scenes or not lines:
            continue
        if len(lines) > 1 and _CUE.fullmatch(lines[0]):
            spoken = " ".join(line for line in lines[1:] if not line.startswith("("))
            scenes[-1].append(f'{re.sub(r" *[(].*", "", lines[0]).capitalize()} says: "{spoken}"')
        else:
            scenes[-1].append(" ".join(line.lstrip("!") for line in lines))
    if not scenes:
        raise StoryboardError(
            "This screenplay has no scene: begin each with a heading such as EXT. FOREST - DAY.", 1, 1
        )
    return Storyboard(
        tuple(Shot((TimedPrompt(0.0, "\n".join(lines)),), seed=seed) for seed, lines in enumerate(scenes))
    )
