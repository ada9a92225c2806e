"""Optical flow as pictures, and back."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.motion import ENCODINGS, FlowCodec, MotionError, pad_flow, resize_flow
from ..film.motion.codec import Encoding, Padding
from ..host.media.optical_flow import flow_between
from .sockets import MOTION, FlowSocket, OpticalFlowSocket


def _codec_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "encoding",
            options=list(ENCODINGS),
            default="hsv_black",
            advanced=True,
            tooltip="hsv_black: what stands still is black. wheel_white: the usual colour wheel over white. An adapter "
            "knows the one that it was trained with.",
        ),
        io.Float.Input(
            "sigma",
            default=0.15,
            min=0.001,
            max=1.0,
            step=0.005,
            advanced=True,
            tooltip="The displacement that saturates, as a share of the diagonal. Less: slow motion is told more "
            "finely, fast motion is cut off. 0.15 as published.",
        ),
    ]


def estimator_input() -> io.Custom.Input:
    """The network that finds flow."""
    return OpticalFlowSocket.Input(
        "optical_flow",
        optional=True,
        tooltip="From core's Load Optical Flow Model (RAFT). Without it blocks of pixels are matched: coarse, but "
        "nothing need be downloaded.",
    )


class LongreelFlowToRGB(io.ComfyNode):
    """A video's motion as a video."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFlowToRGB",
            display_name="Flow To RGB",
            category=MOTION,
            description="The motion of a video as pictures that a video VAE can encode: hue is the direction, "
            "intensity the speed. One picture for each frame.",
            search_aliases=["optical flow", "raft", "videojam", "visualize motion"],
            inputs=[
                io.Image.Input("images", optional=True, tooltip="A video; its flow is computed."),
                FlowSocket.Input("flow", optional=True, tooltip="Or flow that is there already, from RGB To Flow."),
                estimator_input(),
                *_codec_inputs(),
                io.Combo.Input(
                    "first",
                    options=["zero_first", "repeat_first"],
                    default="zero_first",
                    advanced=True,
                    tooltip="What the first frame shows, before which nothing moved: no motion, as our adapters are "
                    "trained, or that of the first pair.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Of the pictures; 0 keeps the video's. Displacements are scaled with it.",
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=8192, step=8, advanced=True, tooltip="Of the pictures; see width."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                FlowSocket.Output(display_name="flow", tooltip="The flow itself, in pixels."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        encoding: Encoding,
        sigma: float,
        first: Padding,
        width: int,
        height: int,
        images: Tensor | None = None,
        flow: Tensor | None = None,
        optical_flow: Any = None,
    ) -> io.NodeOutput:
        if (images is None) == (flow is None):
            raise MotionError("Connect either images or flow, one of the two.")
        if images is not None:
            bar = comfy.utils.ProgressBar(len(images) - 1)
            flow = flow_between(images, optical_flow, lambda done, pairs: bar.update_absolute(done, pairs))
        assert flow is not None
        flow = resize_flow(flow, (height or flow.shape[-2], width or flow.shape[-1]))
        return io.NodeOutput(FlowCodec(encoding, sigma).encode(pad_flow(flow, first)), flow)


class LongreelRGBToFlow(io.ComfyNode):
    """Pictures of motion to motion."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelRGBToFlow",
            display_name="RGB To Flow",
            category=MOTION,
            has_intermediate_output=True,
            description="Pictures of flow, such as a decoded motion latent or Flow To RGB's, to displacements in "
            "pixels, for Motion Report and Flow To RGB.",
            search_aliases=["optical flow", "decode flow", "videojam"],
            inputs=[
                io.Image.Input("images", tooltip="Pictures of flow, one for each frame of the video."),
                *_codec_inputs(),
            ],
            outputs=[
                FlowSocket.Output(display_name="flow", tooltip="From each frame to the next, in pixels."),
                io.String.Output(display_name="report", tooltip="Mean and largest displacement."),
            ],
        )

    @override
    @classmethod
    def execute(cls, images: Tensor, encoding: Encoding, sigma: float) -> io.NodeOutput:
        if len(images) < 2:
            raise MotionError("A single picture of flow is that of the first frame, which has no motion: connect all.")
        # The first picture stands for the first frame, before which there is none.
        flow = FlowCodec(encoding, sigma).decode(images[1:, ..., :3])
        length = flow.square().sum(dim=1).sqrt()
        told = f"{len(flow)} flows, mean {float(length.mean()):.2f} pixels, largest {float(length.max()):.2f}."
        return io.NodeOutput(flow, told, ui=ui.PreviewText(told))
