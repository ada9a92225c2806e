"""Clips and sentences to a dataset, and a dataset to an AID adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.instruction import States
from ..film.reel.project import project_folder
from ..host.files.paths import ADAPTER_KIND
from ..host.media.plan_states import StatePlanner
from ..host.svd.adapters import check_fits, load_adapter
from ..training.core.in_node import training_in_node
from ..training.core.run import on_its_device
from ..training.core.settings import from_widgets, node_inputs
from ..training.instruction.data import (
    InstructionDataError,
    InstructionDataset,
    architecture_of,
    encode_clips,
    encoders_of,
    list_clips,
)
from ..training.instruction.train import PAPER, train_adapter
from .instruction_states import states_count_input
from .sockets import TRAINING, InstructionAdapterSocket, InstructionDatasetSocket
from .training_run import run_folder, run_name_input, trained


class LongreelInstructionDataset(io.ComfyNode):
    """Clips and sentences, encoded."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInstructionDataset",
            display_name="Instruction Dataset",
            category=TRAINING,
            description="Encodes clips and the sentences that say what happens in them, for Train Instruction Adapter. "
            "What is encoded is kept, also when interrupted. A clip that cannot be read is left out and named.",
            search_aliases=["aid", "training data", "svd"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="svd or svd_xt from core's Image Only Checkpoint Loader."),
                io.Clip.Input("clip", tooltip="The text encoder to train with: OpenCLIP ViT-H (that of SD 2.1)."),
                io.ClipVision.Input("clip_vision", tooltip="That of the SVD checkpoint."),
                io.Vae.Input("vae", tooltip="That of the SVD checkpoint."),
                io.Clip.Input(
                    "language_model",
                    optional=True,
                    tooltip="A vision-language model from Load CLIP: plans the states of clips whose text has none. "
                    "Without one the instruction stands for every state of those.",
                ),
                io.String.Input(
                    "videos",
                    default="clips",
                    tooltip="Folder of clips, one action in each, each with a .txt of the same name: the instruction "
                    "in its first line, its states, if you know them, in further ones. Its full path, or its name in "
                    "the input folder.",
                ),
                io.String.Input("name", default="my-skill", tooltip="The dataset's folder in output/longreel-skills."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=64,
                    tooltip="Of each clip, spread evenly over the whole of it; the adapter films as many. 12 to 16 as "
                    "published.",
                ),
                io.Int.Input("width", default=256, min=64, max=2048, step=64, tooltip="Pixels; clips are cut to it."),
                io.Int.Input("height", default=256, min=64, max=2048, step=64, tooltip="Pixels; see width."),
                states_count_input(),
                io.Int.Input(
                    "known_frames",
                    default=1,
                    min=1,
                    max=32,
                    advanced=True,
                    tooltip="The adapter is trained to go on from 1 to this many frames. More: motion goes on where "
                    "chunks join.",
                ),
            ],
            outputs=[
                InstructionDatasetSocket.Output(display_name="dataset"),
                io.String.Output(display_name="report", tooltip="What was left out, and why."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        clip_vision: Any,
        vae: VAE,
        videos: str,
        name: str,
        frames: int,
        width: int,
        height: int,
        states: int,
        known_frames: int,
        language_model: CLIP | None = None,
    ) -> io.NodeOutput:
        if not videos.strip():
            raise InstructionDataError("No folder is named: write the folder of your clips into videos.")
        encoders = encoders_of(model, clip, clip_vision, vae)
        architecture = architecture_of(
            model, encoders, num_frames=frames, width=width, height=height, num_states=states, k_max=known_frames
        )
        planner = None if language_model is None else StatePlanner(language_model, states)

        def plan(picture: Any, instruction: str) -> States:
            assert planner is not None
            return planner.plan(picture, instruction).states

        folder = project_folder(Path(folder_paths.get_output_directory()) / "longreel-skills", name)
        lines: list[str] = []
        with training_in_node() as tell:

            def say(line: str) -> None:
                lines.append(line)
                tell(line)

            source = Path(folder_paths.get_input_directory()) / videos.strip()
            clips = list_clips(source, architecture, None if planner is None else plan, say)
            examples = encode_clips(clips, architecture, encoders, folder, tell)
        report = "\n".join([*lines, f"{len(examples)} clips of {frames} frames in {folder}"])
        return io.NodeOutput(InstructionDataset(architecture, examples), report, ui=ui.PreviewText(report))


class LongreelTrainInstructionAdapter(io.ComfyNode):
    """A dataset to an adapter."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainInstructionAdapter",
            display_name="Train Instruction Adapter",
            category=TRAINING,
            description="Teaches Stable Video Diffusion to do what a sentence says (AID): DQFormer, adapters and text "
            "attention beside the frozen model. Interrupt: it saves and stops; queue again: it goes on. The file in "
            "output/aid is listed by Load Instruction Adapter.",
            search_aliases=["aid", "svd", "fine-tune", "dqformer"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The one that the dataset was encoded for; it stays as it is."),
                InstructionDatasetSocket.Input("dataset", tooltip="From Instruction Dataset."),
                run_name_input("my-skill"),
                *node_inputs(PAPER, "steps", "lr", "batch", "seed", "ratio", "context_mode"),
                io.Float.Input(
                    "held_out",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="Share of clips that are not learned from but measured by: with their own words and with "
                    "another clip's. If both losses stay alike, the words are not read.",
                ),
                *node_inputs(
                    PAPER, "cross_rank", "fallback", "micro_batch", "max_grad_norm", "weight_decay", "checkpointing",
                    "sample_every",
                ),
            ],
            outputs=[
                InstructionAdapterSocket.Output(display_name="adapter"),
                io.Image.Output(display_name="loss curve"),
                io.String.Output(display_name="report", tooltip="Held-out losses, and where the file lies."),
            ],
        )  # fmt: skip

    @override
    @classmethod
    def execute(
        cls, model: ModelPatcher, dataset: InstructionDataset, name: str, held_out: float, **chosen: Any
    ) -> io.NodeOutput:
        check_fits(model, dataset.architecture)
        settings = replace(from_widgets(PAPER, chosen), k_max=dataset.architecture.k_max)
        settings = replace(settings, micro_batch=min(settings.micro_batch, settings.batch))
        architecture = replace(
            dataset.architecture,
            context_mode=settings.context_mode,
            cross_rank=settings.cross_rank,
            ratio=settings.ratio,
        )
        learned, judged = dataset.split(held_out)
        run = run_folder(name)

        def train(say: Any) -> Path:
            say(f"{len(learned)} clips to learn from, {len(judged)} held out.")
            alone = on_its_device(model)
            return train_adapter(alone, architecture, learned, settings, run, held_out=judged, say=say)

        done = trained(cls, run, "Load Instruction Adapter", train, ADAPTER_KIND)
        return io.NodeOutput(load_adapter(done.file), done.curve, done.report, ui=done.ui)
