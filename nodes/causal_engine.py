"""Ways to film: a node for each engine."""

from __future__ import annotations

from typing import Any, cast

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..engines.causal import CausalEngine
from ..engines.causal_schedule import CausalSchedule, causal_schedule
from ..host.wan.rollout import RolloutError
from .sockets import (
    START,
    EngineSocket,
    fps_input,
    frames_per_block_input,
    loop_input,
    memory_input,
    memory_settings,
    size_inputs,
)


class LongreelCausalEngine(io.ComfyNode):
    """Models and settings to a causal engine."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCausalEngine",
            display_name="Causal Engine",
            category=START,
            description="Films block by block and remembers what it filmed, at a cost that does not grow with the "
            "film. For Wan text-to-video models trained for it: MemFlow, LongLive, Self-Forcing, ShotStream, the "
            "miniature.",
            search_aliases=[
                "memflow",
                "longlive",
                "self forcing",
                "autoregressive",
                "causal wan",
                "infinite video",
                "shotstream",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A causal Wan text-to-video model from any loader, LoRA and all."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model (umt5_xxl for Wan)."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model (wan_2.1_vae for Wan 2.1 and 2.2 14B)."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="A noise schedule of your own, from 1 down to 0; then `steps` does not count. Without it "
                    "even steps are used at the shift of the models that the memory is for; the node says which.",
                ),
                *size_inputs(
                    832,
                    480,
                    "Pixels. More: finer pictures; time and memory grow faster than the picture. Use a size the model "
                    "was trained at.",
                ),
                fps_input(
                    "Frames a second the model was trained at (16 for Wan 2.1). More: each second of the "
                    "storyboard costs more frames; motion does not get faster, it is shown faster.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=100,
                    tooltip="Denoising calls for each block. More: slower and cleaner; models distilled to 4 gain "
                    "little beyond.",
                ),
                loop_input(),
                frames_per_block_input(),
                memory_input(),
            ],
            outputs=[EngineSocket.Output(display_name="engine")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        width: int,
        height: int,
        fps: float,
        steps: int,
        loop: str,
        frames_per_block: int,
        memory: dict[str, Any] | None = None,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise RolloutError("The loader gave no text encoder: connect one that belongs to the model.")
        remembers = memory_settings(memory)
        if sigmas is None:
            chosen = causal_schedule(model, steps, remembers, cast(Any, loop))
        else:
            chosen = CausalSchedule(tuple(map(float, sigmas)), "Schedule: the sigmas that are connected.")
        engine = CausalEngine(
            models=(model,),
            clip=clip,
            vae=vae,
            width=width,
            height=height,
            fps=fps,
            sigmas=chosen.sigmas,
            loop=cast(Any, loop),
            memory=remembers,
            frames_per_block=frames_per_block,
        )
        engine.check()
        return io.NodeOutput(engine, ui=ui.PreviewText(chosen.reason))
