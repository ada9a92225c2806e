"""Which take each shot uses, against a model that knows no fingerprints: takes are numbered as they are filmed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.reel.choice import Decision, PlannedShot, decide, find_take, fingerprint_story, rebased
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FOLLOWS, FilmedShot, Reel, ReelError, ReelLayout
from longreel.film.storyboard.shot import Shot, TimedPrompt

SETTINGS: dict[str, Any] = {"model": "model-a"}


def shot(text: str, start: str = "cut", take: str = "", seed: int = 0) -> Shot:
    return Shot((TimedPrompt(0, text),), 1.0, seed, start, (), take)  # type: ignore[arg-type]


def film(plan: PlannedShot, before: FilmedShot | None, folder: Path) -> FilmedShot:
    return FilmedShot.store(
        replace(plan.shot, take=""),
        torch.zeros(1, 4, 3, 2, 4),
        previous=plan.previous,
        settings=plan.settings,
        take_start=plan.shot.start == "cut",
        frames=9,
        meta={} if before is None else {FOLLOWS: before.file.uid},
        folder=folder,
    )


@dataclass(frozen=True)
class Take:
    """The model's take. past: numbers of the takes that stood before it when it was filmed."""

    number: int
    content: tuple[str, str]
    past: tuple[int, ...]
    fingerprint: str


class Model:
    """What should happen, from the numbers of takes alone."""

    def __init__(self) -> None:
        self.takes: list[Take] = []

    def choose(self, shots: list[Shot], keep: bool) -> list[tuple[str, int | None]] | None:
        """For each shot what is done and with which take, None for one to film; None for all where a choice is refused.

        The number of a take that is to be filmed is as if it were -1, -2, ...
        """
        done: list[tuple[str, int | None]] = []
        film: list[int] = []
        used: set[int] = set()
        for one in shots:
            content = (one.prompts[0].text, one.start)
            same = [take for take in reversed(self.takes) if take.content == content]
            fit = [take for take in same if take.content[1] == "cut" or take.past[-1:] == tuple(film[-1:])]
            exact = [take for take in same if take.past == tuple(film)]
            if one.take:
                (take,) = [take for take in self.takes if take.fingerprint.startswith(one.take)]
                if take.content[1] == "continue" and take.past[-1:] != tuple(film[-1:]):
                    return None
                done.append(("reused" if take in exact else "kept", take.number))
            elif exact:
                done.append(("reused", exact[0].number))
            elif keep and fit:
                best = min(fit, key=lambda take: (take.past[-1:] != tuple(film[-1:]) or not film, take.number in used))
                done.append(("kept", best.number))
            else:
                done.append(("filmed", None))
            number = done[-1][1]
            film.append(-len(film) - 1 if number is None else number)
            used.add(film[-1])
        return done


shots_ = st.builds(shot, st.sampled_from("abc"), st.sampled_from(["cut", "cut", "continue"]))
stories = st.lists(shots_, min_size=1, max_size=5).map(lambda story: [replace(story[0], start="cut"), *story[1:]])
queues = st.lists(st.tuples(stories, st.booleans(), st.integers(0, 4), st.integers(0, 99)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(queues)
def test_the_naive_model_agrees(tmp_path_factory: pytest.TempPathFactory, queues: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("spill")
    model, stored = Model(), list[FilmedShot]()  # stored: the newest first
    films: dict[str, tuple[int, ...]] = {}
    for story, keep, place, choice in queues:
        if stored and choice < 50 and place < len(story):  # one shot asks for a take
            story[place] = replace(story[place], take=stored[choice % len(stored)].fingerprint[:16])
        expected = model.choose(story, keep)
        planned = fingerprint_story(story, SETTINGS)
        if expected is None:
            with pytest.raises(ReelError, match="goes on from another take"):
                decide(planned, stored, keep, lambda _: False)
            continue
        decisions = decide(planned, stored, keep, lambda _: False)
        numbers = {take.fingerprint: take.number for take in model.takes}
        assert [(each.action, numbers.get(each.take)) for each in decisions] == expected
        # Film it, and look at what stands on the reel.
        previous, before, past = "", None, ()
        for plan, decision in zip(planned, decisions):
            filmed = decision.filmed
            if filmed is None:
                filmed = film(replace(plan, previous=previous), before, folder)
                stored.insert(0, filmed)
                content = (plan.shot.prompts[0].text, plan.shot.start)
                model.takes.append(Take(len(model.takes), content, past, filmed.fingerprint))
            original = next(take for take in stored if take.file.uid == filmed.file.uid)
            assert original.take_start or original.meta[FOLLOWS] == before.file.uid, "motion goes on from what it saw"
            number = next(take.number for take in model.takes if take.fingerprint == original.fingerprint)
            assert filmed.previous == previous
            assert filmed.fingerprint == decision.fingerprint
            previous, before, past = filmed.fingerprint, filmed, (*past, number)
            # A fingerprint stands for exactly one row of takes.
            assert films.setdefault(previous, past) == past
        assert len(films) == len(set(films.values()))
        unlocked = [replace(each, take="") for each in story]
        if unlocked == story:
            again = decide(planned, stored, keep, lambda _: False)
            assert all(each.filmed is not None for each in again), "queued again, nothing is filmed"


def store_film(folder: Path, texts: list[Shot]) -> tuple[ProjectStore, list[FilmedShot]]:
    store, before = ProjectStore(folder / "film"), None
    takes: list[FilmedShot] = []
    for plan in fingerprint_story(texts, SETTINGS):
        before = store.add(film(plan, before, folder))
        takes.append(before)
    return store, takes


def told(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(each.action, each.reason) for each in decisions]


STORY = [shot("a"), shot("b"), shot("c"), shot("d", "continue"), shot("e")]


def test_the_second_is_retaken_and_the_third_is_kept(tmp_path: Path) -> None:
    store, takes = store_film(tmp_path, STORY)
    planned = fingerprint_story([STORY[0], shot("b", seed=7), *STORY[2:]], SETTINGS)
    kept = ("kept", "an earlier shot changed, and this take remembers the old one")
    assert told(store.explain(planned, keep=True)) == [
        ("reused", "nothing changed"),
        ("filmed", "seed changed"),
        kept,
        kept,
        kept,
    ]
    assert [each.action for each in store.explain(planned)] == ["reused", *["filmed"] * 4]
    # A change inside a take refilms what goes on from it, up to the next cut.
    planned = fingerprint_story([*STORY[:2], shot("x"), *STORY[3:]], SETTINGS)
    assert [each.action for each in store.explain(planned, keep=True)] == ["reused"] * 2 + ["filmed"] * 2 + ["kept"]
    assert [each.take for each in store.explain(planned, keep=True)][4] == takes[4].fingerprint
    # Behind a kept take the reasons are those of the shot itself.
    story = [STORY[0], shot("b", seed=7), STORY[2], shot("x", "continue"), STORY[4], shot("new")]
    decisions = store.explain(fingerprint_story(story, SETTINGS), keep=True)
    assert [each.reason for each in decisions][3:] == ["prompt changed", kept[1], "not filmed before"]


def test_every_take_can_be_chosen_again(tmp_path: Path) -> None:
    store, takes = store_film(tmp_path, STORY[:3])
    again = fingerprint_story([STORY[0], shot("b", seed=7)], SETTINGS)[1]
    other = store.add(film(again, takes[0], tmp_path))
    for take in (takes[1], other):
        chosen = [STORY[0], shot("whatever is written", take=take.fingerprint[:8]), STORY[2]]
        decisions = store.explain(fingerprint_story(chosen, SETTINGS))
        assert decisions[1].filmed is not None
        assert decisions[1].filmed.file.uid == take.file.uid
        assert decisions[2].action == ("reused" if take is takes[1] else "filmed")
    with pytest.raises(ReelError, match="no such take"):
        store.explain(fingerprint_story([shot("a", take="0" * 8)], SETTINGS))
    with pytest.raises(ReelError, match="several"):
        find_take("", store.shots())


def test_a_kept_take_is_marked_and_fits_the_reel(tmp_path: Path, layout: ReelLayout) -> None:
    _, takes = store_film(tmp_path, STORY[:3])
    reel = Reel.empty(layout).append(rebased(takes[2], ""))
    (kept,) = reel.shots
    assert kept.settings["kept"] == takes[2].fingerprint
    assert kept.fingerprint != takes[2].fingerprint
    assert rebased(rebased(takes[2], "1" * 64), "").fingerprint == kept.fingerprint, "kept twice is kept once"
    assert rebased(takes[2], takes[2].previous) is takes[2]
