"""The miniature's own text encoder and pictures of its world; its models load through ComfyUI's stock loaders."""

from __future__ import annotations

import folder_paths
import torch
from comfy_api.latest import io
from typing_extensions import override

from ..host.miniature_clip import load_miniature_clip
from ..miniature.world import BODIES, COLOURS, HEADGEAR, PLACES, SIZE, Actor, Beat, Character, Scene, render
from .sockets import MINIATURE

_KIND = "text_encoders"
_PREFIX = "longreel-miniature"
_PICTURED = 4 * SIZE
"""Pixels of a side: references are pictured larger than they are filmed, as photographs are."""


class LongreelMiniatureTextEncoder(io.ComfyNode):
    """The miniature's text encoder as CLIP."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMiniatureTextEncoder",
            display_name="Load Miniature Text Encoder",
            category=MINIATURE,
            description="Loads the text encoder of the miniature: a small world with a few dozen words, for tests and "
            "for learning. For real films use ComfyUI's Load CLIP.",
            search_aliases=["clip loader", "small world", "quick start"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[name for name in folder_paths.get_filename_list(_KIND) if name.startswith(_PREFIX)],
                    tooltip="The miniature's text encoder; it comes with the pack.",
                ),
            ],
            outputs=[io.Clip.Output(display_name="clip")],
        )

    @override
    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_miniature_clip(folder_paths.get_full_path_or_raise(_KIND, file)))


class LongreelMiniaturePicture(io.ComfyNode):
    """A character and a place of the small world, drawn."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMiniaturePicture",
            display_name="Miniature Picture",
            category=MINIATURE,
            description="Draws a character and a place of the miniature: references and plates to learn with.",
            search_aliases=["small world", "character", "example image"],
            inputs=[
                io.Combo.Input("colour", options=list(COLOURS), tooltip="Of the character's body."),
                io.Combo.Input("body", options=list(BODIES), tooltip="What the character is."),
                io.Combo.Input("headgear", options=list(HEADGEAR), tooltip="What it wears on its head."),
                io.Combo.Input("place", options=list(PLACES), tooltip="Where it is, and what the plate shows."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="character", tooltip=f"The character in its place, {_PICTURED} x {_PICTURED}."
                ),
                io.Mask.Output(display_name="mask", tooltip="1 where the character is."),
                io.Image.Output(display_name="plate", tooltip="The place without anybody in it."),
            ],
        )

    @override
    @classmethod
    def execute(cls, colour: str, body: str, headgear: str, place: str) -> io.NodeOutput:
        who = Character(colour, body, headgear)
        drawn = {
            where: render(Scene(place, (Actor(who, where),), (Beat(0.0, ("stands",)),)), torch.zeros(1), _PICTURED)
            for where in ("left", "middle", "right")
        }
        # What the character hides on the left is visible when it stands on the right.
        seen = torch.where(drawn["left"].masks > 0, drawn["right"].frames, drawn["left"].frames)
        middle = drawn["middle"]
        return io.NodeOutput(middle.frames.movedim(1, -1), middle.masks[:, 0], seen.movedim(1, -1))
