"""The causal rollout alone, as a sampler for ComfyUI's own custom sampling nodes."""

from __future__ import annotations

from typing import Any, cast

from comfy_api.latest import io
from typing_extensions import override

from ..host.wan.rollout import RolloutSampler
from .sockets import FILM, frames_per_block_input, loop_input, memory_input, memory_settings


class LongreelCausalSampler(io.ComfyNode):
    """Settings to a SAMPLER."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelCausalSampler",
            display_name="Causal Sampler",
            category=FILM,
            description="The causal rollout for one prompt, in ComfyUI's own graph: connect it to Sampler Custom "
            "Advanced with an empty video latent of whole blocks, or with a clip's latent and denoise below 1 to "
            "change the clip. Guidance must be 1 (Basic Guider).",
            search_aliases=["sampler", "memflow sampler", "self forcing sampler", "autoregressive sampler"],
            inputs=[loop_input(), frames_per_block_input(), memory_input()],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @override
    @classmethod
    def execute(cls, loop: str, frames_per_block: int, memory: dict[str, Any] | None = None) -> io.NodeOutput:
        settings = memory_settings(memory)
        return io.NodeOutput(RolloutSampler(settings=settings, frames_per_block=frames_per_block, loop=cast(Any, loop)))
