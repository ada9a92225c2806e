"""Storyboards from JSON, JSON lines and files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.storyboard.cards import read_cards
from longreel.film.storyboard.text import (
    Shot,
    Storyboard,
    StoryboardError,
    TimedPrompt,
    format_storyboard,
    from_json,
    from_jsonl,
    parse_storyboard,
    read_storyboards,
    to_json,
)

EXAMPLE = Path(__file__).parent / "data" / "interactive_example.jsonl"

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)
items = st.tuples(texts, st.floats(0.5, 9), st.integers(0, 2**64 - 1), st.lists(texts, max_size=2))


@settings(max_examples=100, deadline=None)
@given(st.lists(items, min_size=1, max_size=3))
def test_json_gives_back_the_same_value(parts: list[tuple[str, float, int, list[str]]]) -> None:
    storyboard = Storyboard(
        tuple(
            Shot((TimedPrompt(0, text), TimedPrompt(0.25, text[::-1])), seconds, seed, "continue", tuple(names))
            for text, seconds, seed, names in parts
        )
    )
    assert from_json(to_json(storyboard)) == storyboard


def test_short_forms_and_default_seeds() -> None:
    timed = '{"prompts": [{"text": "A hen."}, {"at": 2, "text": "It sits."}]}'
    text = '{"shots": ["A cat.", {"prompts": "A dog.", "seed": 7}, ' + timed + "]}"
    assert from_json(text).shots == (
        Shot((TimedPrompt(0, "A cat."),)),
        Shot((TimedPrompt(0, "A dog."),), seed=7),
        Shot((TimedPrompt(0, "A hen."), TimedPrompt(2, "It sits.")), seed=2),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"shots": [}', r"^Line 1, column 12: .*not JSON"),
        ('{"shots":\n ["a",\n', r"^Line 3, column 1: .*not JSON"),
        ("[]", "list of shots"),
        ('{"shots": []}', "empty"),
        ('{"shots": [3]}', r"shots\[0\] is not a shot"),
        ('{"shots": ["a", {"prompts": "b", "second": 4}]}', r'shots\[1\] has no setting "second"'),
        ('{"shots": [{"seconds": 4}]}', r"shots\[0\]\.prompts is missing"),
        ('{"shots": [{"prompts": [{"at": 0}]}]}', r"shots\[0\]\.prompts\[0\] is not a prompt"),
        ('{"shots": [{"prompts": []}]}', r"shots\[0\]: .*no prompt"),
        ('{"shots": [{"prompts": " "}]}', r"shots\[0\]: .*empty"),
        ('{"shots": [{"prompts": "a", "seconds": "4"}]}', r"shots\[0\]\.seconds is not a number"),
        ('{"shots": [{"prompts": "a", "seconds": 1' + "0" * 400 + "}]}", r"shots\[0\]\.seconds is not a number"),
        ('{"shots": [{"prompts": "a", "seconds": NaN}]}', r"shots\[0\]: .*lasts NaN"),
        ('{"shots": [{"prompts": "a", "seed": true}]}', r"shots\[0\]\.seed"),
        ('{"shots": [{"prompts": "a", "seed": ' + "9" * 5000 + "}]}", "cannot be read"),
        ('{"shots": [{"prompts": "a", "start": ["cut"]}]}', "cut or continue"),
        ('{"shots": [{"prompts": "a", "references": "b"}]}', r"shots\[0\]\.references"),
        ('{"shots": [{"prompts": "\\ud800"}]}', "surrogate"),
        ('{"longreel_storyboard": 2, "shots": ["a"]}', "newer Longreel"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_json_errors_say_where_and_what(text: str, words: str) -> None:
    with pytest.raises(StoryboardError, match=words):
        from_json(text)


def test_the_example_file_gives_one_continuous_take_a_line() -> None:
    stories = read_storyboards(EXAMPLE, seconds_per_prompt=10)
    assert len(stories) == 2
    for story in stories:
        assert [shot.start for shot in story.shots] == ["cut", "continue", "continue"]
        assert [shot.seed for shot in story.shots] == [0, 1, 2]
        assert story.seconds == 30
        assert parse_storyboard(format_storyboard(story)) == story
        assert from_json(to_json(story)) == story
    assert stories[0].shots[0].prompts[0].text.startswith("A beekeeper in her 40s")


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        ("\n\n", 1, 1),
        ('{"prompts": ["a"]}\n\n{"prompts": []}', 3, 1),
        ('{"prompts": ["a", 3]}', 1, 1),
        ('{"prompts": ["a"]}\n{"prompts": ["a"', 2, 17),
        ('{"prompts": ["a", ""]}', 1, 1),
    ],
)
def test_jsonl_errors_name_the_line(text: str, line: int, column: int) -> None:
    with pytest.raises(StoryboardError) as caught:
        from_jsonl(text, 5)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_file_is_read_by_its_name_and_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    story = parse_storyboard("seconds: 3\nA caf\u00e9.\n---\nA dog.")
    for name, text in [("a.txt", format_storyboard(story)), ("a.JSON", to_json(story))]:
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_storyboards(tmp_path / name) == (story,)
    (tmp_path / "latin.txt").write_bytes(b"A caf\xe9.")
    with pytest.raises(StoryboardError, match="UTF-8"):
        read_storyboards(tmp_path / "latin.txt")
    with pytest.raises(StoryboardError, match="cannot be read: No such file"):
        read_storyboards(tmp_path / "absent.txt")


def test_what_the_documentation_shows_is_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "storyboard.md").read_text(encoding="utf-8")
    first, escapes, skipped, error, in_json = (block for _, block in re.findall(r"``(\w*)\n(.*?)\n``", page, re.DOTALL))
    robot, on, tree = parse_storyboard(first).shots
    assert [prompt.at for prompt in robot.prompts] == [0, 4.5]
    assert (on.start, on.seed) == ("continue", 1)
    assert tree.references == ("robot.png", "a forest, at dawn.png")
    (words,) = parse_storyboard(escapes).shots[0].prompts
    assert words.text.split("\n")[:2] == ["---", "# a number sign"]
    assert words.text.split("\n")[-1].startswith("\\(parentheses\\)")
    with pytest.raises(StoryboardError, match=f"^{re.escape(error)}$"):
        parse_storyboard("A cat.\n[2,5s] It sits.")
    assert [shot.prompts[0].text for shot in parse_storyboard(skipped).shots] == ["A robot walks."]
    assert [card.skipped for card in read_cards(skipped)] == [False, True]
    assert len(from_json(in_json).shots) == 3
