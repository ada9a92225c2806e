"""Around a shot that grows out of a composed first frame: its prompt before, the cut after."""

from __future__ import annotations

from typing import Any, Literal, cast

from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.first_frame import TRIGGER, Described, Reference, build_prompt, plot_cut, trim_transition
from .sockets import CAST, references_input, references_of


class LongreelFirstFramePrompt(io.ComfyNode):
    """Words to the prompt of a first-frame shot."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFirstFramePrompt",
            display_name="First Frame Prompt",
            category=CAST,
            has_intermediate_output=True,
            description="Writes the prompt of a shot filmed from a composed first frame: the trigger sentence, what "
            "happens, and the looks of every reference. Says where the text contradicts a reference.",
            search_aliases=["ffgo", "trigger", "caption", "prompt builder"],
            inputs=[
                references_input("The references of the composer, in the same order.", least=0),
                io.String.Input(
                    "action",
                    multiline=True,
                    default="",
                    tooltip="What happens in the shot, naming each reference. More words, up to about 130: more of it "
                    "happens. Never speak of the collage. Text from core's Generate Text may be connected.",
                ),
                io.String.Input(
                    "scene", default="", tooltip="Where it happens, as a sentence; left out if the action says it."
                ),
                io.String.Input("camera", default="", tooltip="One move of the camera, as a sentence."),
                io.String.Input("style", default="", tooltip="The look of the film, as a sentence."),
                io.String.Input(
                    "trigger",
                    default=TRIGGER,
                    advanced=True,
                    tooltip="The sentence the adapter was trained with; it stands first, once. Change it only for an "
                    "adapter of your own.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="report", tooltip="What to change about it, a line each."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls,
        action: str,
        scene: str,
        camera: str,
        style: str,
        trigger: str,
        references: dict[str, Reference | None] | None = None,
    ) -> io.NodeOutput:
        described = [Described(each.name, each.description) for each in references_of(references)]
        made = build_prompt(action, described, scene=scene, camera=camera, style=style, trigger=trigger)
        report = "\n".join(made.warnings)
        return io.NodeOutput(made.text, report, ui=ui.PreviewText("\n\n".join(filter(None, (made.text, report)))))


class LongreelTrimTransition(io.ComfyNode):
    """A clip without its collage."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelTrimTransition",
            display_name="Trim Transition",
            category=CAST,
            description="Takes the composed first frame, and what dissolves out of it, off the beginning of a clip. To "
            "keep N frames, film N + 4 (77 of 81, 81 of 85).",
            search_aliases=["ffgo", "cut detection", "remove first frames", "trim video", "transition"],
            inputs=[
                io.Image.Input("images", tooltip="The clip as the model made it."),
                io.Image.Input(
                    "first_frame",
                    optional=True,
                    tooltip="The composed picture that the clip was filmed from. auto looks for it in the clip.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["auto", "fixed", "two latents"],
                    default="auto",
                    tooltip="auto: finds where the shot begins, also behind a slow dissolve. fixed: drops 4 frames, as "
                    "published. two latents: drops 5, cleaner where frame 4 shows ghosts.",
                ),
                io.Int.Input(
                    "max_trim",
                    default=24,
                    min=1,
                    max=240,
                    advanced=True,
                    tooltip="Latest frame at which auto expects the shot. More: finds slower transitions, but may take "
                    "a real change of the shot for the cut.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The shot alone."),
                io.Int.Output(display_name="index", tooltip="How many frames were dropped."),
                io.Image.Output(display_name="plot", tooltip="The collage's share of each frame, and the cut."),
                io.String.Output(display_name="report"),
            ],
        )

    @override
    @classmethod
    def execute(cls, images: Tensor, mode: str, max_trim: int, first_frame: Tensor | None = None) -> io.NodeOutput:
        how = cast(Literal["fixed", "two latents", "auto"], mode)
        made = trim_transition(images, first_frame, how, max_trim)
        plot = plot_cut(made.cut)
        shown: dict[str, Any] = {**ui.PreviewImage(plot, cls=cls).as_dict(), "text": (made.cut.message,)}
        return io.NodeOutput(made.frames, made.cut.index, plot, made.cut.message, ui=shown)
