"""What every training node does around its recipe: a folder, a run inside ComfyUI, and what comes out of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..film.reel.project import project_folder
from ..host.files.paths import made_folder
from ..host.files.pictures import as_image
from ..training.core.in_node import training_in_node
from ..training.core.run import newest_sample

_PROGRESS = re.compile(r"encoded |\w+: step ")
"""Begins a line that a report leaves out."""


@dataclass(frozen=True)
class Trained:
    """A finished run: the file in output, pictures of its loss and of what it films [1, H, W, 3], and what it
    said; `ui` shows the curve and the report on the node.
    """

    file: Path
    curve: Tensor
    samples: Tensor
    report: str
    ui: dict[str, Any]


def run_name_input(default: str) -> io.String.Input:
    """The name of a run; its folder is run_folder()."""
    return io.String.Input(
        "name",
        default=default,
        tooltip="Of the run and its file. The same name with the same settings goes on where it stopped.",
    )


def run_folder(name: str) -> Path:
    """The folder of the run `name`; its own name is the file's."""
    return project_folder(Path(folder_paths.get_output_directory()) / "longreel-loras", name)


def trained(
    cls: type[io.ComfyNode],
    run: Path,
    loader: str,
    train: Callable[[Callable[[str], None]], Path],
    kind: str = "loras",
) -> Trained:
    """Run `train(say)`, which returns the trained file, as a node does: with its progress bar, and interrupted as
    ComfyUI interrupts. The file is copied to where loaders list it. loader: the node that loads it, for the report.
    kind: the folder of output in which that node looks.
    """
    told: list[str] = []
    with training_in_node() as tell:

        def say(line: str) -> None:
            told.append(line)
            tell(line)

        made = train(say)
    file = run.parent.parent / kind / f"{run.name}.safetensors"
    made_folder(file.parent)
    try:
        shutil.copyfile(made, file)
    except OSError as error:
        raise ValueError(
            f"{made} is trained, and cannot be copied to {file.parent} ({error.strerror}): copy it to your models."
        ) from error
    report = "\n".join([*(line for line in told if not _PROGRESS.match(line)), f"{file}, also for {loader}."])
    curve, newest = picture(run / "loss.png"), newest_sample(run)
    shown: dict[str, Any] = {**ui.PreviewImage(curve, cls=cls).as_dict(), "text": (report,)}
    return Trained(file, curve, curve if newest is None else picture(newest), report, shown)


def picture(path: Path) -> Tensor:
    """A picture file as IMAGE [1, H, W, 3]."""
    with Image.open(path) as opened, torch.inference_mode():
        return as_image(opened.convert("RGB"))
