"""Takes of a shot: the same shot with other seeds, side by side, all of them kept in the project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..film.reel.choice import TAKE_DIGITS
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel
from ..film.storyboard.shot import MAX_SEED, Shot
from .engine import Engine, EngineError
from .filming import film_shot, prepare

__all__ = ["FilmedTake", "film_takes"]


@dataclass(frozen=True)
class FilmedTake:
    """A take of the shot. name: as a storyboard asks for it. reel: the film up to the shot, with this take last."""

    seed: int
    name: str
    reel: Reel


def film_takes(
    engine: Engine,
    shots: Sequence[Shot],
    reel: Reel | None,
    project: ProjectStore,
    number: int,
    seed: int,
    takes: int,
) -> list[FilmedTake]:
    """Film shot `number` of a story (from 1) with `takes` seeds in a row from `seed` on, each after the same shots.

    What the project has is used again, shots before and takes alike. Raises as `prepare` and `film_shot` do, and
    EngineError for a shot that the story does not have; before anything is filmed.
    """
    if not 1 <= number <= len(shots):
        raise EngineError(f"The storyboard has {len(shots)} shots and no shot {number}: choose one of them.")
    seeds = [(seed + i) % (MAX_SEED + 1) for i in range(takes)]
    variants = [replace(shots[number - 1], seed=each, take="") for each in seeds]
    prepare(engine, [*shots[: number - 1], variants[0]], reel, project)
    before = reel
    if number > 1:
        for job in prepare(engine, shots[: number - 1], reel, project).jobs:
            before = film_shot(engine, job.shot, before, project, job.place)
    made: list[FilmedTake] = []
    for variant in variants:
        (job,) = prepare(engine, [variant], before, project).jobs
        filmed = film_shot(engine, job.shot, before, project, job.place)
        made.append(FilmedTake(variant.seed, filmed.fingerprint[:TAKE_DIGITS], filmed))
    return made
