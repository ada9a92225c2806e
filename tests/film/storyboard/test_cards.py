"""Cards of a storyboard's text: what is not changed stays to the letter, and a change is what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from longreel.film.storyboard.cards import Card, CardEdit, read_cards, write_cards
from longreel.film.storyboard.grammar import is_separator
from longreel.film.storyboard.text import (
    Shot,
    StoryboardError,
    TimedPrompt,
    format_storyboard,
    parse_storyboard,
    storyboard_faults,
)

from .test_text import TRAPS, lines, storyboards

SKIPPED = ["#| ---", "#| seconds: 3", "#| A bear.", "#|", "#|  ---"]
any_text = st.lists(st.one_of(lines, st.sampled_from([*TRAPS, *SKIPPED, "---"])), max_size=12).map("\n".join)
noise = st.lists(st.sampled_from(["# a comment", "", "  ", "\t", "#"]), max_size=2)


@st.composite
def written(draw: st.DrawFn) -> str:
    """A valid text with comments, blank lines and longer separators."""
    text: list[str] = []
    for line in format_storyboard(draw(storyboards)).split("\n"):
        if line == "---":
            line = draw(st.sampled_from(["---", "-----", "  --- "]))
        elif line.startswith("seconds: "):
            text += draw(noise)
        text.append(line)
    return "\n".join([*text, *draw(noise)])


def edits(cards: tuple[Card, ...]) -> list[CardEdit]:
    return [CardEdit(card.text, card.seed, card.skipped) for card in cards]


def shots(text: str) -> tuple[Shot, ...]:
    return parse_storyboard(text).shots


@settings(max_examples=150)
@given(any_text)
@example("A\n---")
@example("A\n---\n---\nB")
@example("#| ---\n#| A\nB\n#| ---\n#| C\n---\n#| ---\n#| D\n#| ---\n#| E")
def test_what_is_not_changed_stays_to_the_letter(text: str):
    cards = read_cards(text)
    assert [fault.args for card in cards for fault in card.faults] == [each.args for each in storyboard_faults(text)]
    back = write_cards(edits(cards))
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    active = [card for card in cards if not card.skipped]
    # A line of dashes above the first shot is a mistake, which goes.
    assert back == plain or is_separator(active[0].text.split("\n")[0])
    if not storyboard_faults(text):
        assert back == plain
        assert tuple(card.shot for card in cards if not card.skipped) == shots(text)


@settings(max_examples=40)
@given(written(), st.randoms(use_true_random=False))
def test_a_moved_shot_keeps_all_that_it_says(text: str, random: Any):
    cards = list(read_cards(text))
    random.shuffle(cards)
    moved = write_cards(edits(tuple(cards)))
    assert shots(moved) == tuple(card.shot for card in cards)
    assert moved.count("# a comment") == text.count("# a comment")


@settings(max_examples=40)
@given(written(), st.data())
def test_a_setting_changes_alone(text: str, data: st.DataObject):
    cards = read_cards(text)
    chosen = data.draw(st.integers(0, len(cards) - 1))
    shot = cards[chosen].shot
    assert shot is not None
    longer = shot.seconds + 1 if shot.seconds < 80_000 else shot.seconds
    wanted = {
        "seconds": (repr(longer), longer),
        "seed": ("12345678901234567890", 12345678901234567890),
        "start": ("continue", "continue"),
        "references": ('a.png; "b, c.png"', ("a.png", "b, c.png")),
        "take": ("", ""),
    }
    names = data.draw(st.lists(st.sampled_from(sorted(wanted)), unique=True))
    asked = edits(cards)
    asked[chosen] = replace(asked[chosen], settings={name: wanted[name][0] for name in names})
    changed = write_cards(asked)
    expected = [card.shot for card in cards]
    expected[chosen] = replace(shot, **{name: wanted[name][1] for name in names})
    assert shots(changed) == tuple(expected)
    assert changed.count("# a comment") == text.count("# a comment")
    before, after = read_cards(text), read_cards(changed)
    assert [card.words for card in before] == [card.words for card in after]


@settings(max_examples=40)
@given(written(), st.data())
def test_skipped_shots_are_passed_over_and_come_back(text: str, data: st.DataObject):
    cards = read_cards(text)
    skip = data.draw(st.lists(st.booleans(), min_size=len(cards), max_size=len(cards)))
    less = write_cards([replace(edit, skipped=out) for edit, out in zip(edits(cards), skip)])
    rest = tuple(card.shot for card, out in zip(cards, skip) if not out)
    if rest:
        assert shots(less) == rest
    again = read_cards(less)
    assert [card.skipped for card in again] == skip
    back = write_cards([replace(edit, skipped=False) for edit in edits(again)])
    assert shots(back) == tuple(card.shot for card in cards)


@settings(max_examples=40)
@given(written(), st.data())
def test_two_halves_are_the_shot(text: str, data: st.DataObject):
    cards = read_cards(text)
    chosen = data.draw(st.integers(0, len(cards) - 1))
    whole = cards[chosen].shot
    assert whole is not None
    starts = [prompt.at for prompt in whole.prompts[1:]]
    at = data.draw(st.sampled_from([*starts, whole.seconds / 2, whole.seconds / 8]))
    asked = edits(cards)
    asked[chosen] = replace(asked[chosen], split=at)
    first, second = shots(write_cards(asked))[chosen : chosen + 2]
    assert first == replace(whole, seconds=at, take="", prompts=tuple(each for each in whole.prompts if each.at < at))
    assert second.start == "continue"
    assert first.seconds + second.seconds == pytest.approx(whole.seconds)
    held = [each.text for each in whole.prompts if each.at <= at][-1]
    assert [each.text for each in second.prompts] == [held, *(each.text for each in whole.prompts if each.at > at)]
    others = shots(write_cards(asked))
    assert others[:chosen] + others[chosen + 2 :] == tuple(card.shot for i, card in enumerate(cards) if i != chosen)


def test_a_split_keeps_lines_and_comments():
    text = "seconds: 9, references: a.png\n# one\n[0-4s] A fox.\n# two\n[4s-9s] It runs.\n# three\nFast."
    asked = edits(read_cards(text))
    assert write_cards([replace(asked[0], split=4)]) == (
        "seconds: 4, references: a.png\n# one\n[0s] A fox.\n# two\n---\nseconds: 5, start: continue\n[0s] It runs.\n"
        "# three\nFast."
    )
    assert shots(write_cards([replace(asked[0], split=6)]))[1].prompts == (TimedPrompt(0, "It runs.\nFast."),)
    for at in (0, 9):
        with pytest.raises(StoryboardError, match="inside it"):
            write_cards([replace(asked[0], split=at)])
    with pytest.raises(StoryboardError, match="mistakes"):
        write_cards([CardEdit("sec: 4", split=1)])


@pytest.mark.parametrize(
    ("text", "values", "changed"),
    [
        ("A fox.", {"seconds": "4"}, "seconds: 4\nA fox."),
        ("# My film\n\nA fox.", {"seed": "3"}, "seed: 3\n# My film\n\nA fox."),
        ("# Mine\nseed : 3 , seconds: 4s\nA fox.", {"seconds": "0:05"}, "# Mine\nseed : 3 , seconds: 0:05\nA fox."),
        ("seed: 3\nseconds: 4\nA fox.", {"seed": ""}, "seconds: 4\nA fox."),
        ("seed: 3, seconds: 4\nA fox.", {"seed": ""}, "seconds: 4\nA fox."),
        ("seconds: five, seed: 3\nA fox.", {"seconds": "5"}, "seconds: 5, seed: 3\nA fox."),
        ("seconds: 4, seconds: 5\nA fox.", {"seconds": "6"}, "seconds: 6\nA fox."),
        ("seconds: 4, fps: 24\nA fox.", {"seconds": "6"}, "seconds: 6, fps: 24\nA fox."),
        ("seconds: 4\nA fox.", {"references": "a.png;\nb.png"}, "seconds: 4, references: a.png; b.png\nA fox."),
        ('references: "a, seed: 1.png"\nA.', {"seed": "2"}, 'seed: 2\nreferences: "a, seed: 1.png"\nA.'),
        ("sec: 4\nseconds: 4\nA fox.", {"seconds": "6"}, "sec: 4\nseconds: 6\nA fox."),
        ("A fox.\nseconds: 5", {"seconds": "6"}, "seconds: 6\nA fox.\nseconds: 5"),
        ("seconds\uff1a5\uff0cseed\uff1a3\nA.", {"seconds": "6"}, "seconds\uff1a6\uff0cseed\uff1a3\nA."),
    ],
)  # fmt: skip
def test_settings_are_written_where_they_stand(text: str, values: dict[str, str], changed: str):
    assert write_cards([CardEdit(text, settings=values)]) == changed


def test_words_stand_below_the_settings():
    text = "# Mine\nseconds: 4\n# note\nA fox.\n[2s] It runs.\n---\nA bear."
    one, two = read_cards(text)
    assert (one.words, two.words) == ("# note\nA fox.\n[2s] It runs.", "A bear.")
    assert one.settings == {"seconds": "4"}
    asked = edits((one, two))
    asked[0] = replace(asked[0], words="A cat.\n---\nA dog.")
    assert write_cards(asked) == "# Mine\nseconds: 4\nA cat.\n---\nA dog.\n---\nA bear."
    assert [card.words for card in read_cards("sec: 4\nseed: 3\nA fox.")] == ["sec: 4\nseed: 3\nA fox."]


def test_new_shots_duplicates_and_deleted_ones():
    one, two, three = edits(read_cards("A.\n---\nB.\n---\nC."))
    assert write_cards([one, CardEdit("", words="New."), two, three]) == (
        "A.\n---\nNew.\n---\nseed: 1\nB.\n---\nseed: 2\nC."
    )
    assert write_cards([one, replace(one, settings={"take": ""}), two]) == "A.\n---\nseed: 0\nA.\n---\nseed: 1\nB."
    assert write_cards([three]) == "seed: 2\nC."
    assert write_cards([]) == ""
    assert read_cards("")[0].faults[0].line == 1
