"""A storyboard, written in the graph or read from a file."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.storyboard.text import (
    DEFAULT_SECONDS,
    MAX_SECONDS,
    Storyboard,
    StoryboardError,
    format_storyboard,
    parse_storyboard,
    read_storyboards,
    storyboard_faults,
)
from ..host.files.paths import EXAMPLE_STORIES, input_file
from ..host.files.pictures import fingerprint_files
from .sockets import START, StoryboardSocket

_SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".fountain")
_MOST_FAULTS = 12
"""Mistakes that are named at once."""
_SHIPPED = " [longreel]"
_EXAMPLE = """\
seconds: 10
A red ball with a crown on the left walks in the forest.
---
seconds: 10
A blue star with a top hat jumps at the beach.
---
seconds: 10
The same character walks in the forest.
[5s] The same character jumps in the forest."""


class LongreelStoryboard(io.ComfyNode):
    """Text to storyboard."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelStoryboard",
            display_name="Storyboard",
            category=START,
            has_intermediate_output=True,
            description="The film in words: its shots, how long each lasts, and how one follows the other.",
            search_aliases=["script", "shot list", "screenplay", "story", "prompts", "timeline", "multi-shot"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default=_EXAMPLE,
                    tooltip="Shots stand one after the other with a line --- between them. Above a shot's words may "
                    "stand its settings: `seconds: 5, seed: 3, start: continue, references: face.png`. More seconds: a "
                    "longer shot. Another seed: another take. start: cut (a new take) or continue (the last one goes "
                    "on). A line that begins with [2.5s] changes what is seen from there on.",
                ),
            ],
            outputs=[StoryboardSocket.Output(display_name="storyboard")],
        )

    @override
    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        if text is None:  # connected: not known before it runs
            return True
        faults = storyboard_faults(text)
        return "\n".join(map(str, faults[:_MOST_FAULTS])) or True

    @override
    @classmethod
    def fingerprint_inputs(cls, text: str | None) -> str:
        return "" if text is None else _fingerprint_references(parse_storyboard(text))

    @override
    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return _output(parse_storyboard(text))


class LongreelStoryboardFromFile(io.ComfyNode):
    """File to storyboard."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelStoryboardFromFile",
            display_name="Storyboard From File",
            category=START,
            has_intermediate_output=True,
            description="A storyboard from a file in ComfyUI's input folder: text, JSON, or one story on each line.",
            search_aliases=["load storyboard", "import script", "jsonl", "open story"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_files(),
                    tooltip="A file of the input folder, or our examples. .txt is read like the Storyboard node's "
                    "text, .json is a storyboard in JSON, .jsonl holds one story a line, as MemFlow publishes them.",
                ),
                io.Int.Input(
                    "story",
                    default=1,
                    min=1,
                    max=100_000,
                    tooltip="Which story of a .jsonl file, counted from 1. Other files hold one.",
                ),
                io.Float.Input(
                    "seconds_per_prompt",
                    default=DEFAULT_SECONDS,
                    min=0.1,
                    max=MAX_SECONDS,
                    step=0.5,
                    tooltip="Length of each shot of a .jsonl story, which states none. More: longer shots. Other files "
                    "state their own.",
                ),
            ],
            outputs=[StoryboardSocket.Output(display_name="storyboard")],
        )

    @override
    @classmethod
    def validate_inputs(cls, file: str | None = None, story: int | None = None) -> bool | str:
        if file is None:
            return True
        try:
            _choose(file, 1 if story is None else story, DEFAULT_SECONDS)
        except ValueError as error:
            return str(error)
        return True

    @override
    @classmethod
    def fingerprint_inputs(cls, file: str | None, story: int | None, seconds_per_prompt: float | None) -> str:
        if file is None or story is None or seconds_per_prompt is None:
            return ""
        board = _choose(file, story, seconds_per_prompt)
        return format_storyboard(board) + _fingerprint_references(board)

    @override
    @classmethod
    def execute(cls, file: str, story: int, seconds_per_prompt: float) -> io.NodeOutput:
        return _output(_choose(file, story, seconds_per_prompt))


def _files() -> list[str]:
    names, _ = folder_paths.recursive_search(folder_paths.get_input_directory())
    theirs = (name.replace("\\", "/") for name in names if name.lower().endswith(_SUFFIXES))
    return [*sorted(theirs), EXAMPLE_STORIES.name + _SHIPPED]


def _path(file: str) -> Path:
    return EXAMPLE_STORIES if file == EXAMPLE_STORIES.name + _SHIPPED else input_file(file)


def _choose(file: str, story: int, seconds_per_prompt: float) -> Storyboard:
    stories = read_storyboards(_path(file), seconds_per_prompt)
    if not 1 <= story <= len(stories):
        raise StoryboardError(f"{file} has no story {story}: its last is number {len(stories)}.")
    return stories[story - 1]


def _fingerprint_references(board: Storyboard) -> str:
    return fingerprint_files(name for shot in board.shots for name in shot.references)


def _output(board: Storyboard) -> io.NodeOutput:
    count = "1 shot" if len(board.shots) == 1 else f"{len(board.shots)} shots"
    return io.NodeOutput(board, ui=ui.PreviewText(f"{count}, {board.seconds:g} s"))
