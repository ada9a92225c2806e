"""The miniature's own text encoder; its other models load through ComfyUI's stock loaders."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io
from typing_extensions import override

from ..host.miniature_clip import load_miniature_clip
from .sockets import CATEGORY

_KIND = "text_encoders"
_PREFIX = "longreel-miniature"


class LongreelMiniatureTextEncoder(io.ComfyNode):
    """The miniature's text encoder as CLIP."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMiniatureTextEncoder",
            display_name="Load Miniature Text Encoder",
            category=f"{CATEGORY}/miniature",
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
