"""Filming shot by shot, with a decision after each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from typing_extensions import override

from ..engines.engine import Engine
from ..engines.review import review_story
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel
from ..film.reel.review import ReviewFile
from ..film.storyboard.text import Storyboard, format_storyboard
from ..host.files.paths import project_folder
from .film import changes_on_disk, expand_story
from .sockets import FILM, EngineSocket, ReelSocket, StoryboardSocket, keep_rest_input, project_input


class LongreelReviewFilm(io.ComfyNode):
    """A storyboard onto a reel, up to the first shot that nobody approved. Expands into one Film Shot for each."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelReviewFilm",
            display_name="Film With Review",
            category=FILM,
            has_intermediate_output=True,
            description="Films a storyboard up to the first shot that you have not approved, and stops there. Look at "
            "it, then approve it, retry it with another seed, change its words, or stop.",
            search_aliases=["approve", "review gate", "pause", "human in the loop", "step by step", "retake"],
            enable_expand=True,
            inputs=[
                EngineSocket.Input("engine", tooltip="How to film; a reel goes on with the engine it was filmed with."),
                StoryboardSocket.Input("storyboard", tooltip="The whole film."),
                ReelSocket.Input(
                    "reel",
                    optional=True,
                    tooltip="What was filmed before, to go on with. Without it a new film begins.",
                ),
                project_input("my film"),
                keep_rest_input(),
            ],
            outputs=[
                ReelSocket.Output(display_name="reel", tooltip="The film up to the shot that waits, or all of it."),
                io.Int.Output(
                    display_name="shot",
                    tooltip="The number of the shot that waits, to show it alone: connect it to first_shot of Reel To "
                    "Video. 1 when all are approved.",
                ),
                io.String.Output(
                    display_name="storyboard", tooltip="The storyboard with the seeds of the retried shots, to keep."
                ),
            ],
        )

    @override
    @classmethod
    def validate_inputs(cls, project: str | None = None) -> bool | str:
        return True if project is None or project.strip() else "The review lies in a project: give it a name."

    @override
    @classmethod
    def fingerprint_inputs(cls, project: str | None, **_: Any) -> str:
        if project is None:
            return ""
        return changes_on_disk(project) + ReviewFile(project_folder(project)).decisions()

    @override
    @classmethod
    def execute(
        cls, engine: Engine, storyboard: Storyboard, project: str, keep_rest: bool = False, reel: Reel | None = None
    ) -> io.NodeOutput:
        store = ProjectStore(project_folder(project))
        reviewed = review_story(engine, storyboard.shots, reel, store, keep_rest)
        said = reviewed.describe()
        last, entries = expand_story(reviewed.story, project, said)
        shot = reviewed.waiting.shot if reviewed.waiting is not None else 1
        text = format_storyboard(replace(storyboard, shots=reviewed.shots))
        return io.NodeOutput(last, shot, text, expand=entries, ui=ui.PreviewText(said))
