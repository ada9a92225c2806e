"""A dataset of casts to a LoRA, in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from safetensors.torch import load_file
from typing_extensions import override

from ..host.model_fingerprint import fingerprint_clip, fingerprint_vae
from ..training.core.settings import from_widgets, node_inputs
from ..training.first_frame.dataset import load_dataset
from ..training.first_frame.encode import RECOLOURED, Encoders, variants
from ..training.first_frame.run import train_cast
from ..training.first_frame.train import PAPER
from .sockets import TRAINING, CastDatasetSocket
from .training_run import run_folder, run_name_input, trained


class LongreelTrainCastLora(io.ComfyNode):
    """The few-shot trainer."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainCastLora",
            display_name="Train Cast LoRA",
            category=TRAINING,
            description="Teaches an image-to-video model, from 20 to 50 clips, to film what is pictured in its first "
            "frame (FFGo). Interrupt: it saves and stops; queue again: it goes on. The file in output/loras is listed "
            "by Load LoRA. Wan 2.2 I2V needs a run for each expert; TI2V-5B and the miniature one.",
            search_aliases=["ffgo", "train lora", "few-shot", "fine-tune"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base to teach, as its loader gives it; it stays as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder; reads the captions once."),
                io.Vae.Input("vae", tooltip="Its VAE; encodes the clips once."),
                CastDatasetSocket.Input("dataset", tooltip="From Build Cast Dataset."),
                run_name_input("my-cast"),
                *node_inputs(PAPER, "expert", "steps", "rank", "lr", "batch"),
                io.Int.Input(
                    "frames",
                    default=21,
                    min=9,
                    max=241,
                    step=4,
                    tooltip="Frames of each clip, from its beginning. More: longer motion is learned, at more memory "
                    "and time. 21 as published.",
                ),
                *node_inputs(
                    PAPER,
                    "seed",
                    "micro_batch",
                    "max_grad_norm",
                    "weight_decay",
                    "dropout",
                    "shift",
                    "boundary",
                    "layers",
                ),
                io.Boolean.Input(
                    "recoloured",
                    default=False,
                    advanced=True,
                    tooltip=f"On: casts are learned {RECOLOURED} times more, in other colours, so few clips teach to "
                    "look instead of to remember; where the dataset does not say where they are, whole clips, if they "
                    "have a plate. Only for captions that name no colour.",
                ),
                io.Boolean.Input(
                    "mirrored",
                    default=False,
                    advanced=True,
                    tooltip="On: clips without a plate are also learned left to right, with left and right exchanged "
                    "in captions.",
                ),
                *node_inputs(PAPER, "checkpointing", "sample_every"),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For core's Load LoRA Model."),
                io.Image.Output(display_name="loss curve"),
                io.Image.Output(display_name="samples", tooltip="The first clips, as the LoRA films them."),
                io.String.Output(display_name="report", tooltip="The memory plan, and where the file lies."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        dataset: Path,
        name: str,
        frames: int,
        recoloured: bool,
        mirrored: bool,
        **chosen: Any,
    ) -> io.NodeOutput:
        settings = from_widgets(PAPER, {**chosen, "save_every": chosen["sample_every"]})
        run = run_folder(name)
        encoders = Encoders(model, clip, vae, run.name, fingerprint_vae(vae) + fingerprint_clip(clip))
        shown = variants(RECOLOURED * recoloured, mirrored)
        made = trained(
            cls, run, "core's Load LoRA",
            lambda say: train_cast(load_dataset(dataset), encoders, settings, run, frames, shown=shown, say=say),
        )  # fmt: skip
        return io.NodeOutput(load_file(made.file), made.curve, made.samples, made.report, ui=made.ui)
