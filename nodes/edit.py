"""Filming on from anywhere: a clip, the end of any shot, an earlier moment; and the caches in a KSampler graph."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..engines.editing import as_cache_guided, begin_with_clip, extend_shot, fork
from ..engines.engine import Engine
from ..film.reel.reel import Reel
from ..film.storyboard.shot import MAX_SEED, Shot, TimedPrompt
from .sockets import CATEGORY, EngineSocket, ReelSocket

_ENGINE = "A cache-guided engine of the reel's size and VAE that remembers motion (filmweaver, vace, storymem, svi)."


class LongreelStartFromVideo(io.ComfyNode):
    """A clip as a shot, to be continued."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelStartFromVideo",
            display_name="Start From Video",
            category=f"{CATEGORY}/caches",
            description="Puts a clip of yours on the reel as a shot. Go on with a shot that starts with continue, or "
            "cut and let it be remembered.",
            search_aliases=["extend video", "video to video", "continue clip", "import video"],
            inputs=[
                EngineSocket.Input("engine", tooltip="A cache-guided engine: the clip takes its size and frame rate."),
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
        guided = as_cache_guided(engine)
        reel = Reel.empty(guided.layout()) if reel is None else reel
        longer = begin_with_clip(guided, reel, images[: from_frame or None], prompt)
        return io.NodeOutput(longer, ui=ui.PreviewText(longer.describe()))


class LongreelExtendShot(io.ComfyNode):
    """More of any shot of a finished film."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelExtendShot",
            display_name="Extend Shot",
            category=f"{CATEGORY}/caches",
            description="Films on where any shot of a reel ends, with what was remembered there.",
            search_aliases=["continue", "longer", "insert", "extend video"],
            inputs=[
                EngineSocket.Input("engine", tooltip=_ENGINE),
                ReelSocket.Input("reel", tooltip="The finished film."),
                io.Int.Input("shot", default=1, min=1, max=10**6, tooltip="The shot that goes on, counted from 1."),
                io.String.Input(
                    "prompt", multiline=True, default="A red ball jumps.", tooltip="What is seen from there on."
                ),
                io.Float.Input(
                    "seconds", default=2.0, min=0.05, max=3600.0, step=0.05, tooltip="More: it goes on for longer."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Another seed: another take.",
                ),
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
        longer = extend_shot(as_cache_guided(engine), reel, shot, piece, keep_rest)
        return io.NodeOutput(longer, ui=ui.PreviewText(longer.describe()))


class LongreelForkReel(io.ComfyNode):
    """A reel as it was earlier."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelForkReel",
            display_name="Rollback / Fork",
            category=f"{CATEGORY}/caches",
            description="Goes back to an earlier moment of a reel, with all it remembered then. The reel given stays "
            "as it is, so two endings can be filmed from one beginning.",
            search_aliases=["undo", "branch", "rewind", "trim"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The reel to go back in; of any engine."),
                io.Int.Input(
                    "shot", default=1, min=0, max=10**6, tooltip="The last shot that stays, counted from 1. 0: none."
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.05,
                    tooltip="How much of that shot stays. 0: all of it. The causal engine forgets its past in a shot "
                    "that is cut short.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The reel as it was then.")],
        )

    @override
    @classmethod
    def execute(cls, reel: Reel, shot: int, seconds: float) -> io.NodeOutput:
        earlier = fork(reel, shot, seconds)
        return io.NodeOutput(earlier, ui=ui.PreviewText(earlier.describe()))


class LongreelCacheConditioning(io.ComfyNode):
    """What the engine would tell its model, for ordinary sampling nodes."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCacheConditioning",
            display_name="Cache Conditioning",
            category=f"{CATEGORY}/caches",
            description="Conditioning and latent of the next chunk for a KSampler graph of your own. Sample with the "
            "engine's model; cut `trim` latents off the front afterwards (Trim Video Latent).",
            search_aliases=["ksampler", "context latents", "cache tokens", "reference conditioning"],
            inputs=[
                EngineSocket.Input("engine", tooltip="A cache-guided engine; it chooses keyframes and backend."),
                io.Conditioning.Input("positive", tooltip="The prompt, encoded."),
                io.Conditioning.Input("negative", tooltip="What should not be seen, encoded."),
                ReelSocket.Input("reel", optional=True, tooltip="What is remembered. Without it: only the prompt."),
                io.String.Input(
                    "prompt", multiline=True, default="A red ball.", tooltip="The same prompt in words, for keyframes."
                ),
                io.Int.Input(
                    "frames",
                    default=21,
                    min=1,
                    max=4096,
                    tooltip="Latent frames to film (4 pictures each), beside those to trim; filmweaver has its own "
                    "number. More: longer.",
                ),
                io.Boolean.Input(
                    "goes_on", default=False, tooltip="On: goes on with the reel's last shot. Off: a new shot."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the noise on the caches; another changes what they tell a little.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Conditioning.Output(
                    display_name="middle",
                    tooltip="filmweaver, phantom: cond2 of core's Dual CFG Guider. Others: the same as negative.",
                ),
                io.Latent.Output(display_name="latent"),
                io.Int.Output(display_name="trim", tooltip="Latent frames to cut off the front after sampling."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        engine: Engine,
        positive: list[object],
        negative: list[object],
        prompt: str,
        frames: int,
        goes_on: bool,
        seed: int,
        reel: Reel | None = None,
    ) -> io.NodeOutput:
        guided = as_cache_guided(engine)
        reel = Reel.empty(guided.layout()) if reel is None else reel
        given = guided.tell(reel, positive, negative, prompt, frames, goes_on, seed)
        shape = guided.latent_shape(given.frames)
        middle = given.negative if given.middle is None else given.middle
        return io.NodeOutput(given.positive, given.negative, middle, {"samples": torch.zeros(shape)}, given.trim)
