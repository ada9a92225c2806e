"""State planning: exactly S states out of anything (identity T17), and which of them holds when."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from longreel.film.instruction import (
    InstructionError,
    State,
    States,
    chunk_prompt,
    chunk_states,
    fallback_states,
    next_states_prompt,
    parse_states,
    spread_chunks,
    state_at,
    states_prompt,
)

ASK = "lift the lid off the box"
FOUR = [
    "The lid lies on the box.",
    "A hand holds the lid.",
    "The lid is above the box.",
    "The lid lies beside the box.",
]
NUMBERED = "\n".join(f"{number}. {text}" for number, text in enumerate(FOUR, start=1))


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(FOUR),
        f"Here they are:\n```json\n{json.dumps(FOUR, indent=2)}\n```\nI hope this helps [1].",
        json.dumps({"states": FOUR}),
        json.dumps([{"snapshot": number, "state": text} for number, text in enumerate(FOUR)]),
        f"<think>[ignore this list]\n- and that</think>{json.dumps(FOUR)}",
        NUMBERED,
        "Sure!\n" + "\n".join(f"- {text}" for text in FOUR),
        "\n".join(f"**Snapshot {number}:** {text}" for number, text in enumerate(FOUR, start=1)),
        "\n".join(f'{number}) "{text}"' for number, text in enumerate(FOUR, start=1)),
        "\n\n".join(FOUR),
        " ".join(FOUR),
    ],
)
def test_four_states_are_found_however_they_are_written(answer: str):
    states = parse_states(answer, ASK)
    assert not states.fallback
    assert [text.rstrip(".") for text in states.texts] == [text.rstrip(".") for text in FOUR]


@pytest.mark.parametrize(
    ("given", "kept"), [(1, None), (2, [0, 0, 1, 1]), (3, [0, 1, 1, 2]), (5, [0, 1, 3, 4]), (9, [0, 3, 5, 8])]
)
def test_more_are_thinned_and_fewer_repeated_with_first_and_last_kept(given: int, kept: list[int] | None):
    texts = [f"The lid is at place {number}." for number in range(given)]
    states = parse_states(json.dumps(texts), ASK)
    assert len(states.states) == 4
    assert states.fallback is (kept is None)
    if kept:
        # 3 to 4: places 0, 2/3, 4/3, 2, rounded
        assert list(states.texts) == [texts[place] for place in kept]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "fewer than two"),
        ("I am sorry, I cannot help with that", "fewer than two"),
        ("[]", "fewer than two"),
        ("[[[[", "fewer than two"),
        ('["open", "shut the lid now", "the lid is open"]', "three words"),
        ('["The lid is shut.", "the lid is shut."]', "say the same"),
        ('["A cat sits there.", "A dog runs away."]', "No state mentions"),
        ("As a language model I cannot see. Please describe what is there. Then I can answer.", "No state mentions"),
    ],
)
def test_an_answer_that_is_none_falls_back_to_the_instruction_and_says_why(answer: str, reason: str):
    states = parse_states(answer, ASK)
    assert states.fallback
    assert states.texts == (ASK,) * 4
    assert reason in states.reason


def test_states_written_by_hand_are_taken_as_they_are():
    assert parse_states("shut\nopen", ASK, 2, strict=False).texts == ("shut", "open")
    assert parse_states("open", ASK, 2, strict=False).texts == ("open", "open")
    assert parse_states("\n \n", ASK, 2, strict=False).fallback


def test_times_actors_and_camera_are_kept_where_they_make_sense():
    rows = [
        {"state": text, "time": f"{second} s", "actors": ["hand", 3], "camera": "pans left"}
        for second, text in enumerate(FOUR)
    ]
    states = parse_states(json.dumps({"done": True, "states": rows}), ASK)
    assert states.done
    assert states.times() == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert states.states[0] == State(FOUR[0], 0.0, ("hand",), "pans left")
    assert states.states[0].prompt == "The lid lies on the box. Camera: pans left."
    falling = parse_states(json.dumps([{"state": text, "time": -at} for at, text in enumerate(FOUR)]), ASK)
    assert all(state.at is None for state in falling.states)
    assert falling.times() == pytest.approx((0, 1 / 3, 2 / 3, 1))


def test_words_are_counted_in_scripts_without_spaces():
    shut, opened = "\u76d2\u5b50\u5173\u7740", "\u76d2\u5b50\u5f00\u4e86"
    states = parse_states(json.dumps([shut, opened]), "\u6253\u5f00\u76d2\u5b50", 2)
    assert states.texts == (shut, opened)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["state", "text", "time", "at", "actors", "camera", "done", "states", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
pieces = st.sampled_from(["[", "]", '"', "{", "}", "\n", "1. ", "- ", "Snapshot 2:", "The lid is up. ", "\ud800", "\\",
                          "</think>", "```", ":", ",", "lid", "1e999", "[" * 5000])  # fmt: skip
answers = st.one_of(
    st.text(max_size=80),
    json_values.map(json.dumps),
    st.lists(pieces, max_size=12).map("".join),
)


@given(answers, st.text(max_size=20), st.integers(1, 32), st.booleans())
@example("[" * 100_000, ASK, 4, True)
@example('{"state": "' + "x" * 100_000, ASK, 4, False)
@example("[" + "9" * 5000 + "]", ASK, 4, True)
@example('["\\ud800 the lid", "the lid up"]', ASK, 4, True)
def test_any_answer_gives_exactly_so_many_states_and_never_an_error(answer: str, ask: str, count: int, strict: bool):
    states = parse_states(answer, ask, count, strict=strict)
    assert len(states.states) == count
    for state in states.states:
        assert state.text.strip()
        assert state.text == " ".join(state.text.split())
        state.text.encode("utf-8")
    times = states.times()
    assert all(0 <= at <= 1 for at in times)
    assert list(times) == sorted(times)
    if states.fallback:
        assert len(set(states.texts)) == 1
        assert states.reason


sentences = st.lists(st.sampled_from(["the", "lid", "box", "hand", "lies", "open"]), min_size=3, max_size=6)


@given(
    st.lists(sentences.map(" ".join), min_size=2, max_size=8),
    st.lists(st.floats(0, 1), min_size=8, max_size=8).map(sorted),
    st.sampled_from([(), ("hand",), ("hand", "lid")]),
    st.sampled_from(["", "pans left"]),
)
def test_both_written_forms_read_back_the_same(texts: list[str], times: list[float], actors: tuple, camera: str):
    made = States(ASK, tuple(State(text, at, actors, camera) for text, at in zip(texts, times)))
    assert parse_states(made.to_json(), ASK, len(texts), strict=False) == made
    assert parse_states(made.to_text(), ASK, len(texts), strict=False).texts == made.texts


def test_prompts_quote_the_instruction_and_ask_for_the_number():
    asked = states_prompt('open the {box} "now".', 3)
    assert '"open the box now".' in asked
    assert "{" not in asked
    assert "JSON list of 3 strings" in asked
    assert '"camera"' in states_prompt(ASK, 3, "timed")
    following = next_states_prompt(ASK, 4, 2, 3, before="The lid is up.")
    assert "number 2 of 3" in following
    assert '"The lid is up".' in following


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: states_prompt("  "), "instruction is empty"),
        (lambda: states_prompt(ASK, 0), "from 1 to 32"),
        (lambda: parse_states("", ASK, 33), "from 1 to 32"),
        (lambda: fallback_states(ASK, 0), "from 1 to 32"),
        (lambda: next_states_prompt(ASK, 4, 3, 2), "count from 1"),
        (lambda: spread_chunks(64, 16, 16), "fewer than the chunk"),
        (lambda: spread_chunks(64, 16, 0), "at least 1"),
        (lambda: chunk_states(fallback_states(ASK), 2, 2, 4), "does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(call, message: str):
    with pytest.raises(InstructionError, match=message):
        call()


def test_a_state_holds_from_halfway_to_the_one_before():
    times = (0.0, 0.5, 1.0)
    assert [state_at(times, moment) for moment in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [0, 0, 1, 1, 1, 2, 2]
    assert state_at((0.3,), 0.9) == 0


@given(st.integers(1, 400), st.integers(2, 40), st.data())
def test_chunks_are_enough_and_none_too_many(frames: int, chunk: int, data: st.DataObject):
    known = data.draw(st.integers(1, chunk - 1))
    parts = spread_chunks(frames, chunk, known)
    assert known + parts * (chunk - known) >= frames
    assert parts == 1 or known + (parts - 1) * (chunk - known) < frames


def test_a_plan_of_the_whole_clip_is_shared_among_its_chunks():
    states = parse_states(json.dumps(FOUR), ASK)
    shared = [[FOUR.index(state.text) for state in chunk_states(states, part, 2, 3)] for part in range(2)]
    assert shared == [[0, 1, 2], [2, 2, 3]]


def test_a_chunk_is_prompted_with_instruction_and_states_and_says_nothing_twice():
    states = parse_states(json.dumps(FOUR[:2]), ASK)
    assert chunk_prompt(ASK, states.states) == f"{ASK}. {FOUR[0]} {FOUR[1]}"
    assert chunk_prompt(ASK, fallback_states(ASK).states) == f"{ASK}."
