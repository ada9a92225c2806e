"""Reports on finished videos: consistency, and who is in them when."""

from __future__ import annotations

import json
from typing import Any

from comfy.sd import VAE
from comfy_api.latest import Input, io, ui
from torch import Tensor
from typing_extensions import override

from ..film.first_frame import Reference
from ..film.metrics import (
    MetricsError,
    boxes_from_json,
    continuity_table,
    identity_table,
    parse_characters,
    parse_times,
    plot_continuity,
    plot_identity,
)
from ..film.reel.reel import Reel
from ..film.storyboard.text import Storyboard
from ..host.files.pictures import as_image
from ..host.media.embedder import Embedder
from ..host.media.measure import ContinuityOptions, measure_continuity, measure_identity
from ..host.media.source import footage_of
from .sockets import REPORT, KeyframeClipSocket, ReelSocket, StoryboardSocket, references_input, references_of

_LEAST_FPS, _MOST_FPS = 0.1, 240.0


class LongreelContinuityReport(io.ComfyNode):
    """A video to its measures."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelContinuityReport",
            display_name="Continuity Report",
            category=REPORT,
            description="Measures whether the shots of any video belong together: consistency, alignment with the "
            "prompts, copying, sharpness of cuts, motion, drift of colour and contrast. As a table, JSON and a plot.",
            search_aliases=["metrics", "evaluate", "consistency", "clip score", "benchmark", "filmweaver", "vbench"],
            inputs=[
                KeyframeClipSocket.Input(
                    "keyframe_clip",
                    tooltip="The CLIP that measures; the report names it. Only reports of one CLIP can be compared; a "
                    "larger one tells characters apart better.",
                ),
                *_video_inputs(),
                StoryboardSocket.Input(
                    "storyboard",
                    optional=True,
                    tooltip="The prompts, one entry for each shot. A reel brings its own. Without: no alignment.",
                ),
                _bboxes_input("keyframe; run once without them for the keyframes output"),
                io.String.Input(
                    "cuts",
                    default="",
                    tooltip="Where shots begin, in seconds or m:ss: 5, 0:10.5. Empty: a reel's own, else hard cuts are "
                    "looked for. More: more and shorter shots.",
                ),
                io.String.Input(
                    "characters",
                    multiline=True,
                    default="",
                    tooltip="A line for each, name: description. Each is looked for among the boxes. More words: told "
                    "apart better, up to some 50.",
                ),
                _boxes_input("keyframe"),
                io.Int.Input(
                    "keyframes",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Frames that stand for a shot. 1: the middle one, as usual. More: steadier figures, "
                    "more time, and each is kept in memory.",
                ),
                io.Float.Input(
                    "least_cosine",
                    default=0.18,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How well a box must fit a description to be that character. More: fewer mistakes, more "
                    "characters overlooked. Boxes with the character's name as label need none.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.String.Output(
                    display_name="json", tooltip="All figures, and who was found where: may be put into boxes again."
                ),
                io.Image.Output(display_name="plot"),
                io.Image.Output(display_name="keyframes", tooltip="For a detector: a picture for each list of boxes."),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(
        cls, cuts: str | None = None, characters: str | None = None, boxes: str | None = None, fps: float | None = None
    ) -> bool | str:
        if fps is not None and not _LEAST_FPS <= fps <= _MOST_FPS:  # ComfyUI leaves to us what is named here
            return f"fps must be a number from {_LEAST_FPS:g} to {_MOST_FPS:g}, not {fps}."
        try:
            parse_times(cuts or "", fps or 1.0)
            parse_characters(characters or "")
            boxes_from_json(boxes or "")
        except MetricsError as error:
            return str(error)
        return True

    @override
    @classmethod
    def execute(
        cls,
        keyframe_clip: Embedder,
        fps: float,
        cuts: str,
        characters: str,
        boxes: str,
        keyframes: int,
        least_cosine: float,
        reel: Reel | None = None,
        vae: VAE | None = None,
        video: Input.Video | None = None,
        images: Tensor | None = None,
        storyboard: Storyboard | None = None,
        bboxes: Any = None,
    ) -> io.NodeOutput:
        made = measure_continuity(
            footage_of(images, fps, video, reel, vae),
            keyframe_clip,
            storyboard.shots if storyboard is not None else (),
            parse_characters(characters),
            _given_boxes(bboxes, boxes),
            ContinuityOptions(cuts, keyframes, least_cosine),
        )
        table, plot = continuity_table(made.report), as_image(plot_continuity(made.report))
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), "text": (table,)}
        return io.NodeOutput(table, json.dumps(made.report.to_dict(), indent=1), plot, made.keyframes, ui=shown)


class LongreelIdentityReport(io.ComfyNode):
    """A video and its cast to who is in it when."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelIdentityReport",
            display_name="Identity Report",
            category=REPORT,
            description="Measures how like each reference a video stays over time, by CLIP and DINO, and says who is "
            "missing when. As a table, JSON and a plot.",
            search_aliases=["metrics", "evaluate", "identity", "clip-i", "dino", "ffgo", "likeness", "subject"],
            inputs=[
                KeyframeClipSocket.Input(
                    "keyframe_clip", tooltip="The CLIP that measures; the report names it. See Continuity Report."
                ),
                references_input("Who to look for, as they were cast.", least=1),
                *_video_inputs(),
                io.ClipVision.Input(
                    "dino",
                    optional=True,
                    tooltip="A second opinion that looks at details more than at meaning: DINOv2 in core's Load CLIP "
                    "Vision.",
                ),
                _bboxes_input("frame looked at; run once without them for the frames output"),
                _boxes_input("frame looked at"),
                io.Int.Input(
                    "samples",
                    default=16,
                    min=1,
                    max=1000,
                    tooltip="Frames looked at, spread over the video. More: finer in time; each costs as much.",
                ),
                io.Float.Input(
                    "missing_below",
                    default=0.7,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="CLIP cosine with the reference below which it counts as missing. More: stricter. It "
                    "depends on the CLIP: look at the plot of a video in which you know who is there.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.String.Output(display_name="json", tooltip="All figures, for each reference and frame."),
                io.Image.Output(display_name="plot"),
                io.Image.Output(display_name="frames", tooltip="Those looked at, for a detector."),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, boxes: str | None = None, references: Any = None) -> bool | str:
        try:
            boxes_from_json(boxes or "")
        except MetricsError as error:
            return str(error)
        return True

    @override
    @classmethod
    def execute(
        cls,
        keyframe_clip: Embedder,
        references: dict[str, Reference | None],
        fps: float,
        boxes: str,
        samples: int,
        missing_below: float,
        reel: Reel | None = None,
        vae: VAE | None = None,
        video: Input.Video | None = None,
        images: Tensor | None = None,
        dino: Any = None,
        bboxes: Any = None,
    ) -> io.NodeOutput:
        report, frames = measure_identity(
            footage_of(images, fps, video, reel, vae),
            references_of(references),
            keyframe_clip,
            dino,
            _given_boxes(bboxes, boxes),
            samples,
            missing_below,
        )
        table, plot = identity_table(report), as_image(plot_identity(report, 100 * missing_below))
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), "text": (table,)}
        return io.NodeOutput(table, json.dumps(report.to_dict(), indent=1), plot, frames, ui=shown)


def _video_inputs() -> list[io.Input]:
    """The video, in one of three forms."""
    return [
        ReelSocket.Input("reel", optional=True, tooltip="The film to measure, decoded in a stream; or:"),
        io.Vae.Input("vae", optional=True, tooltip="For a reel: the VAE that it was filmed with."),
        io.Video.Input("video", optional=True, tooltip="Any video; a file is read in pieces, however long; or:"),
        io.Image.Input("images", optional=True, tooltip="The frames of a video, all in memory."),
        io.Float.Input(
            "fps",
            default=24.0,
            min=_LEAST_FPS,
            max=_MOST_FPS,
            step=1.0,
            tooltip="Frames a second of the images; a video and a reel know their own. More: the same motion counts as "
            "faster.",
        ),
    ]


def _bboxes_input(picture: str) -> io.Input:
    return io.BoundingBox.Input(
        "bboxes",
        optional=True,
        force_input=True,
        tooltip=f"From RT-DETR or SAM3 Detect: a list for each {picture}.",
    )


def _boxes_input(picture: str) -> io.String.Input:
    return io.String.Input(
        "boxes",
        multiline=True,
        default="",
        tooltip=f'The same by hand, as JSON: for each {picture} a list such as [{{"x": 8, "y": 4, "width": 30, '
        '"height": 50, "label": "name"}]. More: more places are looked at. A label that is a name settles who it is.',
    )


def _given_boxes(bboxes: Any, text: str) -> Any:
    typed = boxes_from_json(text)
    if bboxes is not None and typed is not None:
        raise MetricsError("There are boxes from a detector and boxes in text: use one of them.")
    return typed if bboxes is None else bboxes
