"""Filming by instruction: the engine, over whatever model there is."""

from __future__ import annotations

from typing import Any, cast

from comfy.model_patcher import ModelPatcher
from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from typing_extensions import override

from ..engines.causal_schedule import causal_schedule
from ..engines.engine import EngineError
from ..engines.instruction import InstructionEngine, Planning
from ..engines.instruction_backends import AdapterChunks, CausalInstructionEngine, FirstFrameChunks
from ..film.instruction import States
from ..film.kv_memory import PRESETS
from ..host.guidance import SpatioTemporalGuidance
from ..host.media.plan_states import StatePlanner
from ..host.svd.adapters import AdapterFile
from .first_frame_models import shifted
from .instruction_guider import guidance_inputs
from .instruction_states import detail_input, states_count_input
from .sockets import START, EngineSocket, InstructionAdapterSocket, StatesSocket, fps_input, size_inputs

_CAUSAL, _CHUNKS, _ADAPTER = "causal", "image to video", "svd with adapter"


def _steps(default: int) -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=default,
        min=1,
        max=1000,
        tooltip="Denoising steps of a block or chunk. More: cleaner and slower.",
    )


def _sampling(sampler: str, scheduler: str) -> list[io.Input]:
    return [
        io.Combo.Input(
            "sampler", options=SAMPLER_NAMES, default=sampler, advanced=True, tooltip="How a step is taken."
        ),
        io.Combo.Input(
            "scheduler",
            options=SCHEDULER_NAMES,
            default=scheduler,
            advanced=True,
            tooltip="How the steps are spread over the noise levels.",
        ),
    ]


def _way_input() -> io.DynamicCombo.Input:
    chunk = io.Int.Input(
        "chunk_frames",
        default=81,
        min=5,
        max=1025,
        step=4,
        tooltip="Frames filmed at once, as many as the model was trained for. Longer shots are filmed in several "
        "chunks, each from the last frame. More: fewer seams, more memory.",
    )
    return io.DynamicCombo.Input(
        "way",
        options=[
            io.DynamicCombo.Option(
                _CAUSAL,
                [
                    _steps(4),
                    io.Combo.Input(
                        "memory",
                        options=list(PRESETS),
                        default="MemFlow",
                        tooltip="What the model remembers, see Causal Engine: the one it was trained for.",
                    ),
                ],
            ),
            io.DynamicCombo.Option(
                _CHUNKS,
                [
                    _steps(20),
                    io.Float.Input(
                        "cfg",
                        default=5.0,
                        min=0.0,
                        max=30.0,
                        step=0.1,
                        tooltip="Guidance. More: closer to the words, harder contrasts. 1 with a speed LoRA.",
                    ),
                    chunk,
                    io.Float.Input(
                        "shift",
                        default=5.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        advanced=True,
                        tooltip="Where the steps lie. More: more of them at high noise. 0 keeps what the model has.",
                    ),
                    io.String.Input(
                        "negative", multiline=True, default="", tooltip="What should not be seen or happen."
                    ),
                    *_sampling("uni_pc", "simple"),
                ],
            ),
            io.DynamicCombo.Option(
                _ADAPTER,
                [
                    _steps(25),
                    *guidance_inputs(),
                    io.Int.Input(
                        "known",
                        default=1,
                        min=1,
                        max=32,
                        tooltip="Frames with which a chunk begins again, at most as many as the adapter was trained "
                        "with. More: the motion goes on over the seam.",
                    ),
                    io.Boolean.Input(
                        "keep_known",
                        default=False,
                        advanced=True,
                        tooltip="On: they come out exactly as they went in. Off: the model makes them anew.",
                    ),
                    *_sampling("euler", "karras"),
                ],
            ),
        ],
        tooltip="How the model films. causal: a Wan for Causal Engine; states become prompts that change on the way. "
        "image to video: Wan I2V or TI2V 5B; chunk by chunk, each from the last frame. svd with adapter: Stable Video "
        "Diffusion with an AID adapter; a condition for every frame.",
    )


class LongreelInstructionEngine(io.ComfyNode):
    """Models and settings to an instruction engine."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInstructionEngine",
            display_name="Instruction Engine",
            category=START,
            description="Films what shall happen: a prompt is an instruction, a vision-language model tells it in "
            "states from the frame in which it begins, and the model that you have films them, also longer than it "
            "can at once. Nothing needs to be trained but for Stable Video Diffusion.",
            search_aliases=["aid", "do this", "image to video", "planner", "prediction"],
            inputs=[
                io.Model.Input("model", tooltip="A causal Wan, an image-to-video Wan, or Stable Video Diffusion."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to it; for SVD that of the adapter."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to it."),
                io.Model.Input("low_noise_model", optional=True, tooltip="The other expert of a pair (Wan 2.2 A14B)."),
                io.Clip.Input(
                    "language_model",
                    optional=True,
                    tooltip="A vision-language model from Load CLIP (Qwen3-VL, Qwen3.5, Gemma), which plans the states "
                    "of each shot. Without it and without states the instruction alone is filmed.",
                ),
                StatesSocket.Input(
                    "states", optional=True, tooltip="States planned or written beforehand, for every shot."
                ),
                InstructionAdapterSocket.Input("adapter", optional=True, tooltip="For SVD: the AID adapter."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For SVD: that of the checkpoint."),
                _way_input(),
                *size_inputs(832, 480, "Pixels. For SVD use the size that the adapter was trained at."),
                fps_input("Frames a second: 16 for Wan 2.1 and 2.2 14B, 24 for 5B, 7 for SVD."),
                states_count_input("state_count"),
                detail_input(),
                io.Boolean.Input(
                    "replan",
                    default=True,
                    tooltip="On: before each further chunk the language model looks at the frame that was reached and "
                    "plans the rest anew. Off: it is asked once a shot.",
                ),
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
        state_count: int,
        detail: str,
        replan: bool,
        way: dict[str, Any] | None = None,
        low_noise_model: ModelPatcher | None = None,
        language_model: CLIP | None = None,
        states: States | None = None,
        adapter: AdapterFile | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        if clip is None:
            raise EngineError("The loader gave no text encoder: connect one that belongs to the model.")
        if way is None:  # left out, or none of the choices, by who calls ComfyUI's API
            raise EngineError(f"Choose a way to film: {_CAUSAL}, {_CHUNKS} or {_ADAPTER}.")
        if way["way"] == _ADAPTER:
            if adapter is None:
                raise EngineError("Stable Video Diffusion needs an AID adapter here: connect Load Instruction Adapter.")
            state_count = adapter.settings.num_states
        planner = None if language_model is None else StatePlanner(language_model, state_count, cast(Any, detail))
        planning = Planning(planner, states, state_count, replan)
        film = {"clip": clip, "vae": vae, "width": width, "height": height, "fps": fps, "planning": planning}
        engine: CausalInstructionEngine | InstructionEngine
        said = None
        if way["way"] == _CAUSAL:
            memory = PRESETS[way["memory"]]
            chosen = causal_schedule(model, way["steps"], memory)
            said = ui.PreviewText(chosen.reason)
            engine = CausalInstructionEngine(models=(model,), sigmas=chosen.sigmas, memory=memory, **film)
        elif way["way"] == _CHUNKS:
            models = tuple(shifted(each, way["shift"]) for each in (model, low_noise_model) if each is not None)
            chunks = FirstFrameChunks(
                way["chunk_frames"], way["steps"], way["cfg"], way["sampler"], way["scheduler"], way["negative"]
            )
            engine = InstructionEngine(models=models, backend=chunks, **film)
        else:
            assert adapter is not None
            scales = (way["first_frame_scale"], way["frame_scale"])
            adapted = AdapterChunks(
                adapter,
                clip_vision,
                way["steps"],
                way["sampler"],
                way["scheduler"],
                SpatioTemporalGuidance(scales, way["text_scale"]),
                known=way["known"],
                keep_known=way["keep_known"],
            )
            engine = InstructionEngine(models=(model,), backend=adapted, **film)
        engine.check()
        return io.NodeOutput(engine, ui=said)
