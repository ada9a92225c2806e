"""How a video moves."""

from __future__ import annotations

import json
import math
from typing import Any

from comfy.sd import VAE
from comfy_api.latest import Input, io, ui
from torch import Tensor
from typing_extensions import override

from ..film.motion.plot import plot_motion
from ..film.reel.reel import Reel
from ..host.files.pictures import as_image
from ..host.media.optical_flow import measure_motion
from ..host.media.source import footage_of
from .motion_flow import estimator_input
from .sockets import REPORT, FlowSocket, ReelSocket


class LongreelMotionReport(io.ComfyNode):
    """A video to its measures of motion."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMotionReport",
            display_name="Motion Report",
            category=REPORT,
            description="Measures how much and how smoothly any video moves: speed, dynamic degree, acceleration, "
            "smoothness. With an adapter's motion also how far that is from the video's own. As JSON and a plot.",
            search_aliases=["dynamic degree", "smoothness", "vbench", "optical flow", "videojam", "metrics"],
            inputs=[
                ReelSocket.Input("reel", optional=True, tooltip="A reel to measure; it needs the vae too."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the reel."),
                io.Video.Input("video", optional=True, tooltip="Or a video, of any model or camera."),
                io.Image.Input("images", optional=True, tooltip="Or the video as images; give their fps below."),
                estimator_input(),
                FlowSocket.Input(
                    "predicted",
                    optional=True,
                    tooltip="The motion that the adapter predicted for this video: the motion latent decoded, through "
                    "RGB To Flow.",
                ),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=0.1,
                    max=1000.0,
                    step=0.1,
                    tooltip="Frames per second of images; a video and a reel know their own.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="json", tooltip="All figures."),
                io.Image.Output(display_name="plot"),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(
        cls,
        fps: float,
        reel: Reel | None = None,
        vae: VAE | None = None,
        video: Input.Video | None = None,
        images: Tensor | None = None,
        optical_flow: Any = None,
        predicted: Tensor | None = None,
    ) -> io.NodeOutput:
        footage = footage_of(images, fps, video, reel, vae)
        made = measure_motion(footage, optical_flow, predicted)
        figures = {**made.figures(), "speeds": made.speeds, "interpolation errors": made.errors}
        said = json.dumps({name: _plain(value) for name, value in figures.items()}, indent=1)
        plot = as_image(plot_motion(made))
        return io.NodeOutput(said, plot, ui=ui.PreviewImage(plot, cls=cls))


def _plain(value: Any) -> Any:
    """Without NaN, which JSON has no word for."""
    return None if isinstance(value, float) and math.isnan(value) else value
