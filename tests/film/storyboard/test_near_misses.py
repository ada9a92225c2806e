"""What only looks like the grammar is read where its meaning is plain, and otherwise refused where it stands: no
setting and no separator is ever filmed as words.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.storyboard.text import (
    StoryboardError,
    TimedPrompt,
    format_storyboard,
    parse_storyboard,
    read_storyboards,
    storyboard_faults,
)

WRONG = {
    # settings by other names, and lines that are none
    "sec: 4\nA fox.": (1, "`sec`: write `seconds`"),
    "duration: 5\nA fox.": (1, "write `seconds`"),
    "Duration : 5s\nA fox.": (1, "write `seconds`"),
    "length: 5\nA fox.": (1, "write `seconds`"),
    "second: 4\nA fox.": (1, "write `seconds`"),
    "seeds: 4\nA fox.": (1, "write `seed`"),
    "refrences: a.png\nA fox.": (1, "write `references`"),
    "camera: pan left\nA fox.": (1, "`camera`"),
    "style: noir\nA fox.": (1, "`style`"),
    "negative: blurry\nA fox.": (1, "`negative`"),
    "fps: 24\nA fox.": (1, "`fps`"),
    "prompt: A fox.": (1, "`prompt`"),
    "seconds: 4\nlora: x\nA fox.": (2, "`lora`"),
    "seconds: 4, fps: 24\nA fox.": (1, "`fps`"),
    "duration:5\nA fox.": (1, "write `seconds`"),
    # labels and headings
    "Shot 1:\nA fox.": (1, "no label"),
    "Shot 1: A fox.": (1, "no label"),
    "shot #2 - A fox.": (1, "no label"),
    "Scene 3.\nA fox.": (1, "no label"),
    "Take 2)\nA fox.": (1, "no label"),
    "A fox.\nShot 2: A bear.": (2, "no label"),
    "\u955c\u5934 2\uff1aA fox.": (1, "no label"),
    "## Shot 1\nA fox.": (1, "heading"),
    "### The forest\nA fox.": (1, "heading"),
    "A fox.\n# Shot 2\nA bear.": (2, "heading"),
    # separators that only look like one
    "A fox.\n--\nA bear.": (2, "three dashes"),
    "A fox.\n***\nA bear.": (2, "three dashes"),
    "A fox.\n* * *\nA bear.": (2, "three dashes"),
    "A fox.\n- - -\nA bear.": (2, "three dashes"),
    "A fox.\n___\nA bear.": (2, "three dashes"),
    "A fox.\n===\nA bear.": (2, "three dashes"),
    "A fox.\n~~~\nA bear.": (2, "three dashes"),
    "A fox.\n+++\nA bear.": (2, "three dashes"),
    "A fox.\n\u2014\nA bear.": (2, "three dashes"),
    "A fox.\n\u2014\u2014\u2014\nA bear.": (2, "three dashes"),
    "A fox.\n\u2013\u2013\nA bear.": (2, "three dashes"),
    "A fox.\n\u2500\u2500\u2500\nA bear.": (2, "three dashes"),
    "A fox. |\nA bear. |\nA cat.": (1, "bar"),
    "| A fox.": (1, "bar"),
    # times
    "A fox.\n[2s it runs]": (2, "square brackets"),
    "A fox.\n[0:02 It runs.]": (2, "square brackets"),
    "A fox.\n[2s: It runs.": (2, "square brackets"),
    "A fox.\n(2s) It runs.": (2, "square brackets"),
    "A fox.\n{0:02} It runs.": (2, "square brackets"),
    "A fox.\n2s: It runs.": (2, "square brackets"),
    "A fox.\n0:02 It runs.": (2, "square brackets"),
    "A fox.\n2.5s - It runs.": (2, "square brackets"),
    "A fox.\n[2,5s] It runs.": (2, "is not a time"),
    "A fox.\n[3] It runs.": (2, "is not a time"),
    "seconds: 20\nA fox.\n[0:10-0:15] It runs.": (3, "ends at 15 s but the shot ends at 20 s"),
    "seconds: 20\nA fox.\n[5s-12s] It runs.\n[10s] It sleeps.": (3, "next prompt starts at 10 s"),
    "[0:00-0:05] A fox.\n[0:07] It runs.\nseconds: 20": (3, "Settings stand above"),
    "A fox.\n[ 0 : 10 ] It runs.": (2, "square brackets"),
    "A fox.\n[at 10s] It runs.": (2, "square brackets"),
    "A fox.\n[f48] It runs.": (2, "square brackets"),
    "A fox.\n[50%] It runs.": (2, "square brackets"),
    # what other programs make of a line
    "--- Shot 2\nA fox.": (1, "no label"),
    "A fox. ---\nA bear.": (1, "by itself"),
    "--- Shot 2 ---\nA bear.": (1, "by itself"),
    "**Shot 1:** A fox.": (1, "no label"),
    "[Shot 1] A fox.": (1, "no label"),
    "seconds = 10\nA fox.": (1, "`seconds: 10`"),
    "\u201cseconds\u201d: 10\nA fox.": (1, "`seconds: 10`"),
    "**seed:** 10\nA fox.": (1, "`seconds: 10`"),
    "```\nA fox.": (1, "block of code"),
    "A fox.\n```": (2, "block of code"),
    '[{"prompt": "A fox."}]': (1, ".json"),
    '{"shots": ["A fox."]}': (1, ".json"),
    '{\n"shots": ["A fox."]}': (1, ".json"),
    "A fox.\u2028---\u2028A bear.": (1, "line breaks"),
    "A fox.\x0b[2s] It runs.": (1, "line breaks"),
    "sec\u200bonds: 10\nA fox.": (1, "Invisible"),
    "\ufe0fseconds: 10\nA fox.": (1, "Invisible"),
    "A fox.\n-\u2060--\nA bear.": (2, "Invisible"),
    "A fox.\n[\u200d2s] It runs.": (2, "Invisible"),
    # other formats pasted in
    "1\n00:00:01,000 --> 00:00:04,000\nA fox.": (2, "subtitles"),
    "00:01.000 --> 00:04.000\nA fox.": (1, "subtitles"),
    "EXT. FOREST - DAY\n\nA fox wakes.": (1, "screenplay"),
    "INT. DEN - NIGHT\nA fox wakes.": (1, "screenplay"),
    "shot,prompt,seconds\n1,A fox.,5": (1, ".csv"),
    "prompt;seconds\nA fox.;5": (1, ".csv"),
    'references: \u201ca, b.png\nA fox.': (1, "close the quote"),
    'references: "a, b.png\nA fox.': (1, "close the quote"),
    "start: Continue\nA fox.": (1, "choose cut or continue"),
    "A fox.\nseconds: 5": (2, "Settings stand above"),
}  # fmt: skip


@pytest.mark.parametrize("text", list(WRONG))
def test_wrong_storyboards_are_refused_where_they_are_wrong(text: str):
    line, words = WRONG[text]
    first = storyboard_faults(text)[0]
    assert (first.line, words in first.message) == (line, True), first
    with pytest.raises(StoryboardError) as raised:
        parse_storyboard(text)
    assert str(raised.value) == str(first)


@pytest.mark.parametrize("text", list(WRONG))
def test_a_backslash_keeps_such_a_line_as_words(text: str):
    lines = text.split("\n")
    for _ in lines:
        if faults := storyboard_faults("\n".join(lines)):
            place = faults[0].line
            assert place is not None
            lines[place - 1] = "\\" + lines[place - 1]
    words = parse_storyboard("\n".join(lines))
    assert parse_storyboard(format_storyboard(words)) == words
    plain = text.split("\n")[WRONG[text][0] - 1]
    assert any(plain in prompt.text for shot in words.shots for prompt in shot.prompts)


def test_all_mistakes_are_named_at_once():
    text = "sec: 4\nA fox.\n--\nA bear.\n---\n[3] x\n---\nseconds: five\nA cat.\n---\nIt sleeps."
    assert [fault.line for fault in storyboard_faults(text)] == [1, 3, 6, 8]
    assert storyboard_faults("A fox.\n---\nA bear.") == ()


def test_ranges_wide_signs_and_invisible_characters_are_read():
    ranged = parse_storyboard("seconds: 20\n[0-5s] A fox wakes.\n[0:05\u20130:10] It runs.\n[10s\u301c20s] It sleeps.")
    assert [prompt.at for prompt in ranged.shots[0].prompts] == [0, 5, 10]
    wide = parse_storyboard(
        "seconds\uff1a\uff11\uff10\uff0c\u3000seed\uff1a3\n\u4e00\u53ea\u72d0\u72f8\u3002\n\uff3b5s\uff3d\u5954\u8dd1\n\uff0d\uff0d\uff0d\nB"
    )
    assert wide.shots[0].seconds == 10
    assert wide.shots[0].seed == 3
    assert wide.shots[0].prompts == (TimedPrompt(0, "\u4e00\u53ea\u72d0\u72f8\u3002"), TimedPrompt(5, "\u5954\u8dd1"))
    assert len(wide.shots) == 2
    hidden = parse_storyboard("\u200bseconds: 10\nA fox.\n\ufeff---\n\u2060start: continue\u200b\nIt runs.")
    assert [shot.seconds for shot in hidden.shots] == [10, 5]
    assert hidden.shots[1].start == "continue"
    quoted = parse_storyboard("references: \u201ca, b.png\u201d; \u00abc\u00bb; \uff21.png\nA fox.")
    assert quoted.shots[0].references == ("a, b.png", "c", "A.png")


@pytest.mark.parametrize(
    "text",
    ["Close-up: a fox.", "A fox: red, quick.", "16:9, a fox.", "Cut to a fox | dusk | grain", "-", "3 foxes run.",
     "Internal light.", "# Shot 1, a comment\nA fox.", "A fox.\n# it runs later\nIt runs.", "Extra wide.",
     "5 seconds later", "A fox \u2014 red --- runs on.", "[red fox] runs.", "{red|blue} fox", "A \u2764\ufe0f fox.",
     "A fox.\u2028It runs.", "Seconds later a fox runs.", "Take 2 eggs."],
)  # fmt: skip
def test_ordinary_words_stay_words(text: str):
    words = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
    assert parse_storyboard(text).shots[0].prompts[0].text == words


def test_a_table_of_shots(tmp_path: Path):
    table = '\ufeffShot,Prompt,Duration,Start,References\r\n1,"A fox, red.",0:10,cut,a.png; b.png\r\n'
    table += "2,It runs.,,continue,\r\n"
    (tmp_path / "shots.csv").write_text(table, encoding="utf-8")
    (story,) = read_storyboards(tmp_path / "shots.csv")
    assert [(shot.prompts[0].text, shot.seconds, shot.seed, shot.start) for shot in story.shots] == [
        ("A fox, red.", 10, 0, "cut"), ("It runs.", 5, 1, "continue"),
    ]  # fmt: skip
    assert story.shots[0].references == ("a.png", "b.png")
    for wrong, words in (
        ("a,b\n1,2\n", "column called prompt"),
        ("prompt,seed\nA,x\n", "Line 2.*The seed"),
        ("prompt\n", "empty"),
    ):
        (tmp_path / "shots.csv").write_text(wrong)
        with pytest.raises(StoryboardError, match=words):
            read_storyboards(tmp_path / "shots.csv")


def test_a_screenplay(tmp_path: Path):
    play = "Title: Fox\n\nEXT. FOREST - DAY\n\nA fox wakes.\nIt yawns.\n\nFOX\n(softly)\nMorning.\n\nCUT TO:\n\n"
    play += ".THE DEN\n\nIt sleeps. [[soon]]\n"
    (tmp_path / "fox.fountain").write_text(play)
    (story,) = read_storyboards(tmp_path / "fox.fountain")
    assert [shot.prompts[0].text for shot in story.shots] == [
        'Ext. forest - day.\nA fox wakes. It yawns.\nFox says: "Morning."', "The den.\nIt sleeps.",
    ]  # fmt: skip
    (tmp_path / "fox.fountain").write_text("A fox.")
    with pytest.raises(StoryboardError, match="no scene"):
        read_storyboards(tmp_path / "fox.fountain")


@given(st.text(max_size=200))
def test_any_table_or_screenplay_is_read_or_refused_in_a_sentence(text: str):
    from longreel.film.storyboard.imports import from_csv, from_fountain

    for reader in (from_csv, from_fountain, lambda part: from_csv("prompt,seconds,seed\n" + part)):
        try:
            message = "" if reader(text).shots else "no shots"
        except StoryboardError as error:
            message = error.message
        assert not message or message.endswith(".")
