"""The review of a film shot by shot: which takes were approved, and which one waits for a decision.

The state is a small JSON file in the project, `review.json`; it is replaced whole, so a kill leaves the old state or
the new one. Takes are named by their fingerprints: a take whose words, settings or earlier shots change is another one
and is reviewed again. A retried shot has another seed than the storyboard says, as long as the storyboard asks for the
shot in the same words. `decision.json` beside it is a decision for the next run, for programs that write files only.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..decode import DecodeError, Value, parse_file
from ..storyboard.shot import MAX_SEED, Shot
from .atomic import whole_file
from .choice import TAKE_DIGITS
from .fingerprint import shot_fingerprint
from .reel import ReelError

__all__ = ["DECISIONS", "Review", "ReviewDecision", "ReviewFile", "Waiting"]

DECISIONS = {
    "approve": "the film goes on behind the take",
    "retry": "the shot is filmed with another seed",
    "stop": "the film ends with the take, until it is approved",
}
_STATE, _WISH = "review.json", "decision.json"
_VERSION = 1
_MAX_BYTES = 16 << 20
_FINGERPRINT = 64
_ASKED_DIGITS = 32
# The executor and the routes change the state from threads of one process.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class ReviewDecision:
    """What a person decided about the take that waits.

    take: its fingerprint or the beginning of it, TAKE_DIGITS or more. decision: of DECISIONS. seed: of the retry; None:
    the next one.
    """

    take: str
    decision: str
    seed: int | None = None

    @classmethod
    def from_json(cls, value: Value) -> ReviewDecision:
        """{"take": ..., "decision": ..., "seed": ...}, the last one optional. Raises DecodeError."""
        take = value["take"].text(_FINGERPRINT)
        if len(take) < TAKE_DIGITS:
            raise value["take"].fault(f"the name of a take, {TAKE_DIGITS} digits or more")
        seed = value.get("seed")
        wanted = None if seed is None or seed.raw is None else seed.integer(0, MAX_SEED)
        return cls(take, value["decision"].choice(DECISIONS), wanted)


@dataclass(frozen=True)
class Waiting:
    """The take that waits for a decision; it may still be filmed.

    shot: its number in the film, from 1; shots: of the whole film. take: its fingerprint. asked: names the shot as the
    storyboard asks for it. seed: of the take. stopped: the film ends here.
    """

    shot: int
    shots: int
    take: str
    asked: str
    seed: int
    stopped: bool = False

    @classmethod
    def from_json(cls, value: Value) -> Waiting:
        """Inverse of dataclasses.asdict. Raises DecodeError."""
        shots = value["shots"].integer(1)
        return cls(
            value["shot"].integer(1, shots),
            shots,
            value["take"].text(_FINGERPRINT),
            value["asked"].text(),
            value["seed"].integer(0, MAX_SEED),
            value["stopped"].flag(),
        )


@dataclass(frozen=True)
class Review:
    """What was decided so far.

    made: how many decisions, so that no two states are the same. approved: fingerprints of takes. seeds: of retried
    shots, by how they are asked for.
    """

    made: int = 0
    approved: frozenset[str] = frozenset()
    seeds: Mapping[str, int] = field(default_factory=dict)
    waiting: Waiting | None = None

    @property
    def takes(self) -> frozenset[str]:
        """Fingerprints of the takes that were approved, and of the one that waits."""
        return self.approved if self.waiting is None else self.approved | {self.waiting.take}

    def seeded(self, shots: Sequence[Shot]) -> list[Shot]:
        """The shots of a storyboard with the seeds that were retried."""
        return [replace(shot, seed=self.seeds.get(key, shot.seed)) for key, shot in zip(asked(shots), shots)]

    def first_open(self, takes: Sequence[str], locked: Sequence[bool]) -> int | None:
        """Index of the first shot to be reviewed; None when all are approved. takes: fingerprints of the film's takes.
        locked: the storyboard names the take itself.
        """
        passed = [chosen or take in self.approved for take, chosen in zip(takes, locked)]
        return passed.index(False) if False in passed else None

    def at(self, waiting: Waiting | None) -> Review:
        """The film has come to this take, or to its end (None); a stop at the same take holds."""
        before = self.waiting
        if waiting is not None and before is not None and before.take == waiting.take:
            waiting = replace(waiting, stopped=before.stopped)
        return replace(self, waiting=waiting)

    def waits_for(self, decision: ReviewDecision) -> bool:
        """Whether the decision is about the take that waits."""
        return self.waiting is not None and self.waiting.take.startswith(decision.take)

    def decided(self, decision: ReviewDecision) -> Review:
        """After a decision. Raises ReelError for one about another take than the one that waits."""
        waiting = self.waiting
        if waiting is None or not self.waits_for(decision):
            found = f"take {waiting.take[:TAKE_DIGITS]} does" if waiting else "none does"
            raise ReelError(f"Take {decision.take[:TAKE_DIGITS]} does not wait for a decision, {found}: look again.")
        made = self.made + 1
        if decision.decision == "stop":
            return replace(self, made=made, waiting=replace(waiting, stopped=True))
        if decision.decision == "approve":
            return replace(self, made=made, approved=self.approved | {waiting.take}, waiting=None)
        seed = (waiting.seed + 1) % (MAX_SEED + 1) if decision.seed is None else decision.seed
        return replace(self, made=made, seeds={**self.seeds, waiting.asked: seed}, waiting=None)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "version": _VERSION,
            "made": self.made,
            "approved": sorted(self.approved),
            "seeds": dict(sorted(self.seeds.items())),
            "waiting": None if self.waiting is None else asdict(self.waiting),
        }

    @classmethod
    def from_json(cls, value: Value) -> Review:
        """Inverse of to_json. Raises DecodeError."""
        value["version"].integer(_VERSION, _VERSION)
        waiting = value["waiting"]
        return cls(
            value["made"].integer(),
            frozenset(each.text(_FINGERPRINT) for each in value["approved"].list()),
            {key: each.integer(0, MAX_SEED) for key, each in value["seeds"].fields().items()},
            None if waiting.raw is None else Waiting.from_json(waiting),
        )


def asked(shots: Sequence[Shot]) -> list[str]:
    """A name for each shot of a storyboard by what is asked for; the second of two that are the same has another."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for shot in shots:
        content = shot_fingerprint("", shot, {})[:_ASKED_DIGITS]
        seen[content] += 1
        names.append(f"{content}-{seen[content]}")
    return names


class ReviewFile:
    """The review of the project in a folder. Every method reads the file anew."""

    def __init__(self, folder: Path) -> None:
        """folder: of the project, which is made when something is written."""
        self.folder = folder

    def load(self) -> Review:
        """The state, an empty one where nothing was reviewed. Raises ReelError for a file that is damaged."""
        path = self.folder / _STATE
        if not path.exists():
            return Review()
        try:
            return Review.from_json(parse_file(path, _MAX_BYTES))
        except DecodeError as error:
            raise ReelError(f"{path} is damaged: {error}; repair it, or delete it to review the film anew.") from error

    def update(self, change: Callable[[Review], Review]) -> Review:
        """Replaces the state by what `change` makes of it, and returns that. Raises what load and `change` raise, and
        ReelError when it cannot be written.
        """
        with _LOCK:
            before = self.load()
            after = change(before)
            if after != before:
                self._write(after)
        return after

    def take_decision(self) -> tuple[Review, str]:
        """Applies decision.json if there is one and removes it. Returns the state after that, and a line for the user,
        "" without a decision.

        The state is written first: after a kill between the two the file is about a take that does not wait any more,
        and changes nothing. Raises ReelError for one that is damaged, which then stays.
        """
        wish = self._wish()
        if wish is None:
            return self.load(), ""
        applied = False

        def change(review: Review) -> Review:
            nonlocal applied
            applied = review.waits_for(wish)
            return review.decided(wish) if applied else review

        after = self.update(change)
        with suppress(OSError):
            (self.folder / _WISH).unlink()
        outcome = "done" if applied else "it does not wait, so nothing changes"
        return after, f"{_WISH}: {wish.decision} take {wish.take[:TAKE_DIGITS]}: {outcome}"

    def decisions(self) -> str:
        """Another text whenever something was decided, also where decision.json is there for the next run."""
        try:
            review, wish = self.load(), self._wish()
        except ReelError as error:
            return str(error)
        if wish is not None and review.waits_for(wish):
            review = review.decided(wish)
        return json.dumps(replace(review, waiting=None).to_json())

    def _wish(self) -> ReviewDecision | None:
        path = self.folder / _WISH
        if not path.exists():
            return None
        try:
            return ReviewDecision.from_json(parse_file(path, _MAX_BYTES))
        except DecodeError as error:
            raise ReelError(f"{path} cannot be read: {error}; write it again, or delete it.") from error

    def _write(self, review: Review) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / _STATE, unique=True) as part:
                part.write_text(json.dumps(review.to_json(), indent=1), encoding="ascii")
        except OSError as error:
            raise ReelError(
                f"The review cannot be kept in {self.folder} ({error.strerror}): free some space or make it writable."
            ) from error
