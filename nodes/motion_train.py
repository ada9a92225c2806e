"""Clips with their motion to a dataset, and a dataset to a motion adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.reel.project import project_folder
from ..host.adapters.motion import read_adapter
from ..host.model_fingerprint import fingerprint_clip, fingerprint_vae
from ..training.core.in_node import training_in_node
from ..training.core.settings import from_widgets, node_inputs
from ..training.motion.data import MINIATURE as SMALL
from ..training.motion.data import Encoders, MotionSpec, encode_clips, load_examples, spec_of, world_clips
from ..training.motion.evaluate import measure
from ..training.motion.settings import PAPER
from ..training.motion.sources import list_videos, video_clips
from ..training.motion.train import train_motion
from .motion_flow import estimator_input
from .sockets import TRAINING, MotionAdapterSocket, MotionDatasetSocket
from .training_run import run_folder, run_name_input, trained


def _model_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The Wan model to teach, as its loader gives it; it stays as it is."),
        io.Clip.Input("clip", tooltip="Its text encoder; reads the captions once."),
        io.Vae.Input("vae", tooltip="Its VAE; encodes the clips and their flow once."),
    ]


class LongreelMotionDataset(io.ComfyNode):
    """Clips, encoded with their flow."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMotionDataset",
            display_name="Motion Dataset",
            category=TRAINING,
            description="Cuts videos into clips in which something moves and no shot changes, finds their flow, and "
            "encodes both for Train Motion Adapter. What is encoded is kept, also when interrupted.",
            search_aliases=["videojam", "optical flow", "training data"],
            is_output_node=True,
            inputs=[
                *_model_inputs(),
                estimator_input(),
                io.String.Input(
                    "videos",
                    default="",
                    tooltip="Folder of videos, each with its caption in a .txt of the same name: its full path, or its "
                    "name in the input folder. Empty: clips of the miniature's small world, which knows its own flow.",
                ),
                io.String.Input("name", default="my-motion", tooltip="The dataset's folder in output/longreel-motion."),
                io.Int.Input(
                    "count",
                    default=32,
                    min=0,
                    max=100_000,
                    tooltip="Clips: of each video at most, 0 for all, or of the small world. More: more is learned.",
                ),
                io.Int.Input(
                    "frames",
                    default=49,
                    min=5,
                    max=241,
                    step=4,
                    tooltip="Of each clip. More: longer motion is learned, at more memory and time.",
                ),
                io.Boolean.Input(
                    "measured",
                    default=False,
                    tooltip="On: clips to measure by; they are also encoded in shuffled order and keep their flow.",
                ),
                io.Int.Input("width", default=256, min=32, max=4096, step=16, tooltip="Of videos' clips, cut to it."),
                io.Int.Input("height", default=256, min=32, max=4096, step=16, tooltip="Of videos' clips, cut to it."),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=120.0,
                    tooltip="Frame rate that videos are brought to: that of the model, 16 for Wan.",
                ),
                io.Boolean.Input(
                    "held_out",
                    default=False,
                    advanced=True,
                    tooltip="Small world: characters in places where other clips never show them, to measure by.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31, advanced=True, tooltip="Small world: which clips."),
            ],
            outputs=[
                MotionDatasetSocket.Output(display_name="dataset"),
                io.String.Output(display_name="report"),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        videos: str,
        name: str,
        count: int,
        frames: int,
        measured: bool,
        width: int,
        height: int,
        fps: float,
        held_out: bool,
        seed: int,
        optical_flow: Any = None,
    ) -> io.NodeOutput:
        folder = project_folder(Path(folder_paths.get_output_directory()) / "longreel-motion", name)
        lines: list[str] = []
        with training_in_node() as tell:

            def say(line: str) -> None:
                lines.append(line)
                tell(line)

            if not videos:
                spec = replace(SMALL, frames=frames)
                sources = world_clips(count, spec, seed=seed, held_out=held_out)
            else:
                finder = "blocks" if optical_flow is None else "raft_large"
                spec = MotionSpec(width, height, frames, fps, flow_model=finder)
                found = list_videos(Path(folder_paths.get_input_directory()) / videos)
                sources = video_clips(found, spec, optical_flow, most=count, say=say)
            encode_clips(sources, _encoders(model, clip, vae), spec, folder, measured=measured, say=tell)
        report = "\n".join([*lines, f"{len(sources)} clips of {frames} frames in {folder}"])
        return io.NodeOutput(folder, report, ui=ui.PreviewText(report))


class LongreelTrainMotionAdapter(io.ComfyNode):
    """A dataset to an adapter."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainMotionAdapter",
            display_name="Train Motion Adapter",
            category=TRAINING,
            description="Teaches a Wan model to predict motion beside appearance (VideoJAM). Interrupt: it saves and "
            "stops; queue again: it goes on. The file in output/loras is listed by Load Motion Adapter.",
            search_aliases=["videojam", "train lora", "motion", "fine-tune"],
            is_output_node=True,
            inputs=[
                *_model_inputs(),
                MotionDatasetSocket.Input("dataset", tooltip="From Motion Dataset."),
                MotionDatasetSocket.Input(
                    "measure_by",
                    optional=True,
                    tooltip="Another dataset, with measured on, of other clips: how good the predicted motion is goes "
                    "into the file, for the gate of Inner Guidance.",
                ),
                run_name_input("my-motion"),
                *node_inputs(PAPER, "steps", "rank", "lr", "batch", "seed", "trunk", "head", "expert"),
                *node_inputs(
                    PAPER, "motion_lr", "flow_first", "text_drop", "motion_drop", "shift", "micro_batch",
                    "max_grad_norm", "weight_decay", "layers", "checkpointing",
                ),
            ],
            outputs=[
                MotionAdapterSocket.Output(display_name="adapter"),
                io.Image.Output(display_name="loss curve"),
                io.String.Output(display_name="report", tooltip="Where the file lies, and how good its motion is."),
            ],
        )  # fmt: skip

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        dataset: Path,
        name: str,
        measure_by: Path | None = None,
        **chosen: Any,
    ) -> io.NodeOutput:
        settings = from_widgets(PAPER, {**chosen, "sample_every": 0})
        run = run_folder(name)
        encoders = _encoders(model, clip, vae)
        examples, empty = load_examples(dataset)

        def train(say: Any) -> Path:
            made = train_motion(examples, empty, encoders, spec_of(dataset), settings, run, say=say)
            if measure_by is not None:
                measured = measure(made, measure_by, encoders)
                say(measured.info.gate.warning() or "Its motion is better than none at all measured noise levels.")
            return made

        done = trained(cls, run, "Load Motion Adapter", train)
        return io.NodeOutput(read_adapter(done.file), done.curve, done.report, ui=done.ui)


def _encoders(model: ModelPatcher, clip: CLIP, vae: VAE) -> Encoders:
    """The models; a MODEL does not know its file, so the base is named by what it is."""
    config = getattr(model.model.model_config, "unet_config", {})
    base = f"{type(model.model).__name__} {config.get('dim', '')} wide, {config.get('num_layers', '')} blocks"
    return Encoders(model, clip, vae, base, f"{fingerprint_clip(clip)[:16]} {fingerprint_vae(vae)[:16]}")
