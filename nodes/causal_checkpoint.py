"""Released causal checkpoints to models."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..host.files.causal_checkpoints import causal_sources, load_causal, source_path
from .sockets import START

_NONE = "none"


class LongreelLoadCausalCheckpoint(io.ComfyNode):
    """A checkpoint file, and a LoRA if there is one, to a causal model."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelLoadCausalCheckpoint",
            display_name="Load Causal Checkpoint",
            category=START,
            description="Opens the released files of Self-Forcing, LongLive, MemFlow and ShotStream, .pt and all, and "
            "plain Wan text-to-video files. What ComfyUI cannot open is converted once and kept beside your models.",
            search_aliases=["self forcing", "longlive", "memflow", "shotstream", "convert checkpoint", "pt loader"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=causal_sources(),
                    tooltip="A file or sharded folder of models/diffusion_models, such as self_forcing_dmd.pt, "
                    "longlive_base.pt, MemFlow's base.pt or shotstream_merged.pt. The first time a .pt is opened, "
                    "2.8 GB are written.",
                ),
                io.Combo.Input(
                    "lora",
                    options=[_NONE, *folder_paths.get_filename_list("loras")],
                    default=_NONE,
                    tooltip="The LoRA that belongs to it, from models/loras. LongLive and MemFlow are base and LoRA "
                    "together: without it they make short clips only.",
                ),
                io.DynamicCombo.Input(
                    "lora_use",
                    options=[
                        io.DynamicCombo.Option("merge", []),
                        io.DynamicCombo.Option(
                            "patch",
                            [
                                io.Float.Input(
                                    "strength",
                                    default=1.0,
                                    min=-10.0,
                                    max=10.0,
                                    step=0.05,
                                    tooltip="1 is as trained. Less: nearer to the base, which forgets sooner.",
                                ),
                            ],
                        ),
                    ],
                    tooltip="merge adds the LoRA to the weights once and for all, exactly; patch applies it each time "
                    "at a strength you choose, as ComfyUI's LoRA loader does, and shares the base's file.",
                ),
                io.Boolean.Input(
                    "averaged",
                    default=False,
                    advanced=True,
                    tooltip="On: take the averaged (EMA) weights where a file holds both. Off: the trained ones.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, lora: str | None, **_: object) -> str:
        named = [("diffusion_models", checkpoint), ("loras", None if lora == _NONE else lora)]
        files = [source_path(kind, name) for kind, name in named if name is not None]
        return " ".join(f"{file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    @override
    @classmethod
    def execute(
        cls, checkpoint: str, lora: str, averaged: bool, lora_use: dict[str, object] | None = None
    ) -> io.NodeOutput:
        if lora_use is None:  # left out, or none of the choices, by who calls ComfyUI's API
            raise ValueError("Choose a lora_use: merge or patch.")
        patch = lora_use["lora_use"] == "patch"
        strength = float(str(lora_use.get("strength", 1.0)))
        chosen = None if lora == _NONE else lora
        return io.NodeOutput(load_causal(checkpoint, chosen, patch=patch, strength=strength, ema=averaged))
