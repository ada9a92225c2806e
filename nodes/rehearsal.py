"""A rehearsal: a whole story small and fast, before it is filmed at full size."""

from __future__ import annotations

from comfy_api.latest import io, ui
from typing_extensions import override

from ..engines.engine import EngineBase
from .sockets import FILM, EngineSocket


class LongreelRehearsalEngine(io.ComfyNode):
    """Any engine, smaller and with fewer steps."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelRehearsalEngine",
            display_name="Rehearsal Engine",
            category=FILM,
            has_intermediate_output=True,
            description="Films the whole story small and fast first, to decide on words and seeds. Bypass this node "
            "(Ctrl+B) to film at full size: seeds and decisions about them stay, and takes of the two never mix. "
            "Another size is another film: the same seed may look different.",
            search_aliases=["preview", "draft", "low resolution", "fast", "animatic", "proxy"],
            inputs=[
                EngineSocket.Input("engine", tooltip="The engine of the film; any."),
                io.Float.Input(
                    "size",
                    default=0.5,
                    min=0.1,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the film's width and height. Less: faster, and less like the film; models film "
                    "badly far below the size that they were trained at.",
                ),
                io.Float.Input(
                    "steps",
                    default=0.5,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the denoising steps. Less: faster and rougher. 1: all of them, for models that "
                    "are distilled to few.",
                ),
            ],
            outputs=[EngineSocket.Output(display_name="engine", tooltip="The engine of the rehearsal.")],
        )

    @override
    @classmethod
    def execute(cls, engine: EngineBase, size: float, steps: float) -> io.NodeOutput:
        smaller = engine.rehearsal(size, steps)
        told = f"{smaller.width}x{smaller.height} instead of {engine.width}x{engine.height}: a rehearsal"
        return io.NodeOutput(smaller, ui=ui.PreviewText(told))
