"""Scenes to a FilmWeaver LoRA, in the graph."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ..film.dual_cache import LayoutProfile
from ..film.dual_cache.profile import TimeMode
from ..film.reel.project import project_folder
from ..host.adapters.dual_cache import load_cache_lora
from ..host.files.pictures import as_image
from ..training.core.in_node import training_in_node
from ..training.core.lora import WAN_LAYERS, WAN_SELF_ATTENTION
from ..training.dual_cache.run import newest_look, train_scenes
from ..training.dual_cache.samples import TEMPORAL_ONLY, Curriculum
from ..training.dual_cache.train import WeaverRecipe
from .sockets import CATEGORY, WeaverDatasetSocket

_USUAL, _NOISE = WeaverRecipe(), Curriculum()
_LAYERS = {"self-attention": WAN_SELF_ATTENTION, "all": WAN_LAYERS}


class LongreelTrainWeaverLora(io.ComfyNode):
    """The two-stage trainer."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainWeaverLora",
            display_name="Train FilmWeaver LoRA",
            category=f"{CATEGORY}/training",
            description="Teaches a text-to-video Wan model to remember: first the frames before, then keyframes of "
            "earlier shots as well (FilmWeaver). Interrupt: it saves and stops; queue again: it goes on. The file in "
            "output/loras is listed by FilmWeaver LoRA Loader.",
            search_aliases=["filmweaver", "train lora", "dual cache", "fine-tune"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base to teach, as its loader gives it; it stays as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder; encodes the empty caption that some samples have."),
                io.Vae.Input("vae", tooltip="Its VAE; shows what the LoRA films so far."),
                WeaverDatasetSocket.Input("dataset", tooltip="From FilmWeaver Dataset."),
                io.String.Input(
                    "name",
                    default="my-weaver",
                    tooltip="Of the run and its file. The same name with the same settings goes on where it stopped.",
                ),
                io.Int.Input(
                    "first_steps",
                    default=_USUAL.first_steps,
                    min=0,
                    max=1_000_000,
                    tooltip="Updates of stage 1, which knows the frames before only. More: motion goes on better. "
                    "10000 as published, 400 for the miniature.",
                ),
                io.Int.Input(
                    "steps",
                    default=_USUAL.steps,
                    min=0,
                    max=1_000_000,
                    tooltip="Updates of stage 2, with keyframes too. More: looks are held better across cuts. 10000 as "
                    "published, 1600 for the miniature. A higher number goes on with a finished run.",
                ),
                io.Int.Input(
                    "rank",
                    default=_USUAL.rank,
                    min=1,
                    max=512,
                    tooltip="Size of the LoRA; its alpha is the same. More: learns more, takes more memory and disk. "
                    "16 for the miniature.",
                ),
                io.Float.Input(
                    "rate",
                    default=_USUAL.rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="Learning rate. More: faster, until it breaks. 0.001 for the miniature.",
                ),
                io.Int.Input(
                    "batch",
                    default=_USUAL.batch,
                    min=1,
                    max=256,
                    tooltip="Samples in an update. More: steadier and slower. 8 for the miniature.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31, tooltip="Another seed is another run."),
                io.Combo.Input(
                    "time_mode",
                    options=list(get_args(TimeMode)),
                    default=_USUAL.profile.time_mode,
                    tooltip="Noise level that remembered frames are told. shared: the target's, as plain Wan expects. "
                    "own: theirs, for models that take one for each frame, as the miniature. zero: none.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(_LAYERS),
                    default="self-attention",
                    tooltip="What is adapted. all: learns more, takes more memory; for the miniature.",
                ),
                io.Int.Input(
                    "samples_at_once",
                    default=_USUAL.at_once,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Samples in a pass, of one kind. More: faster, takes more memory.",
                ),
                io.Int.Input(
                    "rollout_steps",
                    default=_USUAL.rollout_steps,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Updates of stage 3, in which histories are the model's own. More: its errors add up less "
                    "in long shots. Slower by half.",
                ),
                io.Int.Input(
                    "warmup",
                    default=_USUAL.warmup,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Updates until the full rate. More: a gentler start. 50 for the miniature.",
                ),
                io.Float.Input(
                    "shot_noise",
                    default=_NOISE.shot_sigma[1],
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Most noise on keyframes. More: they are copied less, and hold looks less. 0 teaches to "
                    "copy poses.",
                ),
                io.Float.Input(
                    "history_noise",
                    default=_NOISE.temporal_sigma[1],
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Most noise on the frames before. More: prompts change motion sooner, and seams show.",
                ),
                io.Float.Input(
                    "negative",
                    default=_NOISE.negative,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of keyframes taken from other scenes. More: what does not help is ignored better.",
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
                io.Boolean.Input(
                    "checkpointing",
                    default=_USUAL.checkpointing,
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
                io.Model.Output(display_name="model", tooltip="The base with the LoRA and its layout: film with it."),
                io.Image.Output(display_name="loss curve"),
                io.Image.Output(display_name="samples", tooltip="Each mode: the film's chunk and the LoRA's."),
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
        first_steps: int,
        steps: int,
        rank: int,
        rate: float,
        batch: int,
        seed: int,
        time_mode: str,
        layers: str,
        samples_at_once: int,
        rollout_steps: int,
        warmup: int,
        shot_noise: float,
        history_noise: float,
        negative: float,
        shift: float,
        checkpointing: bool,
        sample_every: int,
    ) -> io.NodeOutput:
        both = Curriculum(
            negative=negative,
            shot_sigma=(min(_NOISE.shot_sigma[0], shot_noise), shot_noise),
            temporal_sigma=(0.0, history_noise),
        )
        recipe = WeaverRecipe(
            profile=LayoutProfile(time_mode=cast(TimeMode, time_mode)), rank=rank, alpha=float(rank),
            layers=_LAYERS[layers], first=replace(both, modes=TEMPORAL_ONLY), second=both, first_steps=first_steps,
            steps=steps, rollout_steps=rollout_steps, shift=shift, batch=batch, at_once=min(samples_at_once, batch),
            rate=rate, warmup=warmup, checkpointing=checkpointing, save_every=sample_every, sample_every=sample_every,
            seed=seed,
        )  # fmt: skip
        output = Path(folder_paths.get_output_directory())
        run, told = project_folder(output / "longreel-loras", name), list[str]()
        empty = clip.encode_from_tokens(clip.tokenize(""))
        text = (empty[0] if isinstance(empty, tuple) else empty)[0].float().cpu()
        with training_in_node() as say:

            def noted(line: str) -> None:
                told.append(line)
                say(line)

            made = train_scenes(model, dataset, recipe, run, base=run.name, vae=vae, empty=text.clone(), say=noted)
        listed = output / "loras" / f"{run.name}.safetensors"
        listed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, listed)
        kept = [line for line in told if not line.startswith("weaver: step")]
        report = "\n".join([*kept, f"{listed}, also for FilmWeaver LoRA Loader."])
        curve, look = _picture(run / "loss.png"), newest_look(run)
        seen: dict[str, Any] = {**ui.PreviewImage(curve, cls=cls).as_dict(), "text": (report,)}
        with_lora = load_cache_lora(model, listed, 1.0)
        return io.NodeOutput(with_lora, curve, curve if look is None else _picture(look), report, ui=seen)


def _picture(path: Path) -> Tensor:
    with Image.open(path) as picture, torch.inference_mode():
        return as_image(picture.convert("RGB"))
