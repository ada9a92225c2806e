"""The plan of a film before it is filmed: what is kept, what is filmed and why, and what that costs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ..film.reel.choice import TAKE_DIGITS
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel, human_size
from ..film.storyboard.shot import Shot
from ..host.figures import device_name, seconds_per_step
from .engine import Engine
from .filming import Story, prepare

__all__ = ["FilmPlan", "plan_film"]


@dataclass(frozen=True)
class FilmPlan:
    """What filming a story will do.

    story: its shots and what becomes of each. steps: of each shot. seconds_per_step: measured on this machine, None
    where nothing was filmed so. device: what films. weights, remembered: bytes of the models and of what the engine
    remembers while it films (None: unknown). free: bytes free on the device. latents: bytes that each shot's latents
    take on disk; what is remembered of it comes on top. disk_free: bytes free where the project lies, None without one.
    """

    story: Story
    steps: tuple[int, ...]
    seconds_per_step: float | None
    device: str
    weights: int
    remembered: int | None
    free: int
    latents: tuple[int, ...]
    disk_free: int | None

    @property
    def films(self) -> tuple[bool, ...]:
        """Of each shot: whether it is filmed."""
        return tuple(job.decision is None or job.decision.action == "filmed" for job in self.story.jobs)

    @property
    def seconds(self) -> float | None:
        """How long filming will take, by what this machine was measured to take; None: unknown."""
        if self.seconds_per_step is None:
            return None
        return self.seconds_per_step * sum(steps for steps, films in zip(self.steps, self.films) if films)

    def describe(self) -> str:
        """The plan in words: a line for each shot, then what it costs."""
        lines = self.story.describe().splitlines()
        if not lines:
            lines = [f"shot {job.place.shot} filmed: there is no project to keep it in" for job in self.story.jobs]
        count, films = len(self.films), sum(self.films)
        disk = sum(size for size, films in zip(self.latents, self.films) if films)
        remembered = "" if self.remembered is None else f", {human_size(self.remembered)} for what is remembered"
        free = "" if self.disk_free is None else f"; {human_size(self.disk_free)} free"
        return "\n".join(
            [
                *lines,
                f"{films} of {count} {'shot' if count == 1 else 'shots'} to film",
                f"time: {self._time(films)}",
                f"memory: {human_size(self.weights)} of weights{remembered}; {human_size(self.free)} free",
                f"disk: {human_size(disk)} and what is remembered of each shot{free}",
            ]
        )

    def _time(self, films: int) -> str:
        if not films:
            return "nothing is filmed"
        if self.seconds is None:
            return f"unknown, as nothing was filmed so on this machine yet ({self.device})"
        minutes = self.seconds / 60
        told = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} minutes"
        return f"about {told}, as measured on this machine ({self.device}); decoding comes on top"

    def to_json(self) -> dict[str, Any]:
        """The plan for programs."""
        shots = [
            {
                "shot": job.place.shot,
                "action": "filmed" if job.decision is None else job.decision.action,
                "reason": "" if job.decision is None else job.decision.reason,
                "take": "" if job.decision is None else job.decision.take[:TAKE_DIGITS],
                "seconds": job.plan.seconds,
                "seed": job.shot.seed,
                "steps": steps,
                "latent_bytes": size,
            }
            for job, steps, size in zip(self.story.jobs, self.steps, self.latents)
        ]
        return {
            "shots": shots,
            "film": sum(self.films),
            "seconds": self.seconds,
            "device": self.device,
            "weights_bytes": self.weights,
            "remembered_bytes": self.remembered,
            "free_bytes": self.free,
            "disk_free_bytes": self.disk_free,
        }


def plan_film(
    engine: Engine, shots: Sequence[Shot], reel: Reel | None, project: ProjectStore | None, keep: bool = False
) -> FilmPlan:
    """The plan of these shots on the reel; nothing is filmed. Raises as `prepare`, which filming calls as well."""
    story = prepare(engine, shots, reel, project, keep=keep)
    layout = engine.layout()
    plans = [job.plan for job in story.jobs]
    film = sum(shot.latent_frames for shot in reel.shots) if reel else 0
    film += sum(plan.latent_frames for plan in plans)
    shape = layout.latents.shape(1, layout.width, layout.height)
    bytes_per_latent = 4 * shape[1] * shape[3] * shape[4]
    return FilmPlan(
        story=story,
        steps=tuple(engine.steps(plan) for plan in plans),
        seconds_per_step=seconds_per_step(engine.settings()),
        device=device_name(),
        weights=sum(model.model_size() for model in engine.get_models()),
        remembered=engine.memory_bytes(film),
        free=int(comfy.model_management.get_free_memory()),
        latents=tuple(plan.latent_frames * bytes_per_latent for plan in plans),
        disk_free=None if project is None else _free(project.folder),
    )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
