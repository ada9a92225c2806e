"""Models for first-frame shots: their adapters, their shift, and the step at which two experts take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from typing_extensions import override

from ..film.first_frame import FirstFrameError
from ..host.adapters.first_frame import apply_lora
from ..host.sampling import stages_by_boundary
from .sockets import START, boundary_input, scheduler_input

_NONE = "none"


def shift_input() -> io.Float.Input:
    """The shift of the noise schedule."""
    return io.Float.Input(
        "shift",
        default=5.0,
        min=0.0,
        max=100.0,
        step=0.1,
        advanced=True,
        tooltip="Where the steps lie. More: more of them at high noise, where layout and motion are decided. 5 as "
        "published; 0 keeps what the model comes with.",
    )


def switch_input() -> io.Float.Input:
    """Where the low-noise expert takes over."""
    return boundary_input(
        0.9,
        "Noise level at which the low-noise model takes over. More: it takes over earlier. 0.9 for Wan 2.2 "
        "image-to-video, with shift 5 after 8 of 20 steps.",
        0.01,
        0.99,
        0.005,
    )


def spread_input() -> io.Combo.Input:
    """How the steps are spread over the noise levels."""
    return scheduler_input("How the steps are spread; simple follows the shift.", advanced=True)


def steps_input() -> io.Int.Input:
    """Number of denoising steps."""
    return io.Int.Input(
        "steps",
        default=20,
        min=1,
        max=1000,
        tooltip="Denoising steps. More: cleaner and slower. Published: 50; 20 is ComfyUI's usual number.",
    )


class LongreelFirstFrameLora(io.ComfyNode):
    """A first-frame adapter onto a model or onto both experts."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = folder_paths.get_filename_list("loras")
        return io.Schema(
            node_id="LongreelFirstFrameLora",
            display_name="First-Frame LoRA",
            category=START,
            has_intermediate_output=True,
            description="Loads a first-frame adapter, or the pair of them for Wan 2.2 A14B, and says how much of it "
            "was applied. Finds the two exchanged, and converts files that ComfyUI would silently load as nothing.",
            search_aliases=["ffgo", "lora loader", "high noise", "low noise", "wan 2.2"],
            inputs=[
                io.Model.Input("model", tooltip="The model that films alone, or the high-noise expert of a pair."),
                io.Model.Input("low_noise_model", optional=True, tooltip="The other expert of a pair."),
                io.Combo.Input(
                    "lora", options=names, tooltip="The adapter for `model`: of a pair, the high-noise one."
                ),
                io.Combo.Input(
                    "low_noise_lora",
                    options=[_NONE, *names],
                    default=_NONE,
                    tooltip="The adapter for the low-noise model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the adapter acts, on both. More: a more reliable cut, less of the model's "
                    "own motion. 1 as published.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Model.Output(display_name="low_noise_model"),
                io.String.Output(display_name="report", tooltip="How many modules were applied."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        lora: str,
        low_noise_lora: str,
        strength: float,
        low_noise_model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        if (low_noise_model is None) != (low_noise_lora == _NONE):
            raise FirstFrameError(
                "A pair of experts needs two LoRAs: choose one for the low-noise model."
                if low_noise_lora == _NONE
                else "There is a LoRA for the low-noise model but no such model: connect it, or choose none."
            )
        if low_noise_model is None:
            alone = apply_lora(model, _lora_path(lora), strength)
            return io.NodeOutput(alone.model, None, alone.message, ui=ui.PreviewText(alone.message))
        high = apply_lora(model, _lora_path(lora), strength, "high")
        low = apply_lora(low_noise_model, _lora_path(low_noise_lora), strength, "low")
        report = f"{high.message}\n{low.message}"
        return io.NodeOutput(high.model, low.model, report, ui=ui.PreviewText(report))


class LongreelExpertSwitch(io.ComfyNode):
    """The step at which the second expert takes over."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelExpertSwitch",
            display_name="Expert Switch",
            category=START,
            has_intermediate_output=True,
            description="For two KSampler (Advanced) nodes, one for each expert of Wan 2.2 A14B: the step at which the "
            "first ends and the second begins, from the models' noise boundary. Also sets the shift of both.",
            search_aliases=["ffgo", "wan 2.2", "high noise", "low noise", "boundary", "split sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="The high-noise expert."),
                io.Model.Input("low_noise_model", tooltip="The low-noise expert."),
                steps_input(),
                spread_input(),
                shift_input(),
                switch_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Model.Output(display_name="low_noise_model"),
                io.Int.Output(display_name="steps"),
                io.Int.Output(display_name="switch", tooltip="end_at_step of the first, start_at_step of the second."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        low_noise_model: ModelPatcher,
        steps: int,
        scheduler: str,
        shift: float,
        boundary: float,
    ) -> io.NodeOutput:
        high, low = shifted(model, shift), shifted(low_noise_model, shift)
        switch = stages_by_boundary((high, low), scheduler, steps, boundary)[0].last
        shown = ui.PreviewText(f"{switch} steps with the high-noise model, {steps - switch} with the low-noise one.")
        return io.NodeOutput(high, low, steps, switch, ui=shown)


def shifted(model: ModelPatcher, shift: float) -> ModelPatcher:
    """A clone with this shift, as core's ModelSamplingSD3 makes it; the model itself for 0."""
    patched: Any = ModelSamplingSD3().patch(model, shift)[0] if shift else model
    return cast(ModelPatcher, patched)


def _lora_path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))
