"""Filming from composed first frames: the engine."""

from __future__ import annotations

from typing import cast, get_args

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor
from typing_extensions import override

from ..engines.engine import EngineError
from ..engines.first_frame import FirstFrameEngine, Transition
from ..film.first_frame import TRIGGER, LayoutKind, Reference
from .first_frame_models import shift_input, shifted, spread_input, steps_input, switch_input
from .sockets import (
    START,
    EngineSocket,
    fps_input,
    references_input,
    references_of,
    sampler_input,
    size_inputs,
)


class LongreelFirstFrameEngine(io.ComfyNode):
    """Models, cast and settings to a first-frame engine."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFirstFrameEngine",
            display_name="First-Frame Engine",
            category=START,
            description="Films each shot from a picture of its cast, laid out as the first frame, and trims the "
            "transition. For Wan image-to-video models with a first-frame adapter (FFGo): the 2.2 A14B pair, TI2V 5B, "
            "2.1 I2V.",
            search_aliases=["ffgo", "image to video", "i2v", "subject to video", "reference to video", "cast"],
            inputs=[
                io.Model.Input("model", tooltip="An image-to-video Wan, or the high-noise expert of a pair."),
                io.Model.Input("low_noise_model", optional=True, tooltip="The other expert of a pair (Wan 2.2 A14B)."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model (umt5_xxl for Wan)."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model (wan_2.1_vae; wan2.2_vae for 5B)."),
                references_input(
                    "The cast. A shot names those in it (references: mug; robot); one that names none has them all.",
                    least=0,
                ),
                io.Image.Input(
                    "plate",
                    optional=True,
                    tooltip="The place, for shots that name none (references: mug; plate=kitchen.png).",
                ),
                *size_inputs(
                    1280,
                    720,
                    "Pixels. More: references keep more detail; time and memory grow faster than the picture. The "
                    "published adapter was made for 1280 x 720.",
                    most=8192,
                ),
                fps_input(
                    "Frames a second. More: each second of the storyboard costs more frames. 16 for Wan 2.1 "
                    "and 2.2 14B, 24 for 5B.",
                ),
                steps_input(),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance. More: closer to the words, harder contrasts. Published: 6; 1 with a speed LoRA.",
                ),
                io.Combo.Input(
                    "layout",
                    options=[kind for kind in get_args(LayoutKind) if kind != "manual"],
                    default="auto",
                    tooltip="How references are laid out, see First Frame Composer. To place them yourself, compose "
                    "there and connect the picture to Film Shot.",
                ),
                io.Combo.Input(
                    "transition",
                    options=list(get_args(Transition)),
                    default="auto",
                    tooltip="What is trimmed off the beginning. auto: films 8 frames more and finds the cut. fixed: 4 "
                    "frames, as published. two latents: 5, cleaner where frame 4 shows ghosts.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What should not be seen. Wan's own list stands in ComfyUI's templates.",
                ),
                io.String.Input(
                    "trigger",
                    default=TRIGGER,
                    advanced=True,
                    tooltip="The sentence the adapter was trained with; it begins every prompt. Empty: prompts are "
                    "used as written, and references are not described in them.",
                ),
                sampler_input("How a step is taken, as in KSampler. uni_pc as published.", advanced=True),
                spread_input(),
                shift_input(),
                switch_input(),
            ],
            outputs=[EngineSocket.Output(display_name="engine")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        width: int,
        height: int,
        fps: float,
        steps: int,
        cfg: float,
        layout: str,
        transition: str,
        negative: str,
        trigger: str,
        sampler: str,
        scheduler: str,
        shift: float,
        boundary: float,
        references: dict[str, Reference | None] | None = None,
        low_noise_model: ModelPatcher | None = None,
        plate: Tensor | None = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise EngineError("The loader gave no text encoder: connect one that belongs to the model.")
        engine = FirstFrameEngine(
            models=tuple(shifted(expert, shift) for expert in (model, low_noise_model) if expert is not None),
            clip=clip,
            vae=vae,
            width=width,
            height=height,
            fps=fps,
            step_count=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            negative=negative,
            trigger=trigger,
            boundary=boundary,
            cast=tuple(references_of(references)),
            plate=plate,
            layout_kind=cast(LayoutKind, layout),
            transition=cast(Transition, transition),
        )
        engine.check()
        return io.NodeOutput(engine)
