"""The caches in a KSampler graph."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from typing_extensions import override

from ..engines.dual_cache_bank import keyframe_engine
from ..engines.engine import Engine
from ..film.reel.reel import Reel
from .sockets import MEMORY, EngineSocket, ReelSocket, seed_input


class LongreelCacheConditioning(io.ComfyNode):
    """What the engine would condition its model on, for ordinary sampling nodes."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCacheConditioning",
            display_name="Cache Conditioning",
            category=MEMORY,
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
                seed_input("Of the noise on the caches; another changes what they tell a little."),
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
        guided = keyframe_engine(engine)
        reel = Reel.empty(guided.layout()) if reel is None else reel
        given = guided.conditioning_for(reel, positive, negative, prompt, frames, goes_on, seed)
        shape = guided.latent_shape(given.frames)
        middle = given.negative if given.middle is None else given.middle
        return io.NodeOutput(given.positive, given.negative, middle, {"samples": torch.zeros(shape)}, given.trim)
