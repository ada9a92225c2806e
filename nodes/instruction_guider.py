"""Guidance towards frames and words, for core's custom sampling nodes."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from typing_extensions import override

from ..host.guidance import SpatioTemporalGuidance, Window
from ..host.guider import Guider
from .sockets import INSTRUCTION


def guidance_inputs() -> list[io.Float.Input]:
    """Strengths of guidance towards frames and words."""
    scale = {"min": 0.0, "max": 30.0, "step": 0.1}
    return [
        io.Float.Input(
            "text_scale",
            default=3.0,
            tooltip="Guidance towards the words. More: the sentence decides more of what happens, and colours harden. "
            "1: none beyond the condition itself; 0: the words are left out.",
            **scale,
        ),
        io.Float.Input(
            "frame_scale",
            default=2.0,
            tooltip="Guidance towards the given frames, at the last frame. More: later frames stay more like them.",
            **scale,
        ),
        io.Float.Input(
            "first_frame_scale",
            default=1.0,
            advanced=True,
            tooltip="The same at the first frame; in between it changes evenly.",
            **scale,
        ),
    ]


class LongreelInstructionGuider(io.ComfyNode):
    """Guidance in three passes."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInstructionGuider",
            display_name="Instruction Guider",
            category=INSTRUCTION,
            description="Guides towards the given frames and towards the words, each with a strength of its own, for "
            "core's Sampler Custom Advanced. Up to three model calls a step; those that do not count are left out.",
            search_aliases=["aid", "dual cfg", "instruct pix2pix", "guider"],
            inputs=[
                io.Model.Input("model", tooltip="With the adapter on it."),
                io.Conditioning.Input("positive", tooltip="Frames and words."),
                io.Conditioning.Input("no_text", tooltip="Frames without words."),
                io.Conditioning.Input("negative", tooltip="Neither."),
                *guidance_inputs(),
                io.Float.Input(
                    "text_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the steps after which the words count; before, they are left out. Later: layout "
                    "is left to the frames.",
                ),
                io.Float.Input(
                    "text_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the steps after which the words are left out. Earlier: faster, and details are "
                    "left to the frames.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list[Any],
        no_text: list[Any],
        negative: list[Any],
        text_scale: float,
        frame_scale: float,
        first_frame_scale: float,
        text_start: float,
        text_end: float,
    ) -> io.NodeOutput:
        window = Window(text_start, text_end)
        guidance = SpatioTemporalGuidance((first_frame_scale, frame_scale), text_scale, window)
        conds = {"negative": negative, "no_text": no_text, "positive": positive}
        return io.NodeOutput(Guider(model, [guidance], conds))
