"""The KV memory of a film: display, retrieve, edit."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui
from typing_extensions import override

from ..engines.causal_memory import kv_bank_engine, memory_log, pin_and_ban
from ..engines.engine import Engine, EngineError
from ..film.kv_memory.plot import draw_log
from ..film.kv_memory.recall import RetrievedFrame
from ..film.reel.reel import Reel
from ..host.files.pictures import as_image
from .sockets import MEMORY, EngineSocket, ReelSocket, numbers_of


class LongreelRetrieveMemory(io.ComfyNode):
    """A prompt to the frames of the memory with the highest scores for it."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelRetrieveMemory",
            display_name="Retrieve Memory",
            category=MEMORY,
            description="Shows, before you pay for a shot, which remembered frames a prompt fits best. When the memory "
            "bank is full, the frame that fits the prompt least has to leave.",
            search_aliases=["memory bank", "narrative memory", "recall", "memflow retrieval"],
            inputs=[
                EngineSocket.Input("engine", tooltip="The causal engine that the reel was filmed with."),
                ReelSocket.Input("reel", tooltip="The film so far."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What the next shot would say. Name what should come back the way earlier shots named it.",
                ),
                io.Int.Input(
                    "top",
                    default=6,
                    min=1,
                    max=128,
                    tooltip="How many frames to show, the best first. More: also those that will soon be forgotten.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames as stills, the best first."),
                io.String.Output(
                    display_name="report",
                    tooltip="JSON, one entry for each image: latent frame (for Pin Memory), sink or bank, share of the "
                    "model's layers that hold it, score, pinned or not.",
                ),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(cls, engine: Engine, reel: Reel, prompt: str, top: int) -> io.NodeOutput:
        found, images = kv_bank_engine(engine).retrieve(reel, prompt, top)
        report = json.dumps([item.to_json() for item in found], indent=1)
        words = "\n".join(_describe(item, reel) for item in found)
        shown = {**ui.PreviewImage(images, cls=cls).as_dict(), **ui.PreviewText(words).as_dict()}
        return io.NodeOutput(images, report, ui=shown)


def _describe(item: RetrievedFrame, reel: Reel) -> str:
    layout = reel.layout
    seconds = max(0, 1 + layout.temporal_compression * (item.frame - 1)) / layout.fps
    pinned = ", pinned" if item.pinned else ""
    return f"#{item.frame} ({seconds:.1f} s), {item.role}, {item.layers:.0%} of layers, score {item.score:.4f}{pinned}"


class LongreelPinMemory(io.ComfyNode):
    """A reel to a reel with some frames of its memory pinned and others banned."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelPinMemory",
            display_name="Pin Memory",
            category=MEMORY,
            description="Decides what the film goes on remembering: pinned frames never leave the memory bank, banned "
            "ones are forgotten at once. Holds for the shots filmed after it; the reel that came in stays as it is.",
            search_aliases=["ban memory", "keep frame", "forget frame", "memory bank"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The film so far, made by the causal engine with a bank."),
                io.String.Input(
                    "pin",
                    default="",
                    tooltip="Latent frames to keep for ever, such as 12, 24: the numbers that Retrieve Memory and "
                    "Memory View show. More: steadier, but new things find less room; one place must stay free.",
                ),
                io.String.Input(
                    "ban",
                    default="",
                    tooltip="Latent frames to forget, such as 30. More: fewer old frames are seen until new ones are "
                    "recorded in their place.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel")],
        )

    @override
    @classmethod
    def validate_inputs(cls, pin: str | None = None, ban: str | None = None) -> bool | str:
        try:
            _numbers(pin or "")
            _numbers(ban or "")
        except ValueError as error:
            return str(error)
        return True

    @override
    @classmethod
    def execute(cls, reel: Reel, pin: str, ban: str) -> io.NodeOutput:
        return io.NodeOutput(pin_and_ban(reel, _numbers(pin), _numbers(ban)))


def _numbers(text: str) -> list[int]:
    return numbers_of(text, "a latent frame")


class LongreelMemoryView(io.ComfyNode):
    """A reel to a picture of what every block saw."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMemoryView",
            display_name="Memory View",
            category=MEMORY,
            description="Draws, block by block, which earlier frames the model saw: the film's first ones (sink), the "
            "memory bank and the recent past (window), with scores and choices as JSON.",
            search_aliases=["memory plot", "memory bank view", "attention memory", "memflow debug"],
            inputs=[
                ReelSocket.Input("reel", tooltip="A film made by the causal engine."),
                io.Int.Input(
                    "layer",
                    default=-1,
                    min=-1,
                    max=1000,
                    tooltip="One layer of the model, from 0: each remembers on its own. -1 shows all of them; the "
                    "stronger a colour, the more layers hold the frame.",
                ),
                io.Int.Input(
                    "shot",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Only this shot of the film, from 1; 0 shows the whole film.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.String.Output(
                    display_name="report",
                    tooltip="JSON, one entry for each block: sink, window, and for each layer the bank's frames, their "
                    "scores when one had to leave, and how many heads picked each.",
                ),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(cls, reel: Reel, layer: int, shot: int) -> io.NodeOutput:
        if shot > len(reel.shots):
            raise EngineError(f"The reel has {len(reel.shots)} shots, not {shot}: choose one of them, or 0 for all.")
        lines = [line for line in memory_log(reel) if shot in (0, line["shot"])]
        plot = as_image(draw_log(lines, None if layer < 0 else layer))
        return io.NodeOutput(plot, json.dumps(lines), ui=ui.PreviewImage(plot, cls=cls))
