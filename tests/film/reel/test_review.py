"""The review: its state machine against a naive model, with kills at every write; its files, whole or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from longreel.film.decode import parse
from longreel.film.reel import atomic
from longreel.film.reel.choice import fingerprint_story
from longreel.film.reel.reel import ReelError
from longreel.film.reel.review import Review, ReviewDecision, ReviewFile, Waiting, asked
from longreel.film.storyboard.shot import MAX_SEED, Shot, TimedPrompt


def shot(text: str) -> Shot:
    return Shot((TimedPrompt(0, text),), 1.0)


class Killed(Exception):
    pass


class ReviewedFilm(RuleBasedStateMachine):
    """A film under review, filmed by name only. The model: which words with which seeds were approved behind which.

    A run and a decision may each be killed before or after their file takes its place.
    """

    @initialize()
    def begin(self) -> None:
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name) / "film"
        self.words = ["a", "b", "a"]
        self.seeds: dict[tuple[str, int], int] = {}  # by words and how often they came before
        self.approved: set[tuple[tuple[str, int], ...]] = set()
        self.waits: tuple[tuple[str, int], ...] | None = None

    def teardown(self) -> None:
        self.temporary.cleanup()

    def story(self) -> list[tuple[str, int]]:
        """The model's words and seed of each shot."""
        names = [(word, self.words[:i].count(word)) for i, word in enumerate(self.words)]
        return [(name[0], self.seeds.get(name, 0)) for name in names]

    def open_at(self) -> int | None:
        story = self.story()
        return next((i for i in range(len(story)) if tuple(story[: i + 1]) not in self.approved), None)

    def shots(self) -> list[Shot]:
        return [shot(word) for word in self.words]

    def write(self, act, killed: str) -> bool:
        """Whether the file took its place."""
        replace_file = os.replace

        def place(part, path):
            if killed == "before":
                raise Killed
            replace_file(part, path)
            if killed == "after":
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(atomic.os, "replace", place)
            try:
                act()
            except Killed:
                return killed == "after"
        return True

    @rule(killed=st.sampled_from(["", "", "before", "after"]))
    def run(self, killed: str) -> None:
        """What a run does before it films."""
        file = ReviewFile(self.folder)
        review = file.load()
        seeded = review.seeded(self.shots())
        takes = [plan.fingerprint for plan in fingerprint_story(seeded, {})]
        first = review.first_open(takes, [False] * len(takes))
        assert first == self.open_at()
        assert [(one.prompts[0].text, one.seed) for one in seeded] == self.story()
        waiting = None
        if first is not None:
            key = asked(self.shots())[first]
            waiting = Waiting(first + 1, len(takes), takes[first], key, seeded[first].seed)
        if self.write(lambda: file.update(lambda review: review.at(waiting)), killed):
            self.waits = None if first is None else tuple(self.story()[: first + 1])

    @rule(index=st.integers(0, 2), word=st.sampled_from("abc"))
    def edit(self, index: int, word: str) -> None:
        self.words[index] = word

    @precondition(lambda self: self.waits is not None)
    @rule(
        decision=st.sampled_from(["approve", "retry", "stop"]),
        seed=st.sampled_from([None, 0, 3]),
        by_file=st.booleans(),
        killed=st.sampled_from(["", "", "before", "after"]),
    )
    def decide(self, decision: str, seed: int | None, by_file: bool, killed: str) -> None:
        file = ReviewFile(self.folder)
        waiting = file.load().waiting
        assert waiting is not None
        wish = {"take": waiting.take[:8], "decision": decision, "seed": seed}
        if by_file:
            (self.folder / "decision.json").write_text(json.dumps(wish))
            self.write(file.take_decision, killed)
            # A killed run leaves the file; the next one takes it, if it is still to be taken.
            again = ReviewFile(self.folder).take_decision()[1]
            assert ("nothing changes" in again) == (killed == "after" and decision != "stop")
            assert not (self.folder / "decision.json").exists()
            done = True
        else:
            asked_for = ReviewDecision.from_json(parse(json.dumps(wish)))
            done = self.write(lambda: file.update(lambda review: review.decided(asked_for)), killed)
        if not done:
            return
        assert self.waits is not None
        if decision == "approve":
            self.approved.add(self.waits)
        elif decision == "retry":
            word, old = self.waits[-1]
            name = (word, [each[0] for each in self.waits[:-1]].count(word))
            self.seeds[name] = old + 1 if seed is None else seed
        if decision != "stop":
            self.waits = None

    @rule(decision=st.sampled_from(["approve", "retry", "stop"]))
    def decide_about_another(self, decision: str) -> None:
        """A page that was open since yesterday changes nothing."""
        file = ReviewFile(self.folder)
        before = file.load()
        with pytest.raises(ReelError, match="does not wait"):
            file.update(lambda review: review.decided(ReviewDecision("0" * 8, decision)))
        assert file.load() == before

    @invariant()
    def nothing_is_lost(self) -> None:
        review = ReviewFile(self.folder).load()
        assert len(review.approved) == len(self.approved)
        assert sorted(review.seeds.values()) == sorted(self.seeds.values())
        assert (review.waiting is None) == (self.waits is None)
        assert Review.from_json(parse(json.dumps(review.to_json()))) == review


TestReviewedFilm = ReviewedFilm.TestCase
TestReviewedFilm.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)


def test_the_cache_sees_each_decision_and_no_run(tmp_path: Path):
    file = ReviewFile(tmp_path)
    take = Waiting(1, 2, "a" * 64, "k-1", 5)
    seen = [file.decisions()]
    file.update(lambda review: review.at(take))
    assert file.decisions() == seen[0]
    for decision in (ReviewDecision("a" * 8, "retry", 6), ReviewDecision("a" * 8, "retry", 5)):
        file.update(lambda review, decision=decision: review.decided(decision).at(take))
        seen.append(file.decisions())
    (tmp_path / "decision.json").write_text(json.dumps({"take": "a" * 64, "decision": "approve"}))
    seen.append(file.decisions())
    assert len(set(seen)) == len(seen)
    assert file.take_decision() == (file.load(), "decision.json: approve take aaaaaaaa: done")
    assert file.take_decision() == (file.load(), "")
    assert file.decisions() == seen[-1]


def test_a_stop_holds_until_it_is_approved_or_the_take_is_another(tmp_path: Path):
    take = Waiting(1, 2, "a" * 64, "k-1", MAX_SEED)
    stopped = Review().at(take).decided(ReviewDecision("a" * 8, "stop"))
    again = stopped.at(take)
    assert again.waiting is not None
    assert again.waiting.stopped
    other = stopped.at(Waiting(1, 2, "b" * 64, "k-1", 1)).waiting
    assert other is not None
    assert not other.stopped
    assert stopped.decided(ReviewDecision("a" * 8, "approve")).approved == {"a" * 64}
    assert stopped.decided(ReviewDecision("a" * 8, "retry")).seeds == {"k-1": 0}, "seeds go round"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("review.json", "{", "repair it, or delete it"),
        ("review.json", '{"version": 2}', "version must be"),
        ("review.json", '{"version": 1, "made": 0, "approved": [3], "seeds": {}, "waiting": null}', "approved[0] must"),
        ("decision.json", '{"take": "abc", "decision": "approve"}', "8 digits or more"),
        ("decision.json", '{"take": "abcdabcd", "decision": "edit"}', "one of approve, retry, stop"),
        ("decision.json", '{"take": "abcdabcd", "decision": "retry", "seed": -1}', "seed must be"),
    ],
)
def test_what_is_damaged_is_named_and_stays(tmp_path: Path, name: str, text: str, words: str):
    (tmp_path / name).write_text(text)
    file = ReviewFile(tmp_path)
    read = file.load if name == "review.json" else file.take_decision
    with pytest.raises(ReelError) as caught:
        read()
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert (tmp_path / name).read_text() == text
    assert file.decisions() == str(caught.value)
