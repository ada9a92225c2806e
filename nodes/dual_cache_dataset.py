"""Films of one's own to scenes that a FilmWeaver LoRA learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.reel.project import project_folder
from ..host.files.paths import made_folder
from ..host.media.embedder import Embedder
from ..host.progress import Progress
from ..training.core.settings import from_widgets, node_inputs
from ..training.dual_cache.run import draw_keyframes
from ..training.dual_cache.samples import load_scenes
from ..training.dual_cache.scenes.build import PAPER, STAGES, SceneBuilder, draw_scenes
from ..training.dual_cache.scenes.encode import SceneModels
from ..training.dual_cache.scenes.films import SceneDataError
from ..training.dual_cache.scenes.world import write_world_films
from .sockets import MINIATURE, TRAINING, KeyframeClipSocket, WeaverDatasetSocket
from .training_run import picture

_NOTHING = "nothing"


class LongreelMiniatureFilms(io.ComfyNode):
    """Films of the small world as files."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelMiniatureFilms",
            display_name="Miniature Films",
            category=MINIATURE,
            description="Films of the miniature, three shots each, as video files with cuts.json and captions.json "
            "beside them: what a folder of films of your own looks like.",
            search_aliases=["small world", "dataset", "training data", "filmweaver"],
            inputs=[
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Films. More: more is learned, and encoding takes longer; 200 for a LoRA of use.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31, tooltip="Which films; another number, others."),
            ],
            outputs=[io.String.Output(display_name="films", tooltip="The folder, for FilmWeaver Dataset.")],
        )

    @override
    @classmethod
    def execute(cls, count: int, seed: int) -> io.NodeOutput:
        folder = Path(folder_paths.get_output_directory()) / "longreel-films" / f"miniature-{seed}"
        write_world_films(count, folder, seed=seed)
        return io.NodeOutput(str(folder))


class LongreelWeaverDataset(io.ComfyNode):
    """A folder of films, or of encoded scenes, to a dataset."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelWeaverDataset",
            display_name="FilmWeaver Dataset",
            category=TRAINING,
            description="Cuts films into shots, groups shots into scenes by what they show, leaves out what is of no "
            "use, has captions written and checked, and encodes it all into output/longreel-scenes. Every result is "
            "kept: interrupted or queued again it goes on, and a change makes anew only what follows from it. Look at "
            "the contact sheet before you train.",
            search_aliases=["filmweaver", "dataset", "training data", "scene detection", "captioning"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The video model to be trained; says how its latents are scaled."),
                io.Clip.Input("clip", tooltip="Its text encoder; reads the captions once."),
                io.Vae.Input("vae", tooltip="Its VAE; encodes the shots once."),
                KeyframeClipSocket.Input(
                    "keyframe_clip",
                    tooltip="Tells which shots are alike, and which keyframes "
                    "fit a caption. Film with the same one later.",
                ),
                io.Clip.Input(
                    "writer",
                    optional=True,
                    tooltip="A vision-language model, as for core's Generate Text: writes captions of a scene's shots "
                    "at once and checks each statement. None: captions come from captions.json beside the films.",
                ),
                io.String.Input(
                    "films",
                    default="films",
                    tooltip="Folder of videos: its full path, or its name in the input folder. cuts.json, people.json "
                    "and captions.json may lie there too. A folder of encoded scenes is opened as it is.",
                ),
                io.String.Input("name", default="my-films", tooltip="The dataset's folder in output/longreel-scenes."),
                *node_inputs(PAPER, "width", "height", "fps", "cuts", "longest", "shortest", "threshold", "window"),
                *node_inputs(PAPER, "most_people", "floor", "keyframes"),
                io.Combo.Input(
                    "again",
                    options=[_NOTHING, *STAGES],
                    default=_NOTHING,
                    advanced=True,
                    tooltip="A stage to run anew, though nothing it depends on has changed.",
                ),
            ],
            outputs=[
                WeaverDatasetSocket.Output(display_name="dataset"),
                io.Image.Output(display_name="contact sheet", tooltip="Shots that are learned from, with captions."),
                io.String.Output(display_name="report", tooltip="What was found, what was left out and why."),
            ],
        )

    @override
    @classmethod
    def fingerprint_inputs(cls, films: str | None, **_: Any) -> Any:
        """The films and lists, and when they changed. A folder that is not known yet is another node's."""
        if films is None or not (folder := _folder(films)).is_dir():
            return []
        return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())

    @override
    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        keyframe_clip: Embedder,
        films: str,
        name: str,
        again: str,
        writer: CLIP | None = None,
        **chosen: Any,
    ) -> io.NodeOutput:
        source = _folder(films)
        folder = project_folder(Path(folder_paths.get_output_directory()) / "longreel-scenes", name)
        if not source.is_dir():
            raise SceneDataError(f"There is no folder {source}: write the full path of a folder with films.")
        sheet, progress = folder / "contact_sheet.png", Progress(1)
        made_folder(folder)
        if any(source.glob("*.safetensors")):
            scenes = load_scenes(source)
            draw_keyframes(scenes, vae, model.model.latent_format, sheet)
            data, report = source, f"{len(scenes)} encoded scenes in {source}, taken as they are."
        else:
            settings = from_widgets(PAPER, chosen)
            models = SceneModels(keyframe_clip, clip, vae, model.model.latent_format, writer)
            stages = () if again == _NOTHING else (again,)

            def say(line: str) -> None:
                progress.reach(0, line)

            found = SceneBuilder(source, folder, settings, models, again=stages, say=say).build()
            draw_scenes(found, sheet)
            data, report = folder / "encoded", "\n".join(found.lines)
        progress.finish(report.splitlines()[-1])
        shown = picture(sheet)
        return io.NodeOutput(data, shown, report, ui={**ui.PreviewImage(shown, cls=cls).as_dict(), "text": (report,)})


def _folder(films: str) -> Path:
    return Path(folder_paths.get_input_directory()) / films
