"""Projects that travel: one file out of a project, and a project out of the file."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.reel.archive import open_archive, pack_project, project_files, read_contents, steps_of
from ..film.reel.atomic import whole_file
from ..film.reel.reel import human_size
from ..host.files.paths import input_file, listed_files, output_file, prefix_fault, project_folder
from ..host.progress import Progress
from .sockets import FILM, prefix_input, project_input

_SUFFIX = ".longreel.zip"


class LongreelPackProject(io.ComfyNode):
    """A project into one file."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelPackProject",
            display_name="Pack Project",
            category=FILM,
            description="Packs a project (its takes, their videos and its review) into one file, to take to another "
            "machine or to keep.",
            search_aliases=["archive", "zip", "backup", "export project", "portable", "move project"],
            inputs=[
                project_input("my film"),
                prefix_input("projects/film"),
            ],
            outputs=[
                io.Combo.Output(
                    "file", display_name="file", tooltip="The file's name; choose it on Open Packed Project."
                )
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, project: str | None = None, filename_prefix: str | None = None) -> bool | str:
        if project is not None and not project.strip():
            return "Only a project can be packed: name it."
        return prefix_fault(filename_prefix) or True

    @override
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # what is on disk decides

    @override
    @classmethod
    def execute(cls, project: str, filename_prefix: str) -> io.NodeOutput:
        folder = project_folder(project)
        target = output_file(filename_prefix, _SUFFIX, 0, 0)
        report = Progress(steps_of(path.stat().st_size for path in project_files(folder)))
        with whole_file(target.path, unique=True, place=target.place) as part:
            packed = pack_project(folder, project, part, lambda _: report.skip(1))
        told = f"{target.name}: {len(packed)} files, {human_size(sum(each.size for each in packed))}"
        report.finish(told)
        return io.NodeOutput(f"{target.name} [output]", ui=ui.PreviewText(told))


class LongreelOpenProject(io.ComfyNode):
    """A project out of a packed one."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelOpenProject",
            display_name="Open Packed Project",
            category=FILM,
            description="Makes a project of a file that Pack Project wrote. Every file in it is compared with its "
            "checksum; the project is there as a whole, or not at all.",
            search_aliases=["import project", "unzip", "restore", "unpack", "load project"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=listed_files(_SUFFIX),
                    tooltip="A file of the output folder, marked so, or of the input folder. Press R to look again.",
                ),
                io.String.Input(
                    "project",
                    default="",
                    tooltip="The project's name here. Empty: the name it was packed under. A project that has its "
                    "takes already stays as it is.",
                ),
            ],
            outputs=[io.String.Output(display_name="project", tooltip="The project's name.")],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:
            return True
        try:
            read_contents(input_file(file))
        except ValueError as error:
            return str(error)
        return True

    @override
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @override
    @classmethod
    def execute(cls, file: str, project: str) -> io.NodeOutput:
        path = input_file(file)
        packed_as, files = read_contents(path)
        name = project if project.strip() else packed_as
        report = Progress(steps_of(each.size for each in files))
        opened = open_archive(path, project_folder(name), lambda _: report.skip(1))
        told = f"{name}: {len(opened)} files, {human_size(sum(each.size for each in opened))}"
        report.finish(told)
        return io.NodeOutput(name, ui=ui.PreviewText(told))
