"""A story filmed up to the first take that nobody has approved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..film.reel.choice import TAKE_DIGITS
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel
from ..film.reel.review import ReviewFile, Waiting, asked
from ..film.storyboard.shot import Shot
from .engine import Engine
from .filming import Story, prepare

__all__ = ["ReviewedStory", "review_story"]


@dataclass(frozen=True)
class ReviewedStory:
    """What is filmed of a story under review.

    story: its shots up to the one that is reviewed. shots: all of them, with the seeds that were retried. waiting: what
    is reviewed; None when everything is approved. note: what became of a decision in a file, "" without one.
    """

    story: Story
    shots: tuple[Shot, ...]
    waiting: Waiting | None
    note: str

    def describe(self) -> str:
        """A line for each shot, then where the review stands."""
        waiting = self.waiting
        stands = "every shot is approved"
        if waiting is not None:
            does = "ends the film" if waiting.stopped else "waits: approve it, retry it with another seed, or stop here"
            stands = f"shot {waiting.shot} of {waiting.shots}, take {waiting.take[:TAKE_DIGITS]}, {does}"
        return "\n".join(filter(None, (self.note, self.story.report(), stands)))


def review_story(
    engine: Engine, shots: Sequence[Shot], reel: Reel | None, project: ProjectStore, keep: bool = False
) -> ReviewedStory:
    """Look at a whole story, take the decision that lies in the project as a file, and note which take waits.

    A shot whose take the storyboard names is approved with that. Nothing is filmed. Raises as `prepare` does, and
    ReelError for a review that cannot be read or written.
    """
    file = ReviewFile(project.folder)
    review, note = file.take_decision()
    seeded = review.seeded(shots)
    story = prepare(engine, seeded, reel, project, keep=keep)
    jobs = story.jobs
    takes = [job.decision.take for job in jobs if job.decision is not None]
    first = review.first_open(takes, [bool(shot.take) for shot in shots])
    waiting = None
    if first is not None:
        shot, shots_in_all = jobs[first].place.shot, jobs[first].place.shots
        waiting = Waiting(shot, shots_in_all, takes[first], asked(shots)[first], seeded[first].seed)
    # Read anew: a button may have been pressed since.
    waiting = file.update(lambda review: review.at(waiting)).waiting
    return ReviewedStory(_first(story, len(jobs) if first is None else first + 1), tuple(seeded), waiting, note)


def _first(story: Story, count: int) -> Story:
    """A story of the first shots alone, with all its warnings."""
    jobs = story.jobs
    end = jobs[count - 1].place.shot
    total = jobs[count].place.done if count < len(jobs) else jobs[-1].place.total
    places = [replace(job.place, shots=end, total=total) for job in jobs[:count]]
    return replace(story, jobs=tuple(replace(job, place=place) for job, place in zip(jobs, places)))
