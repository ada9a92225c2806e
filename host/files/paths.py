"""Folders and files, by ComfyUI's own functions: users move its folders with --base-directory and extra model paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...film.reel import project as film_project
from ...film.reel.atomic import claim, sweep

MINIATURE_WEIGHTS = Path(__file__).resolve().parents[2] / "miniature" / "weights"
"""The shipped weights, one subfolder per kind: diffusion_models, vae, text_encoders, loras, open_clip."""

EXAMPLE_STORIES = Path(__file__).resolve().parents[2] / "miniature" / "example_stories.jsonl"
"""Stories of the small world, one a line."""

CLIP_KIND = "open_clip"
"""The folder of models in which open_clip's weights lie."""

ADAPTER_KIND = "aid"
"""The folder of models in which AID's adapters lie."""

_MODEL_KINDS = ("diffusion_models", "vae", "text_encoders", "loras")


@dataclass
class SavedName:
    """A new file in ComfyUI's output folder, and how its interface refers to it.

    path: where it will be, as far as is known before it is placed. subfolder: its folder below the output folder, ""
    for the output folder itself. again: the same with the next free number.
    """

    path: Path
    subfolder: str
    again: Callable[[], SavedName]

    @property
    def filename(self) -> str:
        """Its name alone."""
        return self.path.name

    def place(self, part: Path) -> None:
        """Give a finished part its name, with the next free number if another server has taken this one meanwhile."""
        while True:
            try:
                return claim(part, self.path)
            except FileExistsError:
                self.path = self.again().path


def register_model_folders() -> None:
    """Let ComfyUI's own loaders list the miniature's weights, after the user's files of the same name; name ours."""
    for kind in _MODEL_KINDS:
        folder_paths.add_model_folder_path(kind, str(MINIATURE_WEIGHTS / kind))
    for kind in (CLIP_KIND, ADAPTER_KIND):
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        folder_paths.add_model_folder_path(kind, str(MINIATURE_WEIGHTS / kind))
    # Trained ones lie in the output folder, as core has it for LoRAs.
    folder_paths.add_model_folder_path(ADAPTER_KIND, str(Path(folder_paths.get_output_directory()) / ADAPTER_KIND))


def project_folder(name: str) -> Path:
    """The folder of the project `name`, in the folder longreel of the output folder.

    It always lies directly in there and is not made. Raises ReelError for a name without a letter or digit.
    """
    return film_project.project_folder(Path(folder_paths.get_output_directory()) / "longreel", name)


def spill_folder() -> Path:
    """The folder for tensors that are too large to keep in memory. ComfyUI empties it when it starts and stops."""
    folder = Path(folder_paths.get_temp_directory()) / "longreel"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def input_file(name: str) -> Path:
    """A file that the user has put into ComfyUI's input folder, or output or temp with "name [output]".

    Raises ValueError: there is no such file, or the name leads out of the folder.
    """
    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.is_file():
        raise ValueError(f"There is no file {name!r} in ComfyUI's input folder; put it there or correct the name.")
    return path


def output_file(prefix: str, suffix: str, width: int, height: int) -> SavedName:
    """The next free numbered name in the output folder, as core's Save Video would choose it.

    prefix: may hold folders and core's placeholders (%date:...% is filled in by the editor, %width% here). suffix:
    ".mp4" or ".webm". width, height: of the film in pixels, for the placeholders. What killed writers left in that
    folder is cleared. Raises ValueError: the prefix leads
    out of the output folder, or its folder cannot be made.
    """
    output = folder_paths.get_output_directory()
    if not folder_paths.is_within_directory(output, str(Path(output) / prefix)):
        raise ValueError(f"The file name {prefix!r} leads out of ComfyUI's output folder; leave out '..' and '/'.")
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    except OSError as error:
        raise ValueError(
            f"The folder of {prefix!r} cannot be made in ComfyUI's output folder ({error.strerror}); choose another."
        ) from error
    sweep(Path(folder))
    path = Path(folder) / f"{stem}_{counter:05}_{suffix}"
    return SavedName(path, subfolder, lambda: output_file(prefix, suffix, width, height))
