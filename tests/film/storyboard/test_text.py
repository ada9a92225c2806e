"""The storyboard's grammar: round trips, escapes, defaults, and errors that name their place."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from longreel.film.storyboard.text import (
    MAX_SEED,
    Shot,
    Storyboard,
    StoryboardError,
    TimedPrompt,
    format_shot,
    format_storyboard,
    parse_shot,
    parse_storyboard,
)

# Pieces that could be taken for something else than text, next to arbitrary characters.
TRAPS = [
    "---", "-----", " --- ", "#", "# no comment", "seconds: 5", "seed: 3, start: cut", "Start : continue",
    "references:", "second: 5", "seeds: 1", "[2.5s]", "[0:02]", "[3] x", "[2,5s] y", "[16:9]", "\\---", "\\\\# two",
    "\\(as is\\)", "\\  ---", "\\", "", "  ", "\u2028---",
    "Night: rain", "a\u0085b", "\ufeffseed: 1", "\u017fecond: 1", "  seed: 4  ",
    "a  ", "\t[1s]\t", "[ 1 s ]", "\x00", "\x1c#",
]  # fmt: skip
characters = st.characters(exclude_categories=("Cs",))
lines = st.one_of(st.sampled_from(TRAPS), st.text(characters, max_size=12), st.text("\\#-[]:s ed1.2", max_size=8))
texts = st.lists(lines, min_size=1, max_size=5).map("\n".join).filter(str.strip)
ODD_NAMES = ['a, "b"; c', " x ", "C:\\a.png", "a\tb", "seed: 1"]
names = st.one_of(st.text(characters, min_size=1, max_size=8), st.sampled_from(ODD_NAMES))


@st.composite
def shots(draw: st.DrawFn) -> Shot:
    seconds = draw(st.floats(min_value=1e-300, max_value=86_400))
    times = st.floats(min_value=0, exclude_min=True, max_value=seconds, exclude_max=True)
    later = draw(st.lists(times, max_size=3, unique=True))
    return Shot(
        prompts=tuple(TimedPrompt(at, draw(texts)) for at in [0.0, *sorted(later)]),
        seconds=seconds,
        seed=draw(st.one_of(st.integers(0, 3), st.integers(0, MAX_SEED))),
        start=draw(st.sampled_from(["cut", "continue"])),
        references=tuple(draw(st.lists(names.filter(str.strip), max_size=3))),
        take=draw(st.sampled_from(["", "3f2a9c1b", "0" * 64])),
    )


storyboards = st.lists(shots(), min_size=1, max_size=4).map(lambda items: Storyboard(tuple(items)))


@settings(max_examples=400, deadline=None)
@given(storyboards)
@example(Storyboard((Shot((TimedPrompt(0, "x"), TimedPrompt(1, "a  \nb"))),)))
def test_text_gives_back_the_same_value_and_formatting_is_canonical(storyboard: Storyboard) -> None:
    text = format_storyboard(storyboard)
    assert parse_storyboard(text) == storyboard
    assert format_storyboard(parse_storyboard(text)) == text
    assert parse_storyboard("\n\n" + text.replace("\n", "\r\n") + "\r\n \r\n") == storyboard


@settings(max_examples=100, deadline=None)
@given(shots())
def test_one_shot_round_trips_in_the_same_grammar(shot: Shot) -> None:
    assert parse_shot(format_shot(shot)) == shot
    assert parse_storyboard(format_shot(shot)).shots == (shot,)


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=8).map("\n".join))
def test_any_text_is_either_read_stably_or_refused_with_a_place(text: str) -> None:
    result = attempt(text)
    if isinstance(result, Storyboard):
        assert parse_storyboard(format_storyboard(result)) == result
        return
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert result.line is not None
    assert result.column is not None
    assert 1 <= result.line <= len(rows)
    assert 1 <= result.column <= len(rows[result.line - 1]) + 1
    assert result.message.endswith(".")


def attempt(text: str) -> Storyboard | StoryboardError:
    try:
        return parse_storyboard(text)
    except StoryboardError as error:
        return error


def test_the_whole_grammar_in_one_text() -> None:
    text = """# A film
seconds: 10, seed: 3
# inside a head

A red robot walks.

It is early morning.
# dropped, and leaves no blank line
It rains.
[4.5s] The robot stops.
\\--- is a line of dashes
\\---
\\(kept\\)
[0:07] # is text after a time
 ----
SECONDS: 0:05
start: continue, references: robot.png; "a, b.png";c d.png
The robot walks on.
---
Plain."""
    assert parse_storyboard(text).shots == (
        Shot(
            (
                TimedPrompt(0, "A red robot walks.\n\nIt is early morning.\nIt rains."),
                TimedPrompt(4.5, "The robot stops.\n\\--- is a line of dashes\n---\n\\(kept\\)"),
                TimedPrompt(7, "# is text after a time"),
            ),
            seconds=10,
            seed=3,
        ),
        Shot((TimedPrompt(0, "The robot walks on."),), 5, 1, "continue", ("robot.png", "a, b.png", "c d.png")),
        Shot((TimedPrompt(0, "Plain."),), 5, 2, "cut"),
    )


def test_the_canonical_text_is_short_and_states_lengths() -> None:
    text = "A cat.\n---\nstart:continue,seed: 1\nIt sits.\n[2s]\nIt\n\nsleeps.\n---\nseed:1\nseed\n"
    assert format_storyboard(parse_storyboard(text)) == (
        "seconds: 5\nA cat.\n---\nseconds: 5, start: continue\nIt sits.\n[2s] It\n\nsleeps.\n"
        "---\nseconds: 5, seed: 1\nseed"
    )


def test_the_seed_of_one_shot_changes_that_of_no_other() -> None:
    assert [shot.seed for shot in parse_storyboard(f"seed: {MAX_SEED}\na\n---\nb").shots] == [MAX_SEED, 1]
    assert [shot.seed for shot in parse_storyboard("a\n---\nseed: 7\nb\n---\nc").shots] == [0, 7, 2]


def test_a_take_is_named_by_its_digits() -> None:
    (shot,) = parse_storyboard("take: 3F2A9C1B, seconds: 2\nA cat.").shots
    assert (shot.take, shot.seconds) == ("3f2a9c1b", 2)
    for wrong in ("3f2a", "3f2a9c1g", "f" * 65, "newest"):
        with pytest.raises(StoryboardError, match="8 digits or more") as caught:
            parse_storyboard(f"seconds: 2, take: {wrong}\nA cat.")
        assert (caught.value.line, caught.value.column) == (1, 19)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, 1, "empty"),
        ("# only a comment\n\n", 1, 1, "empty"),
        ("---\nA cat.", 1, 1, "no prompt"),
        ("A cat.\n---\n\n---\nA dog.", 2, 1, "no prompt"),
        ("A cat.\n---\n", 2, 1, "no prompt"),
        ("seconds: 5", 1, 1, "no prompt"),
        ("seconds: 0\nA cat.", 1, 10, "lasts 0 s"),
        ("seconds: 86401\nA cat.", 1, 10, "86400"),
        ("  seed: 1, seconds: five\nA cat.", 1, 21, "length of time"),
        ("seconds: -1\nA cat.", 1, 10, "length of time"),
        ("seed: -1\nA cat.", 1, 7, "whole number"),
        ("seed: 18446744073709551616\nA cat.", 1, 7, "whole number"),
        ("start: fade\nA cat.", 1, 8, "cut or continue"),
        ("seed: 1, seed: 2\nA cat.", 1, 10, "twice"),
        ("seed: 1\nseed: 2\nA cat.", 2, 1, "twice"),
        ("seed: 1, speed: 2\nA cat.", 1, 10, "no setting `speed`"),
        ("second: 4\nA cat.", 1, 1, "write `seconds`"),
        ("references: a.png, b.png\nA cat.", 1, 20, "semicolons"),
        ("references: a;;b\nA cat.", 1, 15, "no name"),
        ('references: "a\nA cat.', 1, 13, "quote"),
        ('references: "a" b\nA cat.', 1, 17, "expected after"),
        ('references: a"b\nA cat.', 1, 13, "double quotes"),
        ("references: a\tb\nA cat.", 1, 13, "double quotes"),
        ('references: "\\ud800"\nA cat.', 1, 13, "surrogate"),
        ("A cat\n and \ud800.", 1, 1, "surrogate"),
        ("A cat.\nseed: 3", 2, 1, "above the prompt"),
        ("[1s] A cat.", 1, 1, "from 0 s on"),
        ("A cat.\n  [2,5s] It sits.", 2, 4, "not a time"),
        ("A cat.\n[3] It sits.", 2, 2, "not a time"),
        ("A cat.\n[500ms] It sits.", 2, 2, "not a time"),
        ("A cat.\n[0:75] It sits.", 2, 2, "not a time"),
        ("A cat.\n[2s] It sits.\n[2s] It runs.", 3, 1, "order"),
        ("A cat.\n[5s] It sits.", 2, 1, "lasts 5 s"),
        ("A cat.\n[2s]\n\n[3s] It sits.", 2, 1, "No prompt follows"),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(StoryboardError) as caught:
        parse_storyboard(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert words in caught.value.message
    assert str(caught.value).startswith(f"Line {line}, column {column}: ")


def test_a_text_of_one_shot_refuses_a_second() -> None:
    with pytest.raises(StoryboardError, match=r"Line 2, column 2: .*another shot"):
        parse_shot("A cat.\n ---\nA dog.")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TimedPrompt(0, " \n"), "empty"),
        (lambda: TimedPrompt(float("nan"), "x"), "time from 0"),
        (lambda: TimedPrompt(-1, "x"), "time from 0"),
        (lambda: Shot(()), "no prompt"),
        (lambda: Shot((TimedPrompt(1, "x"),)), "from 0 s on"),
        (lambda: Shot((TimedPrompt(0, "x"),), seconds=0), "lasts 0 s"),
        (lambda: Shot((TimedPrompt(0, "x"),), seconds=float("nan")), "lasts NaN s"),
        (lambda: Shot((TimedPrompt(0, "x"),), seed=-1), "whole number"),
        (lambda: Shot((TimedPrompt(0, "x"),), start="fade"), "cut or continue"),  # type: ignore[arg-type]
        (lambda: Shot((TimedPrompt(0, "x"),), references=(" ",)), "no name"),
        (lambda: Storyboard(()), "empty"),
    ],
)
def test_values_are_valid_by_construction(make: object, words: str) -> None:
    with pytest.raises(StoryboardError, match=words) as caught:
        make()  # type: ignore[operator]
    assert caught.value.line is None


def test_the_length_of_a_film() -> None:
    assert parse_storyboard("seconds: 0.1\na\n---\nseconds: 0.2\nb").seconds == pytest.approx(0.3)
