"""Filming with any engine: check a whole story before its first frame, reuse what a project has, film the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..film.reel.choice import TAKE_DIGITS, Decision, PlannedShot, rebased
from ..film.reel.fingerprint import shot_fingerprint
from ..film.reel.project import ProjectStore
from ..film.reel.reel import FilmedShot, Reel, ReelError, check_fit, check_layout
from ..film.reel.takes import ShotPlan, TimedShot, plan_story, schedule_prompts
from ..film.storyboard.shot import Shot
from ..host.figures import record
from ..host.progress import Progress
from .engine import Engine, EngineError

__all__ = ["Place", "ShotJob", "Story", "film_shot", "prepare"]


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
class ShotJob:
    """A shot that can be filmed.

    shot: as to be filmed; it names the take that is kept, where one is. fingerprint: of the shot as it will be on the
    reel. decision: what a project has of it, if any.
    """

    shot: Shot
    plan: ShotPlan
    place: Place
    fingerprint: str
    decision: Decision | None


@dataclass(frozen=True)
class Story:
    """Shots that can be filmed one after the other. It holds no picture, however many the shots start from.

    warnings: what of the shots will not be as they ask for, a sentence each that begins with the shot.
    """

    jobs: tuple[ShotJob, ...]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """Which shots are used again, which are filmed, and why: a line each; empty without a project."""
        return "\n".join(
            f"shot {job.place.shot} {decision.action}: {decision.reason} (take {decision.take[:TAKE_DIGITS]})"
            for job in self.jobs
            if (decision := job.decision) is not None
        )

    def report(self) -> str:
        """Its description and its warnings, for the node and the API's answer."""
        return "\n".join(filter(None, (self.describe(), *self.warnings)))


def prepare(
    engine: Engine,
    shots: Sequence[Shot],
    reel: Reel | None,
    project: ProjectStore | None,
    picture: Tensor | None = None,
    keep: bool = False,
) -> Story:
    """Look at all shots that will follow on the reel; nothing is filmed.

    picture: given to the first of them. keep: takes behind a cut stay when a shot before them changed.
    What a shot is filmed from is loaded, fingerprinted and let go, one shot at a time. Raises a ValueError of one
    sentence that names the shot, for anything that would stop the film later.
    """
    reel = _opened(engine, reel)
    planned: list[PlannedShot] = []
    warnings: list[str] = []
    for number, shot in enumerate(shots, start=len(reel.shots) + 1):
        try:
            if not planned:
                _check_start(engine, reel, shot)
            inputs = engine.shot_inputs(shot, None if planned else picture)
        except ValueError as error:
            raise EngineError(f"Shot {number}: {error}") from error
        warnings += (f"shot {number}: {warning}" for warning in inputs.warnings)
        if shot.take and project is None:
            raise EngineError(f"Shot {number} asks for a take, and only a project has takes: name the project.")
        settings, previous = engine.settings(inputs.picture), planned[-1].fingerprint if planned else reel.fingerprint
        planned.append(PlannedShot(shot, previous, settings, shot_fingerprint(previous, shot, settings)))
    decisions = project.explain(planned, keep) if project else [None] * len(planned)
    plans = _plan(engine, reel, shots, decisions)
    steps = [engine.steps(plan) for plan in plans]
    for number, (shot, plan) in enumerate(zip(shots, plans), start=len(reel.shots) + 1):
        warnings += (
            f"shot {number}: no block is left for the prompt at {prompt.at:g} s: {prompt.text}"
            for prompt in schedule_prompts(shot, plan, engine.clock).unseen
        )
    for warning in warnings:
        logging.warning("Longreel, %s", warning)
    story = Story(
        tuple(
            ShotJob(
                plan=plan,
                place=Place(
                    shot=len(reel.shots) + i + 1,
                    shots=len(reel.shots) + len(shots),
                    blocks=plan.latent_frames // engine.clock.block,
                    done=sum(steps[:i]),
                    total=sum(steps),
                ),
                shot=_naming_take(shots[i], decision),
                fingerprint=decision.fingerprint if decision else planned[i].fingerprint,
                decision=decision,
            )
            for i, (plan, decision) in enumerate(zip(plans, decisions))
        ),
        tuple(warnings),
    )
    if project is not None:
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

    A shot that names a take is that one, whatever was filmed before it. Where the project cannot be written the shot
    stays in its temporary file, and the note says so. note: stands before the reel's description in the text that
    stays on the node.
    """
    reel = _opened(engine, reel)
    inputs = engine.shot_inputs(shot, picture)
    report = Progress(place.total, done=place.done, previewer=engine.previewer())
    report.start_shot(place.shot, place.shots, place.blocks)
    settings = engine.settings(inputs.picture)
    known = _known(project, shot, reel.fingerprint, settings) if project else None
    if known is not None:
        longer = reel.append(known)
    else:
        began, done = time.monotonic(), report.done
        longer = engine.film(shot, reel, report, inputs)
        record(engine.settings(), report.done - done, time.monotonic() - began)
        if project is not None:
            assert longer.last_shot is not None
            try:
                longer = reel.append(project.add(longer.last_shot))
            except ReelError as error:
                # What was filmed is worth more than where it lies: the temporary file stays as long as the reel does.
                note = "\n".join(filter(None, (note, f"Shot {place.shot} is not in the project: {error}")))
                logging.warning("Longreel: shot %d is not in the project: %s", place.shot, error)
    if place.shot == place.shots:
        report.finish("\n".join(filter(None, (note, longer.describe()))))
    return longer


def _plan(engine: Engine, reel: Reel, shots: Sequence[Shot], decisions: Sequence[Decision | None]) -> list[ShotPlan]:
    """The plan of each shot behind those before it: the takes that are used, where there are such."""
    plans: list[ShotPlan] = []
    film: list[TimedShot] = [*reel.shots]
    before = reel.last_shot
    for number, (shot, decision) in enumerate(zip(shots, decisions), start=len(reel.shots) + 1):
        plans += plan_story([shot], engine.clock, film)
        film.append(plans[-1])
        if decision is not None and decision.filmed is not None:
            try:
                check_fit(reel.layout, decision.filmed, before)
            except ReelError as error:
                raise EngineError(f"Shot {number}: {error}") from error
            film[-1] = before = decision.filmed
    return plans


def _naming_take(shot: Shot, decision: Decision | None) -> Shot:
    return replace(shot, take=decision.take) if decision is not None and decision.action == "kept" else shot


def _known(project: ProjectStore, shot: Shot, previous: str, settings: Mapping[str, Any]) -> FilmedShot | None:
    """The take of a project that stands for a shot, None where it must be filmed."""
    if shot.take:
        return rebased(project.take(shot.take), previous)
    return project.find(shot_fingerprint(previous, shot, settings))


def _check_start(engine: Engine, reel: Reel, shot: Shot) -> None:
    """Raises EngineError for a shot that goes on from latents of another family: between families go pictures alone."""
    before = reel.last_shot
    if shot.start != "cut" and before is not None and before.family != engine.layout().family:
        raise EngineError(
            "The shot before was filmed by a model of another family, so this one cannot go on from its latents: start "
            "with a cut, and give it the last frame as start image."
        )


def _opened(engine: Engine, reel: Reel | None) -> Reel:
    """The reel as this engine goes on with it, an empty one for None. Raises ReelError for one it cannot go on with."""
    layout = engine.layout()
    if reel is None:
        return Reel.empty(layout)
    check_layout(reel, layout)
    return reel.joined(layout)
