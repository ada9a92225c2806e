"""A dataset of casts to a LoRA, in the graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from ..film.reel.project import project_folder
from ..host.files.pictures import as_image
from ..host.model_fingerprint import fingerprint_clip, fingerprint_vae
from ..training.core.in_node import training_in_node
from ..training.core.lora import WAN_LAYERS
from ..training.core.objectives.flow_matching import Expert
from ..training.first_frame.dataset import load_dataset
from ..training.first_frame.encode import RECOLOURED, Encoders, variants
from ..training.first_frame.run import newest_sample, train_cast
from ..training.first_frame.train import LoraRecipe
from .sockets import CATEGORY, CastDatasetSocket

_USUAL = LoraRecipe()


class LongreelTrainCastLora(io.ComfyNode):
    """The few-shot trainer."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainCastLora",
            display_name="Train Cast LoRA",
            category=f"{CATEGORY}/training",
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
                io.String.Input(
                    "name",
                    default="my-cast",
                    tooltip="Of the run and its file. The same name with the same settings goes on where it stopped.",
                ),
                io.Combo.Input(
                    "expert",
                    options=["both", "high", "low"],
                    default=_USUAL.expert,
                    tooltip="Which noise is learned. high, low: for that model of a Wan 2.2 pair. both: one model "
                    "that does all.",
                ),
                io.Int.Input(
                    "steps",
                    default=_USUAL.steps,
                    min=1,
                    max=100_000,
                    tooltip="Updates. More: looks are held better, until clips are learned by heart. 600 as published; "
                    "a higher number goes on with a finished run.",
                ),
                io.Int.Input(
                    "rank",
                    default=_USUAL.rank,
                    min=1,
                    max=512,
                    tooltip="Size of the LoRA; its alpha is the same. More: learns more, takes more memory and disk. "
                    "128 as published, 16 for the miniature.",
                ),
                io.Float.Input(
                    "rate",
                    default=_USUAL.rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="Learning rate. More: faster, until it breaks. 0.0001 as published, 0.001 for the "
                    "miniature.",
                ),
                io.Int.Input(
                    "batch",
                    default=_USUAL.batch,
                    min=1,
                    max=64,
                    tooltip="Clips in an update. More: steadier and slower. 4 as published.",
                ),
                io.Int.Input(
                    "frames",
                    default=21,
                    min=9,
                    max=241,
                    step=4,
                    tooltip="Frames of each clip, from its beginning. More: longer motion is learned, at more memory "
                    "and time. 21 as published.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Another number is another run, under another name.",
                ),
                io.Int.Input(
                    "clips_at_once",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Clips in a pass. More: faster, takes more memory; learns the same.",
                ),
                io.Float.Input(
                    "clip_norm",
                    default=_USUAL.clip,
                    min=0.0001,
                    max=100.0,
                    step=0.0001,
                    advanced=True,
                    tooltip="Largest norm of a gradient. Less: bad clips harm less, learning is slower. 0.05 as "
                    "published, 1 for the miniature.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=_USUAL.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="More keeps the LoRA smaller.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of each LoRA layer's inputs left out. More: less is learned by heart, slower.",
                ),
                io.Float.Input(
                    "shift",
                    default=_USUAL.shift,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="More trains higher noise levels more often. The shift that you film with.",
                ),
                io.Float.Input(
                    "boundary",
                    default=_USUAL.boundary,
                    min=0.01,
                    max=0.99,
                    step=0.005,
                    advanced=True,
                    tooltip="For high and low: the noise level at which experts take turns. More: the low one learns "
                    "more of it.",
                ),
                io.String.Input(
                    "layers",
                    default=WAN_LAYERS,
                    advanced=True,
                    tooltip="Regular expression on names of layers: what is adapted. Fewer: less memory and less "
                    "learned. As published: every linear layer of the blocks and the time projection.",
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
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="On: a fraction of the memory for a quarter more time. Off: faster.",
                ),
                io.Int.Input(
                    "sample_every",
                    default=_USUAL.sample_every,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Steps between two looks at what the LoRA films; each also writes a LoRA file. 0: never.",
                ),
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
        expert: str,
        steps: int,
        rank: int,
        rate: float,
        batch: int,
        frames: int,
        seed: int,
        clips_at_once: int,
        clip_norm: float,
        weight_decay: float,
        dropout: float,
        shift: float,
        boundary: float,
        layers: str,
        recoloured: bool,
        mirrored: bool,
        checkpointing: bool,
        sample_every: int,
    ) -> io.NodeOutput:
        recipe = LoraRecipe(
            rank=rank, alpha=float(rank), dropout=dropout, layers=layers, expert=cast(Expert, expert),
            boundary=boundary, shift=shift, steps=steps, batch=batch, at_once=clips_at_once, rate=rate, clip=clip_norm,
            weight_decay=weight_decay, checkpointing=checkpointing, save_every=sample_every, sample_every=sample_every,
            seed=seed,
        )  # fmt: skip
        output = Path(folder_paths.get_output_directory())
        run = project_folder(output / "longreel-loras", name)
        encoders = Encoders(model, clip, vae, run.name, fingerprint_vae(vae) + fingerprint_clip(clip))
        told: list[str] = []
        with training_in_node() as tell:

            def say(line: str) -> None:
                told.append(line)
                tell(line)

            items = load_dataset(dataset)
            shown = variants(RECOLOURED * recoloured, mirrored)
            made = train_cast(items, encoders, recipe, run, frames, shown=shown, say=say)
        listed = output / "loras" / f"{run.name}.safetensors"
        listed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, listed)
        kept = [line for line in told if not line.startswith(("encoded ", "lora: step"))]
        report = "\n".join([*kept, f"{listed}, also for core's Load LoRA."])
        curve, sample = _picture(run / "loss.png"), newest_sample(run)
        seen: dict[str, Any] = {**ui.PreviewImage(curve, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(load_file(made), curve, curve if sample is None else _picture(sample), report, ui=seen)


def _picture(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return as_image(picture.convert("RGB"))
