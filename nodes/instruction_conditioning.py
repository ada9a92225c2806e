"""AID on Stable Video Diffusion in a graph of one's own: adapter, model, conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..film.instruction import InstructionError, States
from ..host.files.paths import ADAPTER_KIND
from ..host.svd.adapters import AdapterFile, Strengths, apply_adapter, load_adapter
from ..host.svd.conditioning import condition
from .instruction_states import instruction_input
from .sockets import INSTRUCTION, InstructionAdapterSocket, StatesSocket


def strength_input(name: str, what: str) -> io.Float.Input:
    """How much of a part of an adapter counts."""
    return io.Float.Input(
        name,
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        advanced=True,
        tooltip=f"How much {what} counts. Less: nearer to the model as it was. 0 leaves it out; 1 as trained.",
    )


class LongreelLoadInstructionAdapter(io.ComfyNode):
    """An adapter from a file."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelLoadInstructionAdapter",
            display_name="Load Instruction Adapter",
            category=INSTRUCTION,
            description="Loads an AID adapter, with which Stable Video Diffusion does what a sentence says. Put it "
            "into models/aid. None was ever released: train one with Train Instruction Adapter.",
            search_aliases=["aid", "svd", "dqformer"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list(ADAPTER_KIND),
                    tooltip="A file in models/aid made by Longreel's trainer. Press R to look again.",
                )
            ],
            outputs=[
                InstructionAdapterSocket.Output(display_name="adapter"),
                io.String.Output(display_name="info", tooltip="What it was trained with."),
            ],
        )

    @override
    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        adapter = load_adapter(Path(folder_paths.get_full_path_or_raise(ADAPTER_KIND, file)))
        told = {**adapter.notes, **adapter.settings.to_metadata()}
        told.pop("sites")
        return io.NodeOutput(adapter, "\n".join(f"{name}: {value}" for name, value in sorted(told.items())))


class LongreelApplyInstructionAdapter(io.ComfyNode):
    """An adapter onto a model."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelApplyInstructionAdapter",
            display_name="Apply Instruction Adapter",
            category=INSTRUCTION,
            description="Puts an AID adapter onto Stable Video Diffusion. The model it comes from stays as it is.",
            search_aliases=["aid", "svd"],
            inputs=[
                io.Model.Input("model", tooltip="svd or svd_xt from core's Image Only Checkpoint Loader."),
                InstructionAdapterSocket.Input("adapter", tooltip="From Load Instruction Adapter."),
                strength_input("spatial", "the adapters beside spatial attention (how things look)"),
                strength_input("short_term", "the convolutions over neighbouring frames (motion)"),
                strength_input("long_term", "the attention over all frames (the course of the action)"),
                strength_input("text", "the attention to the instruction"),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def execute(
        cls, model: ModelPatcher, adapter: AdapterFile, spatial: float, short_term: float, long_term: float, text: float
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_adapter(model, adapter, Strengths(spatial, short_term, long_term, text)))


class LongreelInstructionConditioning(io.ComfyNode):
    """Frames and words to the conditions of a clip."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInstructionConditioning",
            display_name="DQFormer Conditioner",
            category=INSTRUCTION,
            description="First frames, an instruction and its states become a condition for every frame of a clip (AID "
            "on Stable Video Diffusion). Connect the three to Instruction Guider, or to core's Dual CFG Guider: cond1 "
            "positive, cond2 no_text, negative negative.",
            search_aliases=["aid", "svd", "image to video", "multimodal condition"],
            inputs=[
                InstructionAdapterSocket.Input("adapter", tooltip="The one that is on the model."),
                io.Clip.Input("clip", tooltip="The text encoder it was trained with: OpenCLIP ViT-H (that of SD 2.1)."),
                io.ClipVision.Input("clip_vision", tooltip="That of the SVD checkpoint."),
                io.Vae.Input("vae", tooltip="That of the SVD checkpoint."),
                io.Image.Input(
                    "frames",
                    tooltip="The first frames, in order. More, up to what the adapter was trained with: the motion "
                    "that they show goes on.",
                ),
                StatesSocket.Input(
                    "states",
                    optional=True,
                    tooltip="From Plan States or Read States. Without them the instruction stands for every state.",
                ),
                instruction_input(),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    tooltip="Pixels; frames are cropped to it. 0: the size the adapter was trained at, which is best.",
                ),
                io.Int.Input("height", default=0, min=0, max=4096, step=64, tooltip="Pixels; see width."),
                io.Int.Input(
                    "video_frames",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Frames of the clip, the given ones included. 0: as many as the adapter was trained with. "
                    "Others need `resample`.",
                ),
                io.Float.Input(
                    "augmentation",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Noise on the given frames, which the model is told of. More: freer motion, less likeness "
                    "to them. -1: as trained.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    advanced=True,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of that noise alone.",
                ),
                io.Boolean.Input(
                    "keep_known",
                    default=False,
                    advanced=True,
                    tooltip="On: the given frames come out exactly as they went in, and there may be more of them than "
                    "the adapter was trained with; a seam may show. Off: the model makes them anew.",
                ),
                io.Boolean.Input(
                    "resample",
                    default=False,
                    advanced=True,
                    tooltip="On: another number of frames is allowed; what the adapter learned for its own is "
                    "stretched over them. Off: another number is refused.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="no_text", tooltip="The frames without the words."),
                io.Conditioning.Output(display_name="negative", tooltip="Neither frames nor words."),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        adapter: AdapterFile,
        clip: CLIP,
        clip_vision: Any,
        vae: VAE,
        frames: Tensor,
        instruction: str,
        width: int,
        height: int,
        video_frames: int,
        augmentation: float,
        seed: int,
        keep_known: bool,
        resample: bool,
        states: States | None = None,
    ) -> io.NodeOutput:
        if not instruction.strip():
            raise InstructionError("The instruction is empty: say what shall happen.")
        settings = adapter.settings
        made = condition(
            adapter,
            clip,
            clip_vision,
            vae,
            frames,
            instruction,
            states,
            size=(width or settings.width, height or settings.height),
            video_frames=video_frames or None,
            augmentation=None if augmentation < 0 else augmentation,
            seed=seed,
            keep_known=keep_known,
            resample=resample,
        )
        return io.NodeOutput(made.positive, made.no_text, made.negative, made.latent)
