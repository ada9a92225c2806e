"""Filming: one shot, or a whole storyboard shot by shot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor
from typing_extensions import override

from ..engines.engine import Engine
from ..engines.filming import Place, Story, film_shot, prepare
from ..film.picture_reader import on_white
from ..film.reel.project import ProjectStore
from ..film.reel.reel import Reel
from ..film.reel.stored_tensors import losses
from ..film.storyboard.text import Storyboard, StoryboardError, format_shot, parse_shot
from ..host.expansion import input_link, leave_note, own_note
from ..host.files.paths import project_folder, spill_folder
from ..host.files.pictures import fingerprint_files
from .sockets import (
    FILM,
    EngineSocket,
    ReelSocket,
    StoryboardSocket,
    keep_rest_input,
    last_shot_input,
    open_project,
    project_input,
)

_REEL_TOOLTIP = "What was filmed before, to go on with. Without it a new film begins."


class LongreelFilmShot(io.ComfyNode):
    """One shot onto a reel."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmShot",
            display_name="Film Shot",
            category=FILM,
            description="Films one shot and puts it on the reel. Chain several to look at each before the next.",
            search_aliases=["shoot", "take", "sampler", "generate video", "extend video", "scene"],
            inputs=[
                EngineSocket.Input("engine", tooltip="How to film; a reel goes on with the engine it was filmed with."),
                ReelSocket.Input("reel", optional=True, tooltip=_REEL_TOOLTIP),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The shot begins with this picture, cut to the film's size. Only for a shot that starts "
                    "with a cut.",
                ),
                io.String.Input(
                    "shot",
                    multiline=True,
                    default="seconds: 5\nA red ball with a crown walks in the forest.",
                    tooltip="The shot in words, written as in a storyboard. More seconds: a longer shot. Another seed: "
                    "another take.",
                ),
                project_input(""),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="What was filmed before, and this shot.")],
        )

    @override
    @classmethod
    def validate_inputs(cls, shot: str | None = None) -> bool | str:
        if shot is None:
            return True
        try:
            parse_shot(shot)
        except StoryboardError as error:
            return str(error)
        return True

    @override
    @classmethod
    def fingerprint_inputs(cls, shot: str | None, project: str | None, **_: Any) -> str:
        files = "" if shot is None else fingerprint_files(parse_shot(shot).references)
        return files + changes_on_disk(project)

    @override
    @classmethod
    def execute(
        cls, engine: Engine, shot: str, project: str, reel: Reel | None = None, start_image: Tensor | None = None
    ) -> io.NodeOutput:
        asked, store, note = parse_shot(shot), open_project(project), own_note()
        start_image = None if start_image is None else on_white(start_image)
        if not note:
            story = prepare(engine, [asked], reel, store, start_image)
            note = {"place": asdict(story.jobs[0].place), "text": story.report()}
        place = Place(**note["place"])
        longer = film_shot(engine, asked, reel, store, place, picture=start_image, note=note["text"])
        said = "\n".join(filter(None, (note["text"], longer.describe())))
        return io.NodeOutput(longer, ui=ui.PreviewText(said))


class LongreelFilmStoryboard(io.ComfyNode):
    """All shots of a storyboard onto a reel. Expands into one Film Shot for each."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmStoryboard",
            display_name="Film Storyboard",
            category=FILM,
            has_intermediate_output=True,
            description="Films a storyboard shot by shot. Change a shot and queue again: only it and the shots after "
            "it are filmed again.",
            search_aliases=["multi shot", "multi-shot", "consistent", "make movie", "long video", "render story"],
            enable_expand=True,
            inputs=[
                EngineSocket.Input("engine", tooltip="How to film; a reel goes on with the engine it was filmed with."),
                StoryboardSocket.Input("storyboard", tooltip="What to film."),
                ReelSocket.Input("reel", optional=True, tooltip=_REEL_TOOLTIP),
                project_input("my film"),
                keep_rest_input(),
                last_shot_input(),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="What was filmed before, and all these shots.")],
        )

    @override
    @classmethod
    def fingerprint_inputs(cls, project: str | None, **_: Any) -> str:
        return changes_on_disk(project)

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
        story = prepare(engine, storyboard.shots[: last_shot or None], reel, open_project(project), keep=keep_rest)
        said = story.report()
        last, entries = expand_story(story, project, said)
        return io.NodeOutput(last, expand=entries, ui=ui.PreviewText(said))


def expand_story(story: Story, project: str, said: str) -> tuple[Any, dict[str, Any]]:
    """The executing node's story as one Film Shot for each of its shots, on its engine and reel.

    said: the text that stays on the node. Returns the link to the last reel, and the graph.
    """
    graph = GraphBuilder()
    last = input_link("reel")
    for job in story.jobs:
        node = graph.node("LongreelFilmShot", engine=input_link("engine"), shot=format_shot(job.shot), project=project)
        # Without a link there must be no input: None would become part of what the cache compares.
        if last is not None:
            node.set_input("reel", last)
        last = node.out(0)
    entries = graph.finalize()
    for entry, job in zip(entries.values(), story.jobs):
        leave_note(entry, {"place": asdict(job.place), "text": said})
    return last, entries


def changes_on_disk(project: str | None) -> str:
    """Another text when takes of the project were deleted or lost: reels that ComfyUI remembers may refer to them."""
    return _losses(project) + _pruned(project)


def _pruned(project: str | None) -> str:
    return ProjectStore.pruned(project_folder(project)) if project and project.strip() else ""


def _losses(project: str | None) -> str:
    """Changes when a file of a filmed shot has gone, of the project or of those that lie there while ComfyUI runs: what
    ComfyUI's cache holds of it is then of no use.
    """
    kept = losses(project_folder(project)) if project and project.strip() else 0
    lost = kept + losses(spill_folder())
    return f" {lost} files lost" if lost else ""
