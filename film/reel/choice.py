"""Which take each shot of a plan uses: one on disk, used again or kept, or one yet to be filmed; and why.

A take on disk is used again where everything it depends on is as it was, the shots before it included. It may also be
kept although a shot before it changed: because the storyboard names it (`take: 3f2a9c1b`), or because the user keeps
what stands behind a cut. A kept take was conditioned on the old shots, and what is filmed after it goes on from what it
remembers. So its fingerprint on the reel differs from that of the same shot filmed after the new ones: a mark in its
settings says which take it is (`rebased`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ..storyboard.shot import Shot
from .fingerprint import canonical_json, shot_fingerprint
from .reel import FOLLOWS, FilmedShot, ReelError

__all__ = ["TAKE_DIGITS", "Decision", "PlannedShot", "decide", "find_take", "fingerprint_story", "rebased", "take_of"]

TAKE_DIGITS = 8
"""Digits of a fingerprint by which a take is named to the user."""

_KEPT = "kept"
"""The mark of a kept take in its settings."""


@dataclass(frozen=True)
class PlannedShot:
    """A shot with everything its fingerprint covers. previous: fingerprint of the shot before it, "" for the first."""

    shot: Shot
    previous: str
    settings: Mapping[str, Any]
    fingerprint: str


class Decision(NamedTuple):
    """What is done with a planned shot.

    shot: its index, from 0. action: used again, kept though a shot before it changed, or filmed. reason: why, in a few
    words for the user. fingerprint: of the shot on the reel. take: fingerprint of the take in the project, which names
    its file. filmed: it, as the reel takes it; None where it is filmed.
    """

    shot: int
    action: Literal["reused", "kept", "filmed"]
    reason: str
    fingerprint: str
    take: str
    filmed: FilmedShot | None


def fingerprint_story(
    shots: Sequence[Shot], settings: Mapping[str, Any], previous: str = ""
) -> tuple[PlannedShot, ...]:
    """Shots that follow one another, with their fingerprints. previous: of the reel that they continue, "" for none."""
    planned: list[PlannedShot] = []
    for shot in shots:
        planned.append(PlannedShot(shot, previous, settings, shot_fingerprint(previous, shot, settings)))
        previous = planned[-1].fingerprint
    return tuple(planned)


def rebased(take: FilmedShot, previous: str) -> FilmedShot:
    """The take behind other shots than it was filmed after, marked so; itself where they are the same."""
    if take.previous == previous:
        return take
    return replace(take, previous=previous, settings={_KEPT: take.fingerprint, **take.settings})


def take_of(filmed: FilmedShot) -> str:
    """The fingerprint, in the project, of the take that a shot of a reel is: where it was kept, not its own."""
    return str(filmed.settings.get(_KEPT, filmed.fingerprint))


def find_take(name: str, stored: Sequence[FilmedShot]) -> FilmedShot:
    """The take whose fingerprint begins so. Raises ReelError where there is none, or several."""
    found = [take for take in stored if take.fingerprint.startswith(name)]
    if len(found) != 1:
        fault = "has no such take: choose one that the project lists" if not found else "has several: write more digits"
        raise ReelError(f"The storyboard asks for take {name} and the project {fault}, or remove the setting.")
    return found[0]


def decide(
    planned: Sequence[PlannedShot], stored: Sequence[FilmedShot], keep: bool, exists: Callable[[str], bool]
) -> list[Decision]:
    """What becomes of each shot of a plan, in its order.

    Of `planned` only the shots, their settings and what the first follows count. stored: the whole takes of the
    project, the newest first. keep: takes behind a cut stay when a shot before them changed. exists: whether the
    project has a file, whole or not, for a fingerprint. Raises ReelError for a take that cannot be used.
    """
    return list(_Chooser(planned, stored, keep, exists).decisions())


class _Chooser:
    def __init__(
        self,
        planned: Sequence[PlannedShot],
        stored: Sequence[FilmedShot],
        keep: bool,
        exists: Callable[[str], bool],
    ) -> None:
        self.planned, self.stored, self.keep, self.exists = planned, stored, keep, exists
        self.by_fingerprint = {take.fingerprint: take for take in stored}
        self.contents = {id(take): _content(take.shot, take.settings) for take in stored}
        wanted = {_content(plan.shot, plan.settings) for plan in planned}
        # A take that the plan has elsewhere was not changed into another shot.
        self.replaced = [take for take in stored if self.contents[id(take)] not in wanted]
        self.before: FilmedShot | None = None  # the take on disk that the shot before uses
        self.used: set[str] = set()
        self.changed = False  # of the shots behind the last kept one, one is filmed anew

    def decisions(self) -> Iterator[Decision]:
        previous = self.planned[0].previous if self.planned else ""
        for index, plan in enumerate(self.planned):
            plan = replace(plan, previous=previous, fingerprint=shot_fingerprint(previous, plan.shot, plan.settings))
            decision = self._decide(index, plan)
            self.before = None if decision.filmed is None else self.by_fingerprint[decision.take]
            self.used.add(decision.take)
            previous = decision.fingerprint
            yield decision

    def _decide(self, index: int, plan: PlannedShot) -> Decision:
        take, reason = None, ""
        if plan.shot.take:
            take, reason = find_take(plan.shot.take, self.stored), "chosen in the storyboard"
            if not self._joins(take, index, plan.previous):
                raise ReelError(
                    f"The storyboard asks for take {plan.shot.take}, which goes on from another take of the shot "
                    "before it: choose that one there too, or a take that starts with a cut."
                )
        elif plan.fingerprint in self.by_fingerprint:
            take = self.by_fingerprint[plan.fingerprint]
        elif self.keep:
            take, reason = self._kept(index, plan), "an earlier shot changed, and this take remembers the old one"
        if take is None:
            reason = self._reason(plan)
            self.changed = self.changed or reason not in (_NEW, _DAMAGED)
            return Decision(index, "filmed", reason, plan.fingerprint, plan.fingerprint, None)
        filmed = rebased(take, plan.previous)
        if filmed.fingerprint == plan.fingerprint:
            return Decision(index, "reused", _SAME, filmed.fingerprint, take.fingerprint, filmed)
        self.changed = False
        return Decision(index, "kept", reason, filmed.fingerprint, take.fingerprint, filmed)

    def _kept(self, index: int, plan: PlannedShot) -> FilmedShot | None:
        """The take to keep of a shot: of several that were filmed as asked the one that fits the shot before best."""
        content = _content(plan.shot, plan.settings)
        fit = [
            take
            for take in self.stored
            if self.contents[id(take)] == content and self._joins(take, index, plan.previous)
        ]
        return min(fit, key=lambda take: (not self._follows(take), take.fingerprint in self.used), default=None)

    def _joins(self, take: FilmedShot, index: int, previous: str) -> bool:
        """Whether a take may stand here: it begins with a cut, or goes on from the very take before it."""
        return take.take_start or take.previous == previous or (index > 0 and self._follows(take))

    def _follows(self, take: FilmedShot) -> bool:
        before = self.before
        if before is None:
            return False
        return take.meta.get(FOLLOWS) == before.file.uid or take.previous == before.fingerprint

    def _reason(self, plan: PlannedShot) -> str:
        if self.exists(plan.fingerprint):
            return _DAMAGED
        content = _content(plan.shot, plan.settings)
        if self.changed or content in self.contents.values():
            return _UPSTREAM
        for take in self.replaced:
            if take.previous == plan.previous or self._follows(take):
                return _first_change(take, plan)
        return _NEW


_SAME = "nothing changed"
_NEW = "not filmed before"
_DAMAGED = "its file is damaged"
_UPSTREAM = "an earlier shot changed"
_SHOT_PARTS = {"prompts": "prompt", "seconds": "seconds", "seed": "seed", "start": "start", "references": "references"}


def _first_change(filmed: FilmedShot, plan: PlannedShot) -> str:
    """The first difference between a filmed shot and a plan after the same shots: shot first, then settings."""
    for attribute, name in _SHOT_PARTS.items():
        if getattr(filmed.shot, attribute) != getattr(plan.shot, attribute):
            return f"{name} changed"
    path = _first_difference(filmed.settings, plan.settings)
    return f"{'.'.join(path) or 'settings'} changed"


def _first_difference(old: Any, new: Any) -> list[str]:
    """Keys that lead to the first value that differs, in the order of the names."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return []
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            return [key]
        if canonical_json(old[key]) != canonical_json(new[key]):
            return [key, *_first_difference(old[key], new[key])]
    return []


def _content(shot: Shot, settings: Mapping[str, Any]) -> str:
    return shot_fingerprint("", shot, settings)
