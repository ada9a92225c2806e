"""Filming with any engine: check a whole story before its first frame, reuse what a project has, film the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..film.reel.project import Decision, PlannedShot, ProjectStore, shot_fingerprint
from ..film.reel.reel import Reel, check_layout
from ..film.reel.takes import plan_story
from ..film.storyboard.shot import Shot
from ..host.progress import Progress
from .engine import Engine, EngineError

__all__ = ["Place", "Story", "film_shot", "prepare"]


@dataclass(frozen=True)
class Place:
    """Where a shot stands in the film that is being made.

    shot: its number, from 1; shots: of the film. blocks: to film. done, total: steps of the film before it, and in all.
    """

    shot: int
    shots: int
    blocks: int
    done: int
    total: int


@dataclass(frozen=True)
class Story:
    """Shots that can be filmed. places: one for each; decisions: what a project has of them, empty without one."""

    places: tuple[Place, ...]
    decisions: tuple[Decision, ...]

    def describe(self) -> str:
        """Which shots are used again, which are filmed, and why: a line each."""
        return "\n".join(
            f"shot {place.shot} {decision.action}: {decision.reason}"
            for place, decision in zip(self.places, self.decisions)
        )


def prepare(
    engine: Engine,
    shots: Sequence[Shot],
    reel: Reel | None,
    project: ProjectStore | None,
    picture: Tensor | None = None,
) -> Story:
    """Look at all shots that will follow on the reel; nothing is filmed. picture: given to the first of them.

    Raises a ValueError of one sentence that names the shot, for anything that would stop the film later.
    """
    reel = Reel.empty(engine.layout()) if reel is None else reel
    check_layout(reel, engine.layout())
    pictures: list[Tensor | None] = []
    for number, shot in enumerate(shots, start=len(reel.shots) + 1):
        given = picture if not pictures else None
        try:
            engine.check_shot(shot, given)
            pictures.append(engine.picture(shot, given))
        except ValueError as error:
            raise EngineError(f"Shot {number}: {error}") from error
    plans = plan_story(shots, engine.clock, reel.shots)
    steps = [engine.steps(plan) for plan in plans]
    places = tuple(
        Place(
            len(reel.shots) + i + 1,
            len(reel.shots) + len(shots),
            plan.latent_frames // engine.clock.block,
            sum(steps[:i]),
            sum(steps),
        )
        for i, plan in enumerate(plans)
    )
    if project is None:
        return Story(places, ())
    planned: list[PlannedShot] = []
    previous = reel.fingerprint
    for shot, first in zip(shots, pictures):
        settings = engine.settings(first)
        planned.append(PlannedShot(shot, previous, settings, shot_fingerprint(previous, shot, settings)))
        previous = planned[-1].fingerprint
    story = Story(places, tuple(project.explain(planned)))
    logging.info("Longreel, project %s:\n%s", project.folder.name, story.describe())
    return story


def film_shot(
    engine: Engine,
    shot: Shot,
    reel: Reel | None,
    project: ProjectStore | None,
    place: Place,
    *,
    picture: Tensor | None = None,
    note: str = "",
) -> Reel:
    """Film a shot, or take it from the project if it is there; either way it is in the project when this returns.

    note: stands before the reel's description in the text that stays on the node.
    """
    reel = Reel.empty(engine.layout()) if reel is None else reel
    check_layout(reel, engine.layout())
    reel = reel.joined(engine.layout())
    picture = engine.picture(shot, picture)
    report = Progress(place.total, done=place.done, previewer=engine.previewer())
    report.start_shot(place.shot, place.shots, place.blocks)
    known = project.find(shot_fingerprint(reel.fingerprint, shot, engine.settings(picture))) if project else None
    if known is not None:
        longer = reel.append(known)
    else:
        longer = engine.film(shot, reel, report, picture)
        if project is not None:
            assert longer.last_shot is not None
            longer = reel.append(project.add(longer.last_shot))
    if place.shot == place.shots:
        report.finish("\n".join(filter(None, (note, longer.describe()))))
    return longer
