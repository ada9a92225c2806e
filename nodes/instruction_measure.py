"""Two folders of videos, measured against each other."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from typing_extensions import override

from ..training.instruction.data import InstructionDataError
from ..training.instruction.evaluate import compare_folders
from .sockets import REPORT


class LongreelCompareVideos(io.ComfyNode):
    """FVD, KVD, PSNR, SSIM and text swap."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        place = "its full path, or its name in the output folder"
        return io.Schema(
            node_id="LongreelCompareVideos",
            display_name="Compare Videos",
            category=REPORT,
            description="How near videos are to true ones: FVD and KVD of the two sets with an I3D of yours, PSNR and "
            "SSIM of videos of the same name, and how much another instruction changes.",
            search_aliases=["fvd", "kvd", "psnr", "ssim", "i3d", "aid", "evaluate"],
            is_output_node=True,
            inputs=[
                io.String.Input("real", default="", tooltip=f"Folder of the true videos: {place}."),
                io.String.Input("made", default="", tooltip=f"Folder of the made ones: {place}."),
                io.String.Input(
                    "swapped",
                    default="",
                    tooltip="Folder of the made ones once more, from the same frames and seeds but with another "
                    "instruction: how much the words change. Empty: not measured.",
                ),
                io.String.Input(
                    "i3d",
                    default="",
                    tooltip="Full path of i3d_torchscript.pt, as StyleGAN-V publishes it. Empty: no FVD and KVD.",
                ),
                io.Int.Input(
                    "frames", default=16, min=2, max=256, tooltip="Of each video, spread evenly over it; I3D needs 10."
                ),
                io.Int.Input("width", default=256, min=16, max=2048, tooltip="Pixels; videos are cut to it."),
                io.Int.Input("height", default=256, min=16, max=2048, tooltip="Pixels; see width."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The measures as JSON.")],
        )

    @override
    @classmethod
    def execute(
        cls, real: str, made: str, swapped: str, i3d: str, frames: int, width: int, height: int
    ) -> io.NodeOutput:
        output = Path(folder_paths.get_output_directory())
        for name, folder in (("real", real), ("made", made)):
            if not folder.strip():
                raise InstructionDataError(f"No folder of videos is named: write it into {name}.")
        lines: list[str] = []
        measured = compare_folders(
            output / real.strip(),
            output / made.strip(),
            frames=frames,
            size=(width, height),
            i3d=output / i3d.strip() if i3d.strip() else None,
            swapped=output / swapped.strip() if swapped.strip() else None,
            say=lines.append,
        )
        report = json.dumps(measured, indent=1)
        return io.NodeOutput(report, ui=ui.PreviewText("\n".join([*lines, report])))
