"""The first frame as a memory (FFGo): references laid out on one picture, its prompt, its cut, its LoRA's keys. Pure.

Example:

    mug = Reference.from_image(image, mask, "mug", "a white enamel mug")
    first = compose([mug], plate, "auto", (1280, 720))
    prompt = build_prompt("A hand lifts the mug.", [Described("mug", mug.description)])
    ...  # film request_length(77) frames from first.picture
    clip = trim_transition(frames, first.picture).frames
"""

from ..pixels import Box, Reference
from .arrangement import Arrangement, parse_arrangement
from .compose import Composition, compose
from .layouts import MAX_ENLARGE, MAX_REFERENCES, Size, plan
from .lora import (
    KeyReport,
    check_keys,
    check_pair,
    expert_of,
    needs_conversion,
    target_modules,
    to_core_keys,
    to_released_keys,
)
from .plot import plot_cut
from .prompt import TRIGGER, Described, FirstFramePrompt, build_prompt, contradictions
from .trim import COLLAGE_FRAMES, Cut, Trimmed, clean_frames, find_cut, request_length, trim_transition
from .values import FirstFrameError, Layout, LayoutKind, Placement

__all__ = [
    "COLLAGE_FRAMES",
    "MAX_ENLARGE",
    "MAX_REFERENCES",
    "TRIGGER",
    "Arrangement",
    "Box",
    "Composition",
    "Cut",
    "Described",
    "FirstFrameError",
    "FirstFramePrompt",
    "KeyReport",
    "Layout",
    "LayoutKind",
    "Placement",
    "Reference",
    "Size",
    "Trimmed",
    "build_prompt",
    "check_keys",
    "check_pair",
    "clean_frames",
    "compose",
    "contradictions",
    "expert_of",
    "find_cut",
    "needs_conversion",
    "parse_arrangement",
    "plan",
    "plot_cut",
    "request_length",
    "target_modules",
    "to_core_keys",
    "to_released_keys",
    "trim_transition",
]
