"""Clips of one's own to a dataset that a first-frame LoRA learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.first_frame import Reference
from ..film.picture_reader import on_white
from ..film.reel.project import project_folder
from ..training.core.settings import from_widgets, node_inputs
from ..training.first_frame.dataset import (
    METADATA,
    PAPER,
    CastSettings,
    CastSource,
    build_dataset,
    contact_sheet,
    load_dataset,
)
from ..training.first_frame.sources import given_clip
from ..training.first_frame.world import MINIATURE_TRIGGER, world_clips
from .sockets import MINIATURE, TRAINING, CastClipsSocket, CastDatasetSocket, references_input, references_of
from .training_run import picture

_KIND = "longreel-casts"


def dataset_folder(name: str) -> Path:
    """The folder of the dataset `name`."""
    return project_folder(Path(folder_paths.get_output_directory()) / _KIND, name)


class LongreelCastClip(io.ComfyNode):
    """A clip, its cut-outs, its plate and its caption."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCastClip",
            display_name="Cast Clip",
            category=TRAINING,
            description="A clip to learn from, with what is seen in its first frame: a reference for each thing, cut "
            "out with core's SAM3 Detect or Remove Background; the empty place; and what happens. Chain several.",
            search_aliases=["ffgo", "dataset", "training data", "training clip"],
            inputs=[
                CastClipsSocket.Input("clips", optional=True, tooltip="Clips to add this one to."),
                io.Image.Input(
                    "images",
                    tooltip="The frames, without a cut inside. Take at least as many as the dataset asks for (81); "
                    "more are left out.",
                ),
                references_input(
                    "Everything of the first frame that the LoRA learns to take from a picture, cut out of that frame. "
                    "More: each gets fewer pixels; one to four as published.",
                    least=1,
                ),
                io.Image.Input(
                    "plate",
                    optional=True,
                    tooltip="The first frame without these things, made by an image-edit model. Without one the canvas "
                    "has no place, which was never published.",
                ),
                io.String.Input(
                    "name", default="clip-001", tooltip="Its file name: letters, digits, - and _. One for each clip."
                ),
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="",
                    tooltip="What happens, naming each thing by its looks, and the camera's move. 60 to 130 words work "
                    "best. The trigger is added by itself. Text from core's Generate Text may be connected.",
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=1.0,
                    max=120.0,
                    step=0.001,
                    tooltip="Frames a second of the clip. Written into its file; training counts frames only.",
                ),
            ],
            outputs=[CastClipsSocket.Output(display_name="clips")],
        )

    @override
    @classmethod
    def execute(
        cls,
        images: Tensor,
        references: dict[str, Reference | None],
        name: str,
        caption: str,
        fps: float,
        clips: tuple[CastSource, ...] = (),
        plate: Tensor | None = None,
    ) -> io.NodeOutput:
        place = None if plate is None else on_white(plate[0])
        made = given_clip(name.strip(), on_white(images), fps, references_of(references), place, caption)
        return io.NodeOutput((*clips, made))


class LongreelMiniatureCastClips(io.ComfyNode):
    """Cast clips of the small world."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMiniatureCastClips",
            display_name="Miniature Cast Clips",
            category=MINIATURE,
            description="Clips of the miniature with one to four things pictured, drawn with exact cut-outs and "
            f'plates: a dataset to learn with. Their trigger is "{MINIATURE_TRIGGER}"',
            search_aliases=["small world", "dataset", "training data"],
            inputs=[
                io.Int.Input(
                    "count", default=8, min=1, max=1000, tooltip="Clips. More: the LoRA learns more of the world; 40."
                ),
                io.Int.Input(
                    "frames",
                    default=45,
                    min=9,
                    max=81,
                    step=4,
                    tooltip="Frames of each. More: longer motion is seen, and training costs more.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which clips; another number, others.",
                ),
            ],
            outputs=[CastClipsSocket.Output(display_name="clips")],
        )

    @override
    @classmethod
    def execute(cls, count: int, frames: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput(tuple(world_clips(count, CastSettings(64, 64, frames, MINIATURE_TRIGGER), seed=seed)))


class LongreelBuildCastDataset(io.ComfyNode):
    """Clips to the published folder layout."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelBuildCastDataset",
            display_name="Build Cast Dataset",
            category=TRAINING,
            description="Draws the canvas of every clip as FFGo's adapter was trained and writes clips, canvases, "
            "cut-outs, plates and captions in the published layout to output/longreel-casts. What is there already "
            "and has not changed is kept. Look at the contact sheet before you train.",
            search_aliases=["ffgo", "dataset", "training data", "contact sheet"],
            is_output_node=True,
            inputs=[
                CastClipsSocket.Input(
                    "clips", optional=True, tooltip="Clips to put in. None: the dataset is opened as it is."
                ),
                io.String.Input(
                    "name", default="my-cast", tooltip="Its folder in output/longreel-casts. Another name, another one."
                ),
                *node_inputs(PAPER, "width", "height", "frames", "trigger"),
                io.Boolean.Input(
                    "keep_others",
                    default=True,
                    tooltip="On: clips built earlier under this name stay, so one graph can add clip after clip. Off: "
                    "the dataset is these clips alone.",
                ),
            ],
            outputs=[
                CastDatasetSocket.Output(display_name="dataset"),
                io.Image.Output(display_name="contact sheet", tooltip="Each clip's canvas, three frames and caption."),
                io.String.Output(display_name="report", tooltip="What was left out and why, and what could be better."),
            ],
        )

    @override
    @classmethod
    def fingerprint_inputs(cls, name: str | None, clips: Any = None, **_: Any) -> Any:
        """A folder that is only opened may have been changed by others."""
        path = None if name is None else dataset_folder(name) / METADATA
        return path.stat().st_mtime_ns if path is not None and path.exists() else 0

    @override
    @classmethod
    def execute(
        cls,
        name: str,
        keep_others: bool,
        clips: tuple[CastSource, ...] = (),
        **chosen: Any,
    ) -> io.NodeOutput:
        folder, told = dataset_folder(name), list[str]()
        if clips:
            build_dataset(clips, from_widgets(PAPER, chosen), folder, keep_others=keep_others, say=told.append)
        found = load_dataset(folder)
        shown = picture(contact_sheet(found, folder))
        report = "\n".join([*told, f"{len(found)} clips in {folder}"])
        seen = {**ui.PreviewImage(shown, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(folder, shown, report, ui=seen)
