"""Editing a film, whichever engine films: begin with a clip, extend or retake any shot, go back to a moment."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..engines.editing import begin_with_clip, extend_shot, fork, retake_shot
from ..engines.engine import Engine
from ..film.reel.reel import Reel
from ..film.storyboard.shot import Shot, TimedPrompt
from .sockets import FILM, EngineSocket, ReelSocket, seed_input, shot_number_input

_ENGINE = "Any engine that goes on from a shot: causal, or cache-guided with filmweaver, vace, storymem or svi."


class LongreelStartFromVideo(io.ComfyNode):
    """A clip as a shot, to be continued."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelStartFromVideo",
            display_name="Start From Video",
            category=FILM,
            has_intermediate_output=True,
            description="Puts a clip of yours on the reel as a shot. Go on with a shot that starts with continue, or "
            "cut and let it be remembered.",
            search_aliases=["extend video", "video to video", "continue clip", "import video"],
            inputs=[
                EngineSocket.Input("engine", tooltip="Any engine: the clip takes its size and frame rate."),
                io.Image.Input("images", tooltip="The frames, at the engine's frame rate."),
                ReelSocket.Input("reel", optional=True, tooltip="What the clip comes after. Without it a film begins."),
                io.Int.Input(
                    "from_frame",
                    default=0,
                    min=0,
                    max=10**6,
                    tooltip="The film goes on after this frame of the clip, counted from 1; what follows it is left "
                    "out. 0: after the last.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="A video clip.",
                    tooltip="What is seen, for the record; the clip is not filmed again.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The reel with the clip as its newest shot.")],
        )

    @override
    @classmethod
    def execute(
        cls, engine: Engine, images: Tensor, from_frame: int, prompt: str, reel: Reel | None = None
    ) -> io.NodeOutput:
        reel = Reel.empty(engine.layout()) if reel is None else reel
        longer = begin_with_clip(engine, reel, images[: from_frame or None], prompt)
        return io.NodeOutput(longer, ui=ui.PreviewText(longer.describe()))


class LongreelExtendShot(io.ComfyNode):
    """More of any shot of a finished film."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelExtendShot",
            display_name="Extend Shot",
            category=FILM,
            has_intermediate_output=True,
            description="Films on where any shot of a reel ends, with what was remembered there.",
            search_aliases=["continue", "longer", "insert", "extend video"],
            inputs=[
                EngineSocket.Input("engine", tooltip=_ENGINE),
                ReelSocket.Input("reel", tooltip="The finished film."),
                shot_number_input("The shot that goes on, counted from 1."),
                io.String.Input(
                    "prompt", multiline=True, default="A red ball jumps.", tooltip="What is seen from there on."
                ),
                io.Float.Input(
                    "seconds", default=2.0, min=0.05, max=3600.0, step=0.05, tooltip="More: it goes on for longer."
                ),
                seed_input("Another seed: another take."),
                io.Boolean.Input(
                    "keep_rest",
                    default=True,
                    tooltip="On: the later shots stay behind it as they are. Off: the film ends with the new piece, to "
                    "be filmed on.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The film with the new piece in its place.")],
        )

    @override
    @classmethod
    def execute(
        cls, engine: Engine, reel: Reel, shot: int, prompt: str, seconds: float, seed: int, keep_rest: bool
    ) -> io.NodeOutput:
        piece = Shot((TimedPrompt(0, prompt),), seconds, seed, "continue")
        longer = extend_shot(engine, reel, shot, piece, keep_rest)
        return io.NodeOutput(longer, ui=ui.PreviewText(longer.describe()))


class LongreelRetakeShot(io.ComfyNode):
    """Another take of any shot of a finished film."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelRetakeShot",
            display_name="Retake Shot",
            category=FILM,
            has_intermediate_output=True,
            description="Films one shot of a reel again with another seed, and with it the shots that continue it. "
            "What comes after the next cut stays as it was filmed, though it still remembers the old take.",
            search_aliases=["again", "seed", "redo", "variation", "alternative take"],
            inputs=[
                EngineSocket.Input("engine", tooltip="The engine that the shot was filmed with, or another that fits."),
                ReelSocket.Input("reel", tooltip="The finished film; it stays as it is."),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The picture that the shot began with, where it was given one: the reel does not keep it.",
                ),
                shot_number_input("The shot to film again, counted from 1."),
                seed_input("Another seed: another take. The shots that continue it keep theirs."),
                io.Boolean.Input(
                    "keep_rest",
                    default=True,
                    tooltip="On: the shots from the next cut on stay as they are. Off: the film ends with the new "
                    "take, to be filmed on with what it remembers.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The film with the new take in its place.")],
        )

    @override
    @classmethod
    def execute(
        cls, engine: Engine, reel: Reel, shot: int, seed: int, keep_rest: bool, start_image: Tensor | None = None
    ) -> io.NodeOutput:
        longer = retake_shot(engine, reel, shot, seed, keep_rest, start_image)
        return io.NodeOutput(longer, ui=ui.PreviewText(longer.describe()))


class LongreelForkReel(io.ComfyNode):
    """A reel as it was earlier."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelForkReel",
            display_name="Rollback / Fork",
            category=FILM,
            has_intermediate_output=True,
            description="Goes back to an earlier moment of a reel, with all it remembered then. The reel given stays "
            "as it is, so two endings can be filmed from one beginning.",
            search_aliases=["undo", "branch", "rewind", "trim"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The reel to go back in; of any engine."),
                shot_number_input("The last shot that stays, counted from 1. 0: none.", least=0),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.05,
                    tooltip="How much of that shot stays. 0: all of it. The causal engine then remembers only the "
                    "last frames of it.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The reel as it was then.")],
        )

    @override
    @classmethod
    def execute(cls, reel: Reel, shot: int, seconds: float) -> io.NodeOutput:
        earlier = fork(reel, shot, seconds)
        return io.NodeOutput(earlier, ui=ui.PreviewText(earlier.describe()))
