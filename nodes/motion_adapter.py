"""A motion adapter: loaded, onto a model, and its motion apart again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.nested_tensor
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.motion import MotionError
from ..host.adapters.motion import MotionAdapter, attach, read_adapter
from .sockets import MOTION, MotionAdapterSocket


class LongreelLoadMotionAdapter(io.ComfyNode):
    """A file to an adapter."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelLoadMotionAdapter",
            display_name="Load Motion Adapter",
            category=MOTION,
            has_intermediate_output=True,
            description="Loads an adapter that lets a Wan model predict motion beside appearance (VideoJAM), made by "
            "Train Motion Adapter. Says what it was made for and how good its motion is.",
            search_aliases=["videojam", "optical flow", "motion lora", "joint appearance motion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A motion adapter in models/loras. It fits the model that it names, and models fine-tuned "
                    "from that.",
                ),
            ],
            outputs=[
                MotionAdapterSocket.Output(display_name="adapter"),
                io.Float.Output(display_name="motion_scale", tooltip="What the file recommends for Inner Guidance."),
                io.String.Output(display_name="report", tooltip="What it was made for, and how good its motion is."),
            ],
        )

    @override
    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        adapter = read_adapter(Path(folder_paths.get_full_path_or_raise("loras", file)))
        told = _report(adapter)
        return io.NodeOutput(adapter, adapter.info.recommended_w2, told, ui=ui.PreviewText(told))


class LongreelApplyMotionAdapter(io.ComfyNode):
    """An adapter onto a model."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelApplyMotionAdapter",
            display_name="Apply Motion Adapter",
            category=MOTION,
            description="The model denoises appearance and motion together. Works with every loader and sampler; of "
            "Wan 2.2 A14B apply it to the high-noise model only. Follow it with Inner Guidance.",
            search_aliases=["videojam", "better motion", "motion lora"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan text-to-video or image-to-video model, from any loader."),
                MotionAdapterSocket.Input("adapter", tooltip="From Load Motion Adapter."),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the adapter's LoRA acts on the model. 1 as trained; 0 leaves the model as it "
                    "is.",
                ),
                io.Float.Input(
                    "motion_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the predicted motion acts on the picture. 1 as trained; 0 for none.",
                ),
                io.Boolean.Input(
                    "return_motion",
                    default=False,
                    tooltip="Give the motion out with the latent, for Split Motion Latent. For ordinary samplers; not "
                    "for the engines.",
                ),
                io.Int.Input(
                    "seed_offset",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    advanced=True,
                    tooltip="Another number: another motion, from the same seed and so the same first layout.",
                ),
                io.Latent.Input(
                    "motion_latent",
                    optional=True,
                    tooltip="The motion that an earlier stage returned, for a second stage that goes on with it.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        adapter: MotionAdapter,
        lora_strength: float,
        motion_strength: float,
        return_motion: bool,
        seed_offset: int,
        motion_latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        applied = attach(
            model,
            adapter,
            lora_strength=lora_strength,
            motion_strength=motion_strength,
            return_motion=return_motion,
            seed_offset=seed_offset,
            start=None if motion_latent is None else motion_latent["samples"],
        )
        return io.NodeOutput(applied)


class LongreelSplitMotionLatent(io.ComfyNode):
    """A joint latent to its two halves."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelSplitMotionLatent",
            display_name="Split Motion Latent",
            category=MOTION,
            description="The latent of a sampler that returns motion, taken apart. Decode the motion with the same VAE "
            "to see it as colours.",
            search_aliases=["videojam", "optical flow", "separate latent"],
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="From a sampler whose model has Apply Motion Adapter with return_motion on."
                )
            ],
            outputs=[
                io.Latent.Output(display_name="appearance"),
                io.Latent.Output(display_name="motion", tooltip="Flow as a video: hue is direction, intensity speed."),
            ],
        )

    @override
    @classmethod
    def execute(cls, latent: dict[str, Any]) -> io.NodeOutput:
        samples = latent["samples"]
        if not isinstance(samples, comfy.nested_tensor.NestedTensor):
            raise MotionError("There is no motion in this latent: switch on return_motion of Apply Motion Adapter.")
        appearance, motion = samples.unbind()
        rest = {key: value for key, value in latent.items() if key != "noise_mask"}
        return io.NodeOutput({**latent, "samples": appearance}, {**rest, "samples": motion})


def _report(adapter: MotionAdapter) -> str:
    """What a person should know of a file, a line each."""
    info = adapter.info
    layers = sum(key.endswith("up.weight") for key in adapter.trunk)
    trunk = "whole weights" if info.full else f"a LoRA of {layers} layers"
    lines = [
        f"{adapter.name}: for {info.base_model}, {info.head} head, {trunk}.",
        f"Flow as {info.codec.encoding}, {info.flow_fps:g} frames per second"
        + (f", by {info.flow_model}." if info.flow_model else "."),
    ]
    lines += [
        f"At noise {level.sigma:.2f} its motion is off by {level.error:.2f} pixels, no motion by {level.trivial:.2f}; "
        f"direction by {level.direction:.0f} degrees."
        for level in info.gate.levels
    ]
    if not info.gate.levels:
        lines.append("How good its motion is was never measured: the gate of Inner Guidance does nothing.")
    warning = info.gate.warning()
    return "\n".join([*lines, warning] if warning else lines)
