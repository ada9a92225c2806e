"""Scenes to a FilmWeaver LoRA, in the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from typing_extensions import override

from ..film.dual_cache import LayoutProfile
from ..film.dual_cache.profile import TimeMode
from ..host.adapters.dual_cache import load_cache_lora
from ..training.core.settings import from_widgets, node_inputs
from ..training.dual_cache.run import train_scenes
from ..training.dual_cache.samples import TEMPORAL_ONLY, Curriculum
from ..training.dual_cache.train import PAPER
from .sockets import TRAINING, WeaverDatasetSocket
from .training_run import run_folder, run_name_input, trained

_USUAL = Curriculum()


class LongreelTrainWeaverLora(io.ComfyNode):
    """The two-stage trainer."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrainWeaverLora",
            display_name="Train FilmWeaver LoRA",
            category=TRAINING,
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
                run_name_input("my-weaver"),
                *node_inputs(PAPER, "first_steps", "steps", "rank", "lr", "batch", "seed"),
                io.Combo.Input(
                    "time_mode",
                    options=list(get_args(TimeMode)),
                    default=PAPER.profile.time_mode,
                    tooltip="Noise level that remembered frames are told. shared: the target's, as plain Wan expects. "
                    "own: theirs, for models that take one for each frame, as the miniature. zero: none.",
                ),
                *node_inputs(PAPER, "layers", "micro_batch", "rollout_steps", "warmup"),
                io.Float.Input(
                    "shot_noise",
                    default=_USUAL.shot_sigma[1],
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Most noise on keyframes. More: they are copied less, and hold looks less. 0 teaches to "
                    "copy poses.",
                ),
                io.Float.Input(
                    "history_noise",
                    default=_USUAL.temporal_sigma[1],
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Most noise on the frames before. More: prompts change motion sooner, and seams show.",
                ),
                *node_inputs(_USUAL, "negative"),
                *node_inputs(PAPER, "shift", "checkpointing", "sample_every"),
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
        time_mode: str,
        shot_noise: float,
        history_noise: float,
        **chosen: Any,
    ) -> io.NodeOutput:
        both = replace(
            from_widgets(_USUAL, chosen),
            shot_sigma=(min(_USUAL.shot_sigma[0], shot_noise), shot_noise),
            temporal_sigma=(0.0, history_noise),
        )
        settings = from_widgets(PAPER, {**chosen, "save_every": chosen["sample_every"]})
        settings = replace(
            settings, profile=LayoutProfile(time_mode=cast(TimeMode, time_mode)), second=both,
            first=replace(both, modes=TEMPORAL_ONLY), micro_batch=min(settings.micro_batch, settings.batch),
        )  # fmt: skip
        run = run_folder(name)
        empty = clip.encode_from_tokens(clip.tokenize(""))
        text = (empty[0] if isinstance(empty, tuple) else empty)[0].float().cpu()
        made = trained(
            cls, run, "FilmWeaver LoRA Loader",
            lambda say: train_scenes(
                model, dataset, settings, run, base=run.name, vae=vae, empty=text.clone(), say=say
            ),
        )  # fmt: skip
        with_lora = load_cache_lora(model, made.file, 1.0)
        return io.NodeOutput(with_lora, made.curve, made.samples, made.report, ui=made.ui)
