"""Folders and files, by ComfyUI's own functions: users move its folders with --base-directory and extra model paths."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...film.decode import shortened
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

_DATE = re.compile(r"%date:([^%]+)%")
_DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyyy|yyy|yy|y")
_NOT_IN_NAMES = re.compile("[\x00-\x1f\ud800-\udfff]" if os.name != "nt" else '[\x00-\x1f\ud800-\udfff<>"|?*:]')
_MAX_NAME, _MAX_PATH = 255, 4000
_ROOM = 32
"""Bytes for the number and the longest of our endings."""

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

    @property
    def name(self) -> str:
        """Its name below the output folder."""
        return f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename

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
    return made_folder(Path(folder_paths.get_temp_directory()) / "longreel")


def made_folder(folder: Path) -> Path:
    """The folder, made if need be. Raises ValueError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be made ({error.strerror}): allow it, or let ComfyUI use another place."
        ) from error
    return folder


def listed_files(suffix: str) -> list[str]:
    """Names of the files in ComfyUI's input and output folders that end so, as `input_file` takes them, for choices."""
    saved, _ = folder_paths.recursive_search(folder_paths.get_output_directory())
    given, _ = folder_paths.recursive_search(folder_paths.get_input_directory())
    named = [*(f"{name} [output]" for name in saved), *given]
    return sorted(name.replace("\\", "/") for name in named if name.removesuffix(" [output]").endswith(suffix))


def input_file(name: str) -> Path:
    """A file that the user has put into ComfyUI's input folder, or output or temp with "name [output]".

    Raises ValueError: there is no such file, or the name leads out of the folder.
    """
    try:
        path = Path(folder_paths.get_annotated_filepath(name))
        if path.is_file():
            return path
    except (OSError, ValueError):  # out of the folder, too long for a disk, characters that no name can have
        pass
    raise ValueError(
        f"There is no file {shortened(name, 200)!r} in ComfyUI's input folder; put it there or correct the name."
    )


def prefix_fault(prefix: str | None) -> str:
    """Why files cannot be written under such a name, as one sentence; empty where they can, as far as can be known
    before it is done, and for None, which is not known yet. prefix: as `output_file` takes it.
    """
    if prefix is None:
        return ""
    filled = os.path.normpath(_dated(prefix, time.localtime())) if prefix.strip() else "."
    name, output = os.path.basename(filled), Path(folder_paths.get_output_directory())
    if filled == ".":
        return "The file name is empty: write one, such as video/film."
    if _NOT_IN_NAMES.search(filled):
        return f"The file name {prefix!r} has characters in it that no file name can have: leave them out."
    if not folder_paths.is_within_directory(str(output), str(output / filled)):
        return f"The file name {prefix!r} leads out of ComfyUI's output folder; leave out '..', '/' and links."
    parts = [_bytes(part) for part in Path(filled).parts]
    if parts[-1] > _MAX_NAME - _ROOM or max(parts) > _MAX_NAME or _bytes(str(output / filled)) > _MAX_PATH:
        return f"The file name {name[:20]!r}... is too long: shorten it."
    above = output / filled
    while not (above := above.parent).exists():
        pass
    if not above.is_dir():
        return f"The folder of {prefix!r} cannot be made, {above.name} is a file: choose another name."
    if not os.access(above, os.W_OK | os.X_OK):
        return f"Nothing may be written into {above}: allow it, or choose another folder."
    return ""


def _bytes(text: str) -> int:
    return len(os.fsencode(text))


def _dated(prefix: str, now: time.struct_time) -> str:
    """The prefix with %date:...% filled in, as the editor fills it in for core's own save nodes."""
    parts = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(found: re.Match[str]) -> str:
        word = found[0]
        if word == "yyyy":
            return str(now.tm_year)
        if word == "yy":
            return str(now.tm_year)[2:]
        return str(parts[word[0]]).zfill(len(word)) if word[0] in parts else word

    return _DATE.sub(lambda found: _DATE_PARTS.sub(part, found[1]), prefix)


def output_file(prefix: str, suffix: str, width: int, height: int) -> SavedName:
    """The next free numbered name in the output folder, as core's Save Video would choose it.

    prefix: may hold folders and core's placeholders, %date:...% and %width% among them. suffix: ".mp4" or ".webm".
    width, height: of the film in pixels, for the placeholders. What killed writers left in that folder is cleared.
    Raises ValueError: see prefix_fault; or its folder cannot be made.
    """
    if fault := prefix_fault(prefix):
        raise ValueError(fault)
    output, prefix = folder_paths.get_output_directory(), _dated(prefix, time.localtime())
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    except OSError as error:
        raise ValueError(
            f"The folder of {prefix!r} cannot be made in ComfyUI's output folder ({error.strerror}); choose another."
        ) from error
    sweep(Path(folder))
    path = Path(folder) / f"{stem}_{counter:05}_{suffix}"
    return SavedName(path, subfolder, lambda: output_file(prefix, suffix, width, height))
