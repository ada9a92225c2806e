"""States of an instruction: what a language model is asked, what its answer becomes, and both in one."""

from __future__ import annotations

from typing import Any, cast

from comfy.sd import CLIP
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.instruction import DEFAULT_STATES, MAX_STATES, InstructionError, States, parse_states, states_prompt
from ..host.media.plan_states import StatePlanner
from .sockets import INSTRUCTION, StatesSocket


def instruction_input() -> io.String.Input:
    """What shall happen."""
    return io.String.Input(
        "instruction",
        multiline=True,
        default="",
        tooltip='What shall happen, in one sentence, such as "the hand lifts the lid off the box". More detail: less '
        "is left to chance.",
    )


def states_count_input(name: str = "states") -> io.Int.Input:
    """How many states."""
    return io.Int.Input(
        name,
        default=DEFAULT_STATES,
        min=1,
        max=MAX_STATES,
        tooltip="How many moments the action is told in, first and last included. More: what happens in between is "
        "laid down more closely. 4 as published, and for adapters trained with 4.",
    )


def detail_input() -> io.Combo.Input:
    """What is asked for."""
    return io.Combo.Input(
        "detail",
        options=["plain", "timed"],
        default="plain",
        tooltip="plain: a sentence for each state, as published. timed: also when it is, who moves and what the camera "
        "does; large models keep to it, small ones less.",
    )


def _outputs(states: States, *rest: Any) -> io.NodeOutput:
    told = f"{states.to_text()}\n({states.reason} The instruction stands in.)" if states.fallback else states.to_text()
    return io.NodeOutput(states, states.to_text(), states.fallback, *rest, ui=ui.PreviewText(told))


_STATES_OUTPUTS = [
    StatesSocket.Output(display_name="states"),
    io.String.Output(display_name="text", tooltip="The states as numbered lines, to read or to edit."),
    io.Boolean.Output(
        display_name="fallback", tooltip="True where no answer could be used and the instruction stands for all states."
    ),
]


class LongreelStatePrompt(io.ComfyNode):
    """The question."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelStatePrompt",
            display_name="State Prompt",
            category=INSTRUCTION,
            description="What to ask a vision-language model beside the first frame, so that it tells an instruction "
            "in successive states. For core's Generate Text or any other node that answers in words; Read States reads "
            "the answer.",
            search_aliases=["aid", "planner", "mllm", "llava", "decompose"],
            inputs=[instruction_input(), states_count_input(), detail_input()],
            outputs=[io.String.Output(display_name="prompt")],
        )

    @override
    @classmethod
    def execute(cls, instruction: str, states: int, detail: str) -> io.NodeOutput:
        return io.NodeOutput(states_prompt(instruction, states, cast(Any, detail)))


class LongreelReadStates(io.ComfyNode):
    """Words to states."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelReadStates",
            display_name="Read States",
            category=INSTRUCTION,
            description="Reads states from any text: the answer of a language model (a list, JSON, numbered lines, "
            "prose), or lines that you write. There are always as many as you ask for.",
            search_aliases=["aid", "parse", "planner"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="The answer, or a line for each state in the order of time. More lines than states are "
                    "thinned, fewer repeated.",
                ),
                instruction_input(),
                states_count_input(),
                io.Boolean.Input(
                    "check",
                    default=True,
                    tooltip="On: a text that does not look like states (refusals, three times the same, nothing of the "
                    "instruction) is not used, and the instruction stands in. Off: whatever is there is taken.",
                ),
            ],
            outputs=_STATES_OUTPUTS,
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(cls, text: str, instruction: str, states: int, check: bool) -> io.NodeOutput:
        return _outputs(parse_states(text, instruction, states, strict=check))


class LongreelPlanStates(io.ComfyNode):
    """A picture and an instruction to states, by a vision-language model."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelPlanStates",
            display_name="Plan States",
            category=INSTRUCTION,
            description="Lets a vision-language model look at the first frame and tell an instruction in successive "
            "states: lying flat, one end raised, released, lying again. Models: Qwen3-VL, Qwen3.5, Gemma 3 or 4 from "
            "core's Load CLIP. The same picture and instruction are asked about once.",
            search_aliases=["aid", "planner", "mllm", "llava", "qwen", "gemma", "decompose"],
            inputs=[
                io.Clip.Input(
                    "language_model",
                    tooltip="A vision-language model from Load CLIP (type stable_diffusion): Qwen3-VL 4B or 8B, "
                    "Qwen3.5 or Gemma. Larger: states that fit the picture better, and slower.",
                ),
                io.Image.Input("image", tooltip="The frame in which it begins; of several the last is looked at."),
                instruction_input(),
                states_count_input(),
                detail_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="0 takes the likeliest words; any other number draws them, for another plan.",
                ),
                io.Int.Input(
                    "retries",
                    default=2,
                    min=0,
                    max=10,
                    advanced=True,
                    tooltip="How often to ask again, with another seed, if the answer cannot be used. After that the "
                    "instruction stands for all states.",
                ),
            ],
            outputs=[*_STATES_OUTPUTS, io.String.Output(display_name="answer", tooltip="What the model said.")],
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(
        cls, language_model: CLIP, image: Tensor, instruction: str, states: int, detail: str, seed: int, retries: int
    ) -> io.NodeOutput:
        if language_model is None:
            raise InstructionError("The loader gave no language model: connect a vision-language model from Load CLIP.")
        planner = StatePlanner(language_model, states, cast(Any, detail), retries, seed)
        planned = planner.plan(image[-1], instruction)
        return _outputs(planned.states, planned.raw)
