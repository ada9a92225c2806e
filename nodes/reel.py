"""Reels as files, to go on another day."""

from __future__ import annotations

from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.reel.atomic import write_text
from ..film.reel.cut_list import edit_list, film_sources, shot_sources, timeline
from ..film.reel.cut_list import subtitles as subtitles_of
from ..film.reel.reel import Reel, ReelError, load_reel, save_reel
from ..host.files.paths import input_file, listed_files, output_file, prefix_fault
from .sockets import FILM, ReelSocket, prefix_input

_SUFFIX = ".reel.safetensors"
_FILM, _SHOTS = "film", "shots"
_NO_SUBTITLES = "none"


class LongreelSaveReel(io.ComfyNode):
    """A reel into one file of the output folder."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelSaveReel",
            display_name="Save Reel",
            category=FILM,
            description="Writes the reel, all it shows and all it remembers, into one file of the output folder.",
            search_aliases=["export reel", "store film", "checkpoint"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The reel to keep."),
                prefix_input("reels/reel"),
            ],
            outputs=[
                io.Combo.Output(
                    "file", display_name="file", tooltip="The file's name; connect it to Load Reel, or choose it there."
                )
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_fault(filename_prefix) or True

    @override
    @classmethod
    def execute(cls, reel: Reel, filename_prefix: str) -> io.NodeOutput:
        target = output_file(filename_prefix, _SUFFIX, reel.layout.width, reel.layout.height)
        save_reel(reel, target.path, target.place)
        return io.NodeOutput(f"{target.name} [output]", ui=ui.PreviewText(f"{target.name}: {reel.describe()}"))


class LongreelLoadReel(io.ComfyNode):
    """A reel from a file."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelLoadReel",
            display_name="Load Reel",
            category=FILM,
            has_intermediate_output=True,
            description="Opens a reel that Save Reel wrote. Go on filming with the same models and sizes.",
            search_aliases=["import reel", "open film", "resume", "continue"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=listed_files(_SUFFIX),
                    tooltip="A file of the output folder, marked so, or of the input folder. Press R to look again.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel")],
        )

    @override
    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:
            return True
        try:
            load_reel(input_file(file))
        except ValueError as error:
            return str(error)
        return True

    @override
    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        if file is None:
            return ""
        status = input_file(file).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    @override
    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        reel = load_reel(input_file(file))
        return io.NodeOutput(reel, ui=ui.PreviewText(reel.describe()))


class LongreelSaveCutList(io.ComfyNode):
    """A reel's shots and prompts for editing programs."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelSaveCutList",
            display_name="Save Cut List",
            category=FILM,
            description="Writes the film's cuts as an edit decision list (.edl) and a timeline (.otio), and its "
            "prompts as subtitles, for editing programs. The video itself is Reel To Video's.",
            search_aliases=[
                "edl",
                "otio",
                "srt",
                "subtitles",
                "premiere",
                "resolve",
                "timeline export",
            ],
            inputs=[
                ReelSocket.Input("reel", tooltip="The film."),
                io.String.Input(
                    "filename_prefix",
                    default="video/film",
                    tooltip="Folder and beginning of the files' names, below the output folder; a number is added.",
                ),
                io.String.Input(
                    "video",
                    default="film_00001_.mp4",
                    tooltip="The name of the video file that the list cuts up: the one that Reel To Video wrote.",
                ),
                io.Combo.Input(
                    "cut_from",
                    options=[_FILM, _SHOTS],
                    default=_FILM,
                    optional=True,  # API prompts of before it was there go on working
                    tooltip="film: shots are cut out of the one video. shots: they are the videos 001.mp4, "
                    "002.mp4 and so on in the project, which can be replaced one by one.",
                ),
                io.Combo.Input(
                    "subtitles",
                    options=["srt", "vtt", _NO_SUBTITLES],
                    default="srt",
                    optional=True,
                    tooltip="The prompts as subtitles: srt (SubRip) for editors and players, vtt (WebVTT) for the web.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="edl", tooltip="The edit decision list."),
                io.String.Output(display_name="srt", tooltip="The subtitles; empty without."),
                io.String.Output(display_name="otio", tooltip="The timeline."),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_fault(filename_prefix) or True

    @override
    @classmethod
    def execute(
        cls, reel: Reel, filename_prefix: str, video: str, cut_from: str = _FILM, subtitles: str = "srt"
    ) -> io.NodeOutput:
        target = output_file(filename_prefix, ".edl", reel.layout.width, reel.layout.height)
        sources = shot_sources(reel, video) if cut_from == _SHOTS else film_sources(reel, video)
        cuts, times = edit_list(reel, video, sources), timeline(reel, video, sources)
        words = "" if subtitles == _NO_SUBTITLES else subtitles_of(reel, web=subtitles == "vtt")
        files = {".edl": cuts, ".otio": times} | ({f".{subtitles}": words} if words else {})
        try:
            for suffix, text in files.items():
                write_text(target.path.with_suffix(suffix), text)
        except OSError as error:
            raise ReelError(
                f"The cut list cannot be written to {target.path.parent} ({error.strerror}): choose another folder."
            ) from error
        shots = "1 shot" if len(reel.shots) == 1 else f"{len(reel.shots)} shots"
        told = f"{', '.join([target.name, *list(files)[1:]])}: {shots}"
        return io.NodeOutput(cuts, words, times, ui=ui.PreviewText(told))
