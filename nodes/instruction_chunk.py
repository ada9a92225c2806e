"""Longer than a clip, in a graph of one's own: the last frames of a clip are the first of the next."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..film.instruction import InstructionError
from .sockets import INSTRUCTION


class LongreelNextChunk(io.ComfyNode):
    """Hands over and joins."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelNextChunk",
            display_name="Next Chunk",
            category=INSTRUCTION,
            description="Joins a clip to the film before it, and gives the frames with which the next clip begins. "
            "Instruction Engine does both by itself, and plans anew between clips.",
            search_aliases=["aid", "autoregressive", "extend", "stitch"],
            inputs=[
                io.Image.Input("images", tooltip="The clip, decoded."),
                io.Image.Input(
                    "before",
                    optional=True,
                    tooltip="The film so far, from the Next Chunk before. Not connected: the clip is the first.",
                ),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Frames with which the next clip begins; the clip here began with as many of the film "
                    "before. More: the motion goes on over the seam, if the adapter was trained with as many.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="For the next DQFormer Conditioner."),
                io.Image.Output(display_name="film", tooltip="All frames so far, none of them twice."),
            ],
        )

    @override
    @classmethod
    def execute(cls, images: Tensor, overlap: int, before: Tensor | None = None) -> io.NodeOutput:
        if overlap >= len(images):
            raise InstructionError(
                f"The clip has {len(images)} frames and {overlap} of them are to begin the next: set overlap lower."
            )
        if before is None:
            return io.NodeOutput(images[-overlap:], images)
        if before.shape[1:] != images.shape[1:]:
            raise InstructionError(
                f"The film before has {before.shape[2]} x {before.shape[1]} pixels and the clip {images.shape[2]} x "
                f"{images.shape[1]}: make both at one size."
            )
        return io.NodeOutput(images[-overlap:], torch.cat([before, images[overlap:]]))
