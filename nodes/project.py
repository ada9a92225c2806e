"""A film as a project: its plan before it is filmed, takes of a shot side by side, and clearing away old takes."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui
from typing_extensions import override

from ..engines.engine import Engine
from ..engines.plan import plan_film
from ..engines.takes import film_takes
from ..film.reel.choice import take_of
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel
from ..film.reel.review import ReviewFile
from ..film.storyboard.text import Storyboard
from ..host.files.paths import project_folder
from .sockets import (
    FILM,
    EngineSocket,
    ReelSocket,
    StoryboardSocket,
    keep_rest_input,
    last_shot_input,
    open_project,
    project_input,
    seed_input,
    shot_number_input,
)

_REEL = "What the film goes on from, as on Film Storyboard. Without it a new film begins."


class LongreelFilmPlan(io.ComfyNode):
    """What Film Storyboard would do."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmPlan",
            display_name="Film Plan",
            category=FILM,
            description="Says what Film Storyboard would do with the same inputs, and films nothing: which shots are "
            "used again or kept, which are filmed and why, how long that takes, and what it needs.",
            search_aliases=["estimate", "dry run", "preview", "cost", "how long", "preflight"],
            inputs=[
                EngineSocket.Input("engine", tooltip="How to film."),
                StoryboardSocket.Input("storyboard", tooltip="What to film."),
                ReelSocket.Input("reel", optional=True, tooltip=_REEL),
                project_input("my film"),
                keep_rest_input(),
                last_shot_input(),
            ],
            outputs=[
                io.String.Output(display_name="plan", tooltip="A line for each shot, then time, memory and disk."),
                io.String.Output(display_name="json", tooltip="The same for programs."),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # what is on disk decides, so it looks every time

    @override
    @classmethod
    def execute(
        cls,
        engine: Engine,
        storyboard: Storyboard,
        project: str,
        keep_rest: bool = False,
        last_shot: int = 0,
        reel: Reel | None = None,
    ) -> io.NodeOutput:
        shots = storyboard.shots[: last_shot or None]
        plan = plan_film(engine, shots, reel, open_project(project), keep_rest)
        told = plan.describe()
        return io.NodeOutput(told, json.dumps(plan.to_json(), indent=1), ui=ui.PreviewText(told))


class LongreelFilmTakes(io.ComfyNode):
    """One shot with several seeds."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmTakes",
            display_name="Film Takes",
            category=FILM,
            has_intermediate_output=True,
            description="Films one shot of a storyboard with several seeds, to choose from. Every take stays in the "
            "project; write the name of the best above the shot in the storyboard.",
            search_aliases=["seed hunting", "variations", "retake", "alternatives", "choose take", "variants"],
            inputs=[
                EngineSocket.Input("engine", tooltip="How to film."),
                StoryboardSocket.Input("storyboard", tooltip="The film; the shots before it are filmed first."),
                ReelSocket.Input("reel", optional=True, tooltip=_REEL),
                project_input("my film"),
                shot_number_input("The shot of the storyboard to film, counted from 1."),
                seed_input("The first take's seed; the others count up from it."),
                io.Int.Input("takes", default=3, min=1, max=16, tooltip="More: more to choose from, and more time."),
            ],
            outputs=[
                ReelSocket.Output(
                    display_name="reels",
                    is_output_list=True,
                    tooltip="For each take the film up to it; Reel To Video makes a video of each.",
                ),
                io.String.Output(display_name="names", tooltip="A line for each take: its seed and its name."),
            ],
        )

    @override
    @classmethod
    def validate_inputs(cls, project: str | None = None) -> bool | str:
        if project is None or project.strip():
            return True
        return "Takes are kept in a project: give it a name."

    @override
    @classmethod
    def fingerprint_inputs(cls, project: str | None, **_: Any) -> str:
        return "" if project is None else ProjectStore.pruned(project_folder(project))

    @override
    @classmethod
    def execute(
        cls,
        engine: Engine,
        storyboard: Storyboard,
        project: str,
        shot: int,
        seed: int,
        takes: int,
        reel: Reel | None = None,
    ) -> io.NodeOutput:
        store = ProjectStore(project_folder(project))
        made = film_takes(engine, storyboard.shots, reel, store, shot, seed, takes)
        names = "\n".join(f"seed: {take.seed}, take: {take.name}" for take in made)
        return io.NodeOutput([take.reel for take in made], names, ui=ui.PreviewText(names))


class LongreelPruneProject(io.ComfyNode):
    """Old takes off the disk."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelPruneProject",
            display_name="Clear Old Takes",
            category=FILM,
            description="Deletes the takes of a project that this storyboard does not use. First says which, and "
            "deletes nothing, until dry_run is off.",
            search_aliases=["prune", "clean up", "delete takes", "disk space", "free disk"],
            inputs=[
                EngineSocket.Input("engine", tooltip="How the film is filmed; it decides which takes are used."),
                StoryboardSocket.Input("storyboard", tooltip="The film; the takes that it uses stay."),
                ReelSocket.Input("reel", optional=True, tooltip=_REEL),
                project_input("my film"),
                keep_rest_input(),
                io.Boolean.Input(
                    "dry_run",
                    default=True,
                    tooltip="On: only says what would be deleted. Off: deletes it, for good.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Each take, and how much disk it takes.")],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, project: str | None = None) -> bool | str:
        return True if project is None or project.strip() else "Only a project has takes to clear: name it."

    @override
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @override
    @classmethod
    def execute(
        cls,
        engine: Engine,
        storyboard: Storyboard,
        project: str,
        keep_rest: bool = False,
        dry_run: bool = True,
        reel: Reel | None = None,
    ) -> io.NodeOutput:
        store = ProjectStore(project_folder(project))
        story = plan_film(engine, storyboard.shots, reel, store, keep_rest).story
        used = {job.decision.take for job in story.jobs if job.decision is not None}
        if reel is not None:
            used |= {take_of(shot) for shot in reel.shots}
        used |= ReviewFile(store.folder).load().takes
        told = store.prune(used, dry_run=dry_run).describe()
        return io.NodeOutput(told, ui=ui.PreviewText(told))
