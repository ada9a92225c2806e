"""Guidance by motion: by an adapter's own prediction, and without an adapter."""

from __future__ import annotations

import re
from typing import Any, Literal

from comfy.model_patcher import ModelPatcher
from comfy_api.input import CurveInput
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.motion import MotionError
from ..host.guidance import Window
from ..host.inner_guidance import MotionGuidance, guide, inner_guider
from ..host.wan.joint_latent import joint_of
from ..host.wan.weak_guidance import WeakGuidance, guide_from_weak
from .sockets import MOTION


def _window_inputs(end: float) -> list[Any]:
    return [
        io.Float.Input(
            "start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where it begins, 0 at the first step. Motion is decided early: leave it at 0.",
        ),
        io.Float.Input(
            "end",
            default=end,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where it ends, 1 at the last step. More: stronger motion, more time, harder contrast.",
        ),
        io.Combo.Input(
            "unit",
            options=["steps", "sigma"],
            default="steps",
            advanced=True,
            tooltip="steps: start and end are shares of this sampler's steps. sigma: shares of the noise schedule, the "
            "same whatever the number of steps, as in core's guidance nodes.",
        ),
    ]


def _rescale_input(default: float) -> io.Float.Input:
    return io.Float.Input(
        "rescale",
        default=default,
        min=0.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip="Brings the contrast back that guidance adds. More: calmer colours. 0: none.",
    )


def _inner_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "motion_scale",
            default=3.0,
            min=0.0,
            max=20.0,
            step=0.1,
            tooltip="Weight of the predicted motion (w2). More: the picture follows it more strictly, up to hard "
            "colours; 0: none. 3 as published. Keep the sampler's own cfg.",
        ),
        *_window_inputs(0.5),
        _rescale_input(0.0),
        io.Combo.Input(
            "gate",
            options=["auto", "ignore"],
            default="auto",
            advanced=True,
            tooltip="auto lowers the motion scale at noise levels where the adapter predicts motion no better than "
            "none at all, as measured when it was trained. ignore: always the full scale.",
        ),
        io.Combo.Input(
            "motion_half",
            options=["full", "cfg_only"],
            default="full",
            advanced=True,
            tooltip="Whether the motion itself is guided by the motion scale too (full, as published) or only by the "
            "prompt.",
        ),
        io.Combo.Input(
            "mode",
            options=["inner", "ip2p"],
            default="inner",
            advanced=True,
            tooltip="inner as published; ip2p nests as InstructPix2Pix does, weaker in the paper, for comparison.",
        ),
        io.Custom("CURVE").Input(
            "curve",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="From core's Curve Editor: multiplies the motion scale, from the first step on the left to the "
            "last on the right. Lower: less motion guidance there; at 0 the step costs no evaluation more.",
        ),
    ]


class LongreelInnerGuidance(io.ComfyNode):
    """A model patch, for any sampler."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInnerGuidance",
            display_name="Inner Guidance",
            category=MOTION,
            has_intermediate_output=True,
            description="Guides a model with a motion adapter by the motion that it predicts itself, in any sampler "
            "and in the cache-guided and first-frame engines. One evaluation more a step while it acts.",
            search_aliases=["videojam", "better motion", "motion guidance"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply Motion Adapter; other patches may lie between."),
                *_inner_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def execute(cls, model: ModelPatcher, **settings: Any) -> io.NodeOutput:
        guidance, warning = _guidance(model, **settings)
        return io.NodeOutput(guide(model, guidance), ui=ui.PreviewText(warning))


class LongreelInnerGuider(io.ComfyNode):
    """A guider, for custom sampling."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelInnerGuider",
            display_name="Inner Guider",
            category=MOTION,
            has_intermediate_output=True,
            description="Inner Guidance and the prompts as one GUIDER, for SamplerCustomAdvanced. The same result as "
            "Inner Guidance before a KSampler.",
            search_aliases=["videojam", "guider", "motion guidance"],
            inputs=[
                io.Model.Input("model", tooltip="From Apply Motion Adapter; other patches may lie between."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it must not look like; the paper leaves it empty."),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance by the prompt, the model's own usual value. More: closer to the prompt.",
                ),
                *_inner_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @override
    @classmethod
    def execute(cls, model: ModelPatcher, positive: Any, negative: Any, cfg: float, **settings: Any) -> io.NodeOutput:
        guidance, warning = _guidance(model, **settings)
        guider = inner_guider(model, positive, negative, cfg, guidance)
        return io.NodeOutput(guider, ui=ui.PreviewText(warning))


class LongreelMotionFallbacks(io.ComfyNode):
    """More motion without an adapter."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMotionFallbacks",
            display_name="Motion Fallbacks",
            category=MOTION,
            description="Better motion for any Wan model without training: guidance away from the model with a block "
            "left out (skip layer) or blinded (STG). Works at cfg 1 with few-step LoRAs, and in the causal engine. One "
            "evaluation more a step while it acts.",
            search_aliases=["slg", "skip layer guidance", "stg", "lightning", "slow motion", "lightx2v"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan model, with or without few-step LoRAs."),
                io.Combo.Input(
                    "method",
                    options=["skip layer", "STG"],
                    default="skip layer",
                    tooltip="skip layer leaves the blocks out; STG keeps them and takes their self-attention away, "
                    "which is gentler.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="More: more motion and firmer shapes, up to hard colours. 0: none.",
                ),
                io.String.Input(
                    "layers",
                    default="",
                    tooltip="Numbers of the blocks, such as 8, 9. Empty: the one a quarter of the way up (10 for 14B, "
                    "8 for 1.3B).",
                ),
                *_window_inputs(0.6),
                _rescale_input(0.7),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        method: str,
        scale: float,
        layers: str,
        start: float,
        end: float,
        unit: Literal["steps", "sigma"],
        rescale: float,
    ) -> io.NodeOutput:
        if re.sub(r"[\d\s,;]", "", layers):
            raise MotionError(f"The layers {layers!r} are no numbers: write them like 8, 9, or leave it empty.")
        chosen = tuple(int(number) for number in re.findall(r"\d+", layers))
        kind: Literal["skip", "values"] = "values" if method == "STG" else "skip"
        guidance = WeakGuidance(kind, chosen, scale, Window(start, end, unit), rescale)
        return io.NodeOutput(guide_from_weak(model, guidance))


def _guidance(
    model: ModelPatcher,
    motion_scale: float,
    start: float,
    end: float,
    unit: Literal["steps", "sigma"],
    rescale: float,
    gate: str,
    motion_half: Literal["full", "cfg_only"],
    mode: Literal["inner", "ip2p"],
    curve: CurveInput | None = None,
) -> tuple[MotionGuidance, str]:
    """The settings of the widgets, and what to warn of, empty if nothing."""
    joint = joint_of(model)
    measured = None if joint is None else joint.info.gate
    guidance = MotionGuidance(
        scale=motion_scale,
        window=Window(start, end, unit),
        rescale=rescale,
        motion_half=motion_half,
        mode=mode,
        gate=measured if gate == "auto" else None,
        curve=() if curve is None else tuple(curve.to_lut().tolist()),
    )
    return guidance, ("" if measured is None else measured.warning()) or ""
