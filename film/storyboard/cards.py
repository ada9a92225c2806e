"""A storyboard's text as cards, one for each shot, and back: what an editor shows and changes.

A card holds its shot's lines as they were written. What is not changed stays so to the letter, comments and spacing
too, and in wrong texts as well: `write_cards` gives back what `read_cards` took apart. A change touches what it is
about alone: a setting its value, words the lines of the prompt.

A shot keeps its seed where it goes: if it states none and another number of shots stands before it than before, the
seed is written above it, so that its takes stay its own.

A skipped shot is a comment, which filming passes over: a sign before each of its lines and before the line of dashes
above it. Such lines stand behind a shot's words, or before the first shot:

    A robot walks.
    #| ---
    #| seconds: 5
    #| It stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from .grammar import SETTING, TIME, column_of, content_of, escape, is_separator, near_miss, read_range, setting_spans
from .shot import DEFAULT_SECONDS, Shot, StoryboardError, number
from .text import read_shot, storyboard_faults

__all__ = ["Card", "CardEdit", "read_cards", "write_cards"]

_SKIP = "#|"
_OPENING = "---"


@dataclass(frozen=True)
class Card:
    """A shot of a text.

    text: its lines, with the line of dashes above it. line: the number of the first of them, from 1. skipped: it is
    not filmed. shot: its value, None where it cannot be read. seed: its seed; None for a skipped one that states none.
    settings: what it states, as it is written, by name. words: its lines below the settings. faults: what cannot be
    read in it, at lines of the whole text.
    """

    text: str
    line: int
    skipped: bool
    shot: Shot | None
    seed: int | None
    settings: Mapping[str, str]
    words: str
    faults: tuple[StoryboardError, ...]

    @property
    def seconds(self) -> float:
        """How long it lasts; as if it stated no length where it cannot be read."""
        return DEFAULT_SECONDS if self.shot is None else self.shot.seconds


@dataclass(frozen=True)
class CardEdit:
    """A card of the text to write, and what changes in it.

    text: as `Card` has it; "" for a new shot. seed: the seed that it keeps; None: by its place. skipped: whether it is
    a comment. settings: values to state, as they are written, by name; "" removes a setting. words: other lines below
    the settings; None leaves them. split: into two shots, at this second; None does not.
    """

    text: str
    seed: int | None = None
    skipped: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    words: str | None = None
    split: float | None = None


def read_cards(text: str) -> tuple[Card, ...]:
    """The cards of a text, at least one; their faults are those of `storyboard_faults`."""
    faults = storyboard_faults(text)
    blocks = list(_blocks(text.replace("\r\n", "\n").replace("\r", "\n").split("\n")))
    cards: list[Card] = []
    index = 0
    for i, (at_line, lines, skipped) in enumerate(blocks):
        until = blocks[i + 1][0] if i + 1 < len(blocks) else at_line + len(lines) + 1
        begins = 1 if i == 0 else at_line
        plain = _opened([_shown(each) for each in lines] if skipped else lines)[1]
        stated = {
            name: each[value:end] for each in _setting_lines(plain) for name, _, value, end in setting_spans(each)
        }
        shot = read_shot(plain, index)
        seed = shot.seed if shot else index
        cards.append(
            Card(
                text="\n".join(lines),
                line=at_line,
                skipped=skipped,
                shot=shot,
                seed=None if skipped and "seed" not in stated else seed,
                settings=stated,
                words="\n".join(plain[_head(plain) :]),
                faults=tuple(fault for fault in faults if begins <= (fault.line or 1) < until),
            )
        )
        index += not skipped
    return tuple(cards)


def write_cards(edits: Sequence[CardEdit]) -> str:
    """The text of these cards. Raises StoryboardError where a shot cannot be split."""
    text: list[str] = []
    index = 0
    for place, edit in enumerate(edits):
        lines = edit.text.split("\n") if edit.text else []
        was_skipped = _is_mark(lines[0]) if lines else False
        if edit == CardEdit(edit.text, edit.seed, skipped=True) and was_skipped:
            text += lines
            continue
        opening, lines = _opened([_shown(each) for each in lines] if was_skipped else lines)
        for part, seed in _parts(_changed(lines, edit), edit, index):
            if edit.skipped:
                text += [_hidden(each) for each in [opening or _OPENING, *_seeded(part, seed, None)]]
                continue
            before_skipped = place + 1 < len(edits) and edits[place + 1].skipped
            part = _seeded(part, seed, index) or ([""] if index == 0 or before_skipped else [])
            text += [*([opening or _OPENING] if index else []), *part]
            opening, index = "", index + 1
    return "\n".join(text)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str], bool]]:
    """The lines of each card, with the number of the first and whether it is skipped."""
    starts = [0, *(i for i, line in enumerate(lines) if is_separator(line)), len(lines)]
    for start, end in pairwise(starts):
        first = start == 0 and not is_separator(lines[0])
        if start == end:
            continue  # the text begins with a line of dashes: the mistake is that line's
        plain = [i for i in range(start, end) if not lines[i].startswith(_SKIP)]
        begin = start
        if first and _is_mark(lines[start]):
            begin = plain[0] if plain else end
            yield from _marked(lines, start, begin)
        if begin < end:
            marks = [i for i in range(plain[-1] + 1 if plain else begin, end) if _is_mark(lines[i])]
            stop = marks[0] if marks and marks[0] > begin + (not first) else end
            yield begin + 1, list(lines[begin:stop]), False
            yield from _marked(lines, stop, end)


def _marked(lines: Sequence[str], start: int, end: int) -> Iterator[tuple[int, list[str], bool]]:
    marks = [*(i for i in range(start, end) if _is_mark(lines[i])), end]
    for begin, stop in pairwise(marks):
        yield begin + 1, list(lines[begin:stop]), True


def _is_mark(line: str) -> bool:
    return line.startswith(_SKIP) and is_separator(_shown(line))


def _shown(line: str) -> str:
    return line.removeprefix(_SKIP).removeprefix(" ")


def _hidden(line: str) -> str:
    return f"{_SKIP} {line}" if line else _SKIP


def _opened(lines: list[str]) -> tuple[str, list[str]]:
    """The line of dashes above a shot, "" without one, and the other lines."""
    return (lines[0], lines[1:]) if lines and is_separator(lines[0]) else ("", lines)


def _head(lines: Sequence[str]) -> int:
    """How many lines stand above a shot's words: up to the last setting before anything else than a comment."""
    head = 0
    for i, line in enumerate(lines):
        content = content_of(line)
        if SETTING.match(content):
            head = i + 1
        elif content and (not content.startswith("#") or near_miss(content, at_head=True)):
            break
    return head


def _setting_places(lines: Sequence[str]) -> Iterator[int]:
    """Which lines state settings of the shot: those above its prompt."""
    for i, line in enumerate(lines):
        content = content_of(line)
        if SETTING.match(content):
            yield i
        elif TIME.match(content) or not (not content or content.startswith("#") or near_miss(content, at_head=True)):
            return


def _setting_lines(lines: Sequence[str]) -> list[str]:
    return [lines[i] for i in _setting_places(lines)]


def _changed(lines: list[str], edit: CardEdit) -> list[str]:
    if edit.words is not None:
        lines = [*lines[: _head(lines)], *edit.words.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    plain = {name: " ".join(value.split()) for name, value in edit.settings.items()}
    return _with_settings(lines, plain) if plain else lines


def _with_settings(lines: list[str], values: Mapping[str, str]) -> list[str]:
    """The lines with these settings, "" for none; what is stated already is changed in its place."""
    places = list(_setting_places(lines))
    done: set[str] = set()
    changed = {i: _replaced(lines[i], values, done) for i in places}
    new = ", ".join(f"{name}: {value}" for name, value in values.items() if value and name not in done)
    kept = [i for i in places if changed[i]]
    if new and kept and '"' not in lines[kept[0]]:  # behind a quote that is not closed it would be a part of the name
        line = changed[kept[0]]
        end = setting_spans(line)[-1][3]
        changed[kept[0]], new = f"{line[:end]}, {new}{line[end:]}", ""
    rest = [changed.get(i, line) for i, line in enumerate(lines) if changed.get(i, line) or i not in changed]
    return [new, *rest] if new else rest


def _replaced(line: str, values: Mapping[str, str], done: set[str]) -> str:
    """A line of settings with these values, "" where none is left. done: takes the names that are stated now."""
    spans = setting_spans(line)
    kept: list[str] = []
    for (name, begin, value, end), following in zip(spans, [*(span[1] for span in spans[1:]), len(line)]):
        if name not in values:
            kept.append(line[begin:following])
        elif values[name] and name not in done:
            kept.append(line[begin:value] + values[name] + line[end:following])
            done.add(name)
        elif line[end:following].strip():  # what is no setting stays, to be reported
            kept.append(line[end:following])
    if not kept:
        return ""
    return line[: spans[0][1]] + kept[0].lstrip(", ") + "".join(kept[1:])


def _seeded(lines: list[str], seed: int | None, index: int | None) -> list[str]:
    """The lines with their seed stated, where it is not that of the place. index: of the place, None: of no place."""
    stated = any(span[0] == "seed" for line in _setting_lines(lines) for span in setting_spans(line))
    return lines if stated or seed is None or seed == index else _with_settings(lines, {"seed": str(seed)})


def _parts(lines: list[str], edit: CardEdit, index: int) -> Iterable[tuple[list[str], int | None]]:
    """The lines and the seeds of the shots that a card becomes."""
    seed = None if "seed" in edit.settings else edit.seed
    if edit.split is None:
        return [(lines, seed)]
    shot = read_shot(lines, index)
    if shot is None:
        raise StoryboardError("This shot cannot be split before its mistakes are corrected.")
    if not 0 < edit.split < shot.seconds:
        raise StoryboardError(f"A shot of {number(shot.seconds)} s is split inside it, not at {number(edit.split)} s.")
    first, second = _halves(lines, shot, edit.split)
    return [(first, seed), (second, None)]


def _halves(lines: list[str], shot: Shot, at: float) -> tuple[list[str], list[str]]:
    """A shot's lines up to a second, and those of a shot that continues it from there on.

    The second one names no references: it goes on from the frames before it.
    """
    first: list[str] = []
    second: list[str] = []
    now = 0.0
    for line in lines:
        if time := TIME.match(content_of(line)):
            now = read_range(time, 1, 1)[0]
            rest = line[column_of(line) - 1 + time.end() :]
            line = f"[{number(now if now < at else _minus(now, at))}s]{rest}"
        (first if now < at else second).append(line)
    if not any(prompt.at == at for prompt in shot.prompts):
        held = [prompt for prompt in shot.prompts if prompt.at < at][-1]
        second = [*(escape(line, i == 0) for i, line in enumerate(held.text.split("\n"))), *second]
    first = _with_settings(first, {"seconds": number(at), "take": ""})
    return first, [f"seconds: {number(_minus(shot.seconds, at))}, start: continue", *second]


def _minus(one: float, other: float) -> float:
    """The difference of decimal numbers as they are written."""
    return float(Decimal(repr(one)) - Decimal(repr(other)))
