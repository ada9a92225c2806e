"""What the storyboard editor is told: cards with their mistakes, their text, and what becomes of each shot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.decode import DecodeError, Value, parse
from longreel.film.reel.choice import fingerprint_story
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot
from longreel.film.storyboard.text import StoryboardError, parse_storyboard, storyboard_faults
from longreel.host import storyboard_routes
from longreel.host.storyboard_routes import cards_of, shots_status, text_of

STORY = "seconds: 1\nA red ball jumps.\n---\nseconds: 1\nA red ball sways.\n---\nseconds: 1\nA red ball sleeps."


def sent(answer: dict[str, Any], **change: Any) -> Value:
    """The cards as the editor sends them back, the first with changes."""
    cards = [{name: card[name] for name in ("text", "seed", "skipped")} for card in answer["cards"]]
    return parse(json.dumps({"cards": [cards[0] | change, *cards[1:]]}))


@given(st.lists(st.sampled_from(["---", "A cat.", "# one", "seconds: 4", "seed: 9", "sec: 3", ""])).map("\n".join))
def test_cards_that_are_sent_back_are_the_text(text: str):
    answer = cards_of(text)
    assert [each["message"] for card in answer["cards"] for each in card["faults"]] == [
        fault.message for fault in storyboard_faults(text)
    ]
    if not storyboard_faults(text):
        assert text_of(sent(answer)) == answer


def test_a_seed_is_a_text_since_no_number_of_javascript_holds_it():
    answer = cards_of("seed: 18446744073709551615\nA.\n---\nB.")
    assert [card["seed"] for card in answer["cards"]] == ["18446744073709551615", "1"]
    moved = text_of(parse(json.dumps({"cards": [{"text": "B.", "seed": "18446744073709551615"}]})))
    assert moved["text"] == "seed: 18446744073709551615\nB."


@pytest.mark.parametrize(
    "change",
    [{"text": 3}, {"seed": "-1"}, {"seed": "\u0663"}, {"seed": 3}, {"settings": {"fps": "3"}}, {"settings": []},
     {"split": -1}, {"split": "1"}, {"skipped": "no"}, {"words": 1}],
)  # fmt: skip
def test_what_is_no_card_is_refused(change: dict[str, Any]):
    with pytest.raises(DecodeError):
        text_of(sent(cards_of("A."), **change))
    with pytest.raises(DecodeError):
        text_of(parse("[]"))
    with pytest.raises(StoryboardError, match="inside it"):
        text_of(sent(cards_of("A."), split=99))


def test_settings_are_written_as_they_are_typed():
    answer = text_of(sent(cards_of("A cat.\n---\nB."), settings={"seconds": "2,5", "start": "continue"}))
    assert answer["text"] == "seconds: 2,5, start: continue\nA cat.\n---\nB."
    (fault,) = answer["cards"][0]["faults"]
    assert fault["line"] == 1
    assert not answer["cards"][0]["readable"]


def take(store: ProjectStore, text: str, settings: dict[str, Any]) -> list[str]:
    """Put the shots of a text into a project as if they were filmed; their names."""
    names = []
    for plan in fingerprint_story(parse_storyboard(text).shots, settings):
        filmed = FilmedShot.store(
            plan.shot, torch.zeros(1, 4, 3, 2, 4), previous=plan.previous, settings=plan.settings,
            take_start=plan.shot.start == "cut", frames=9, meta={}, folder=store.folder,
        )  # fmt: skip
        names.append(store.add(replace(filmed)).fingerprint[:8])
    return names


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectStore:
    monkeypatch.setattr(storyboard_routes, "project_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return ProjectStore(tmp_path / "told")


def told(text: str, keep_rest: bool = False) -> list[tuple[str, str]]:
    return [(shot["action"], shot["reason"]) for shot in shots_status(text, "told", keep_rest)["shots"]]


def test_what_becomes_of_each_shot(store: ProjectStore, tmp_path: Path):
    assert told(STORY) == [("filmed", "not filmed before")] * 3
    names = take(store, STORY, {"engine": "causal", "steps": 4})
    status = shots_status(STORY, "told", False)["shots"]
    assert [(shot["action"], shot["take"], shot["engine"]) for shot in status] == [
        ("reused", name, "causal") for name in names
    ]
    assert [shot["picture"] for shot in status] == [None] * 3
    clips = store.folder / "clips"
    for folder in (clips, store.folder / "mine"):
        folder.mkdir()
        (folder / f"{store.shots()[0].fingerprint[:32]}-0123.jpg").write_bytes(b"picture")
    (shown,) = [each["picture"] for each in shots_status(STORY, "told", False)["shots"] if each["picture"]]
    assert shown["subfolder"] == "told/clips"
    changed = STORY.replace("sways", "runs")
    assert told(changed) == [
        ("reused", "nothing changed"),
        ("filmed", "prompt changed"),
        ("filmed", "an earlier shot changed"),
    ]
    assert [action for action, _ in told(changed, keep_rest=True)] == ["reused", "filmed", "kept"]
    assert told("sec: 3\nA.") == []
    assert shots_status("take: 00000000\nA.", "told", False)["error"].startswith("The storyboard asks for take")
    assert shots_status(STORY, "none", False)["shots"][0]["action"] == "filmed"
    assert not (tmp_path / "none").exists()


def test_takes_of_other_settings_are_followed_from_the_first_shot_on(store: ProjectStore):
    take(store, STORY, {"steps": 4})
    take(store, STORY, {"steps": 8})
    store.folder.joinpath("shot-old.safetensors").write_bytes(b"no take")
    assert told(STORY) == [("reused", "nothing changed")] * 3
