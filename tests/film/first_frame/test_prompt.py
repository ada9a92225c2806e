"""The prompt: trigger first, one space, once; every reference named; contradictions found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.first_frame import TRIGGER, Described, FirstFrameError, build_prompt, contradictions

MUG = Described("mug", "a white enamel mug with a blue rim")
CAT = Described("cat", "an old black cat")


def test_the_published_trigger():
    assert TRIGGER == "ad23r2 the camera view suddenly changes."
    assert len(TRIGGER) == 40


def test_the_whole_prompt():
    built = build_prompt(
        "The cat pushes the mug off a table", [MUG, CAT], scene="A kitchen at dawn", camera="slow dolly in."
    )
    assert built.text == (
        "ad23r2 the camera view suddenly changes. The cat pushes the mug off a table. The mug is a white enamel mug "
        "with a blue rim. The cat is an old black cat. A kitchen at dawn. Slow dolly in."
    )
    assert built.warnings == ()


TEXT = st.one_of(
    st.text(alphabet=st.characters(codec="ascii"), max_size=40),
    st.lists(st.sampled_from([*TRIGGER.split(), TRIGGER, "mug", "MUG", ".", "\n", "a white enamel mug"])).map(" ".join),
)


@given(TEXT, st.lists(st.builds(Described, TEXT, TEXT), max_size=3), TEXT, TEXT)
@settings(max_examples=200, deadline=None)
def test_building_twice_changes_nothing(action: str, references: list[Described], scene: str, style: str):
    try:
        built = build_prompt(action, references, scene=scene, style=style)
    except FirstFrameError:
        return
    assert built.text.startswith(TRIGGER + " ")
    assert built.text[len(TRIGGER) + 1] != " "
    assert built.text.lower().count(TRIGGER) == 1
    again = build_prompt(built.text, references, scene=scene, style=style)
    assert again.text == built.text


@pytest.mark.parametrize("sloppy", ["AD23R2  the camera view\nsuddenly changes. ", TRIGGER[:-1] + " "])
def test_sloppy_triggers_are_replaced(sloppy: str):
    assert build_prompt(f"{sloppy}A mug falls.", []).text == f"{TRIGGER} A mug falls."


def test_another_loras_trigger():
    assert build_prompt("A mug falls.", [], trigger="xyz cut!").text == "xyz cut! A mug falls."


@pytest.mark.parametrize(
    ("caption", "reference", "said"),
    [
        ("A red mug falls.", MUG, ["red", "white"]),
        ("The mug is green.", MUG, ["green", "white"]),
        ("The young grey cat sleeps.", CAT, ["grey", "black", "young", "old"]),
        ("A woman in a hat waves.", Described("woman in a hat", "an elderly man"), []),
        ("A wooden chair.", Described("chair", "a steel chair"), ["wooden", "steel"]),
        ("A white mug and a red table.", MUG, []),
        ("A blue mug.", MUG, []),  # its rim is
        ("A silver phone.", Described("phone", "a gray phone"), []),
        ("A red carpet, the mug falls.", MUG, []),
        ("A red mug.", Described("mug"), []),
    ],
)
def test_contradictions(caption: str, reference: Described, said: list[str]):
    found = " ".join(contradictions(caption, [reference]))
    assert bool(found) == bool(said)
    assert all(word in found for word in said)


def test_warnings():
    warnings = " ".join(build_prompt("The collage on a white background.", [MUG, Described("", "")]).warnings)
    for words in ('does not mention "mug"', "Reference 2 has neither", '"collage"', '"white background"', "words;"):
        assert words in warnings
    assert "what happens" in build_prompt("", [MUG]).warnings[0]
    assert any("201 words" in warning for warning in build_prompt("word " * 201, []).warnings)
    assert build_prompt("Two mugs stand there. " + "word " * 40, [Described("mug")]).warnings == ()


def test_errors():
    with pytest.raises(FirstFrameError, match="nothing to prompt for"):
        build_prompt(f"  {TRIGGER}  ", [])
    with pytest.raises(FirstFrameError, match="needs a trigger"):
        build_prompt("A mug.", [], trigger=" ")
