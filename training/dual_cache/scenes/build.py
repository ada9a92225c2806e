"""A folder of films to scenes that FilmWeaver learns from, in six stages, each kept and each able to be made again.

    cuts      where shots begin and end                       a film
    scenes    which neighbouring shots belong together        a film
    filter    what is too short or too crowded                a film
    captions  what is said of all shots of a scene at once    a scene
    checks    whether it is true of each shot                 a scene
    encoded   tensors, in encoded/<scene>.safetensors         a scene

Beside the films may lie `cuts.json` (seconds), `people.json` (how many are seen in each shot) and `captions.json` (of
each shot, or as a model gives them; see scene_captions.py), each an object by the films' file names.

Source: FilmWeaver's data pipeline, docs/methods/filmweaver.md, training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ....film.pixels import to_pil
from ...core.contact_sheet import Row, draw_sheet
from ...core.settings import setting
from ...core.stages import StageCache
from .captions import check_caption, expand_captions, write_captions
from .encode import SceneModels, embed_middles, encode_scene, look, sheet_of
from .films import BadFilmError, CutMethod, SceneDataError, Shot, choose_method, find_shots, list_films, read_list
from .groups import filter_scenes, group_shots

STAGES = ("cuts", "scenes", "filter", "captions", "checks", "encoded")
_SHEET_ROWS = 40


@dataclass(frozen=True)
class SceneSettings:
    """How films become scenes.

    width, height: of the encoded takes, multiples of 16. fps: that the model films at. cuts: who finds them. window,
    threshold: see `group_shots`. shortest, longest: seconds of a shot; a longer one is cut off. most_people: of a
    scene. floor: least cosine of caption and pictures. keyframes: candidates a shot.
    """

    width: int = setting(
        832, help="of the takes", low=16, high=4096, step=16,
        tooltip="Of the encoded takes, in pixels. More: more detail is learned, training costs more. 64 for the "
        "miniature.",
    )  # fmt: skip
    height: int = setting(480, help="of the takes", low=16, high=4096, step=16, tooltip="See width.")
    fps: float = setting(
        16.0, help="that the video model films at", low=1.0, high=60.0,
        tooltip="Frames a second that the model films: 16 for Wan 2.1, 24 for TI2V-5B. More: less motion between two "
        "frames.",
    )  # fmt: skip
    cuts: CutMethod = setting(
        "auto", help="who finds the cuts", choices=get_args(CutMethod),
        tooltip="Who finds the cuts. list: cuts.json. none: every file is one shot. frames: our own measure, hard cuts "
        "only. auto: the list, else PySceneDetect or TransNetV2 if installed, else frames.",
    )  # fmt: skip
    window: int = setting(
        3, help="newest shots of a scene to be like", low=1, high=20, advanced=True,
        tooltip="Of a scene, so many newest shots are compared. More: scenes survive a cutaway, and drift further.",
    )  # fmt: skip
    threshold: float = setting(
        0.75, help="least likeness; more: more scenes", low=-1.0, high=1.0, step=0.01, advanced=True,
        tooltip="Likeness by which a shot joins the scene before it. More: shorter, purer scenes. Less: longer ones, "
        "in which strangers meet.",
    )  # fmt: skip
    shortest: float = setting(
        1.0, help="seconds of a shot", low=0.0, high=60.0, advanced=True,
        tooltip="Shots below so many seconds are left out. More: fewer scraps, and less to learn from.",
    )  # fmt: skip
    longest: float = setting(
        10.0, help="seconds taken of a shot", low=1.0, high=120.0,
        tooltip="Seconds taken of a shot. More: longer motion is seen, encoding takes longer.",
    )  # fmt: skip
    most_people: int = setting(
        3, help="in a scene, where counted", low=0, high=100, advanced=True,
        tooltip="Scenes with more people are left out, where people.json counts them. More: crowds too.",
    )  # fmt: skip
    floor: float = setting(
        0.15, help="least likeness of caption and pictures", low=-1.0, high=1.0, step=0.01, advanced=True,
        tooltip="Likeness of caption and pictures below which a shot is left out. More: only what is told well is "
        "learned. Less: mistakes are learned too.",
    )  # fmt: skip
    keyframes: int = setting(
        3, help="candidates taken of each shot", low=1, high=8, advanced=True,
        tooltip="Candidates taken of each shot. More: more variety, larger files.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.width % 16 or self.height % 16:
            raise SceneDataError(f"{self.width} x {self.height} does not fit Wan's latents: take multiples of 16.")


PAPER, MINIATURE = SceneSettings(), SceneSettings(width=64, height=64)


@dataclass(frozen=True)
class LearnedShot:
    """A shot that is learned from, where it is, and its caption."""

    name: str
    path: Path
    shot: Shot
    caption: str


@dataclass(frozen=True)
class SceneReport:
    """The report. scenes: names of the encoded ones. learned: their shots. lines: sentences for the user."""

    scenes: tuple[str, ...]
    learned: tuple[LearnedShot, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Film:
    path: Path
    mark: Any
    shots: list[Shot]
    scenes: list[list[int]]


class SceneBuilder:
    """One dataset. `folder` holds all results; again: stages to be made anew; `say` gets a line for each."""

    def __init__(
        self,
        films: Path,
        folder: Path,
        settings: SceneSettings,
        models: SceneModels,
        *,
        again: Collection[str] = (),
        say: Callable[[str], None] = print,
    ):
        if unknown := set(again) - set(STAGES):
            raise SceneDataError(f"There is no stage {min(unknown)}: the stages are {', '.join(STAGES)}.")
        self.films, self.folder, self.settings, self.models, self.say = films, folder, settings, models, say
        self.stages = StageCache(folder, again)
        self.lists = {name: read_list(films / f"{name}.json") for name in ("cuts", "people", "captions")}
        self.lines: list[str] = []
        self.learned: list[LearnedShot] = []

    def build(self, until: str = "encoded") -> SceneReport:
        """Run the stages up to `until`; what is kept is not made again. Killed at any moment, it goes on.

        A film that cannot be read is left out and named. Raises SceneDataError: lists or settings that do not fit, or
        nothing is left to learn from.
        """
        last = STAGES.index(until)
        found: list[_Film] = []
        for path in list_films(self.films):
            with self._left_out_if_bad(path):
                found.append(self._film(path, last))
        if not found:
            raise SceneDataError("Nothing is left to learn from: " + " ".join(self.lines))
        for stage in STAGES[:3]:
            self.stages.keep(stage, {film.path.stem for film in found})
        self.lines.append(f"{len(found)} films, {sum(len(film.shots) for film in found)} shots, "
                          f"{sum(len(film.scenes) for film in found)} scenes after the filter.")  # fmt: skip
        if last < STAGES.index("captions"):
            return SceneReport((), (), tuple(self.lines))
        self.lines.append(self._how())
        scenes = [(film, shots) for film in found for shots in film.scenes]
        names = {_name(film, shots) for film, shots in scenes}
        for stage in STAGES[3:5]:
            self.stages.keep(stage, names)
        made: list[str] = []
        for film, shots in scenes:
            with self._left_out_if_bad(film.path):
                made += filter(None, [self._scene(film, shots, last)])
        if last < STAGES.index("encoded"):
            return SceneReport((), (), tuple(self.lines))
        # What is no longer wanted would be learned from all the same.
        self.stages.keep("encoded", made)
        for path in (self.folder / "encoded").glob("*.safetensors"):
            if path.stem not in made:
                path.unlink()
        if not made:
            raise SceneDataError("Nothing is left to learn from: " + " ".join(self.lines))
        self.lines.append(f"{len(made)} scenes encoded in {self.folder / 'encoded'}.")
        return SceneReport(tuple(made), tuple(self.learned), tuple(self.lines))

    @contextmanager
    def _left_out_if_bad(self, path: Path) -> Iterator[None]:
        """One film that cannot be read does not end a run: it is named."""
        try:
            yield
        except BadFilmError as error:
            self.lines.append(f"{path.name} left out: {error}")
            self.say(self.lines[-1])

    def _film(self, path: Path, last: int) -> _Film:
        told, name = self.settings, path.name
        stat = path.stat()
        mark = [name, stat.st_size, stat.st_mtime_ns]
        listed = self.lists["cuts"].get(name)
        method = choose_method(told.cuts, listed is not None)

        def cuts() -> Any:
            self.say(f"cuts of {name} by {method}")
            return [list(shot) for shot in find_shots(path, method, listed)]

        cut = self.stages.get("cuts", path.stem, [mark, method, listed if method == "list" else None], cuts)
        shots: list[Shot] = [(start, end) for start, end in cut]
        if last < STAGES.index("scenes"):
            return _Film(path, mark, shots, [[number] for number in range(len(shots))])

        def scenes() -> Any:
            self.say(f"scenes of {name}, {len(shots)} shots")
            return group_shots(embed_middles(path, shots, self.models.embedder), told.window, told.threshold)

        by = [mark, cut, self.models.marks["embedder"], told.window, told.threshold]
        grouped = self.stages.get("scenes", path.stem, by, scenes)
        if last < STAGES.index("filter"):
            return _Film(path, mark, shots, grouped)
        people = self._people(name, len(shots))

        def kept() -> Any:
            seconds = [end - start for start, end in shots]
            rest, out = filter_scenes(grouped, seconds, people, shortest=told.shortest, most_people=told.most_people)
            return {"scenes": rest, "left_out": [asdict(one) for one in out]}

        by = [cut, grouped, people, told.shortest, told.most_people]
        filtered = self.stages.get("filter", path.stem, by, kept)
        for one in filtered["left_out"]:
            numbers = ", ".join(str(shot + 1) for shot in one["shots"])
            self.lines.append(f"{name}, shot {numbers} left out: {one['why']}.")
        if people is None:
            self.lines.append(f"{name}: how many people are seen was not checked (people.json does not count them).")
        return _Film(path, mark, shots, filtered["scenes"])

    def _people(self, name: str, shots: int) -> list[int] | None:
        people = self.lists["people"].get(name)
        if people is not None and (
            not isinstance(people, list) or len(people) != shots or not all(isinstance(one, int) for one in people)
        ):
            raise SceneDataError(f"people.json must have {shots} whole numbers for {name}, one for each shot.")
        return people

    def _scene(self, film: _Film, numbers: list[int], last: int) -> str | None:
        name, told, models = _name(film, numbers), self.settings, self.models
        times = [film.shots[number] for number in numbers]
        given = self._given(film, numbers)
        writer = models.asked()
        by = models.marks["writer"]

        def captions() -> Any:
            if given is not None:
                return given
            if writer is None:
                raise SceneDataError(f"{film.path.name} has no captions: write captions.json beside the films, or "
                                     "connect a vision-language model.")  # fmt: skip
            self.say(f"captions of {name}, {len(times)} shots")
            try:
                return write_captions(writer, sheet_of([look(film.path, shot) for shot in times]), len(times))
            except SceneDataError as error:
                return {"failed": str(error)}

        said = self.stages.get("captions", name, [film.mark, times, given, "" if given else by], captions)
        if isinstance(said, dict):
            self.lines.append(f"{name} left out: {said['failed']}.")
            return None
        if last < STAGES.index("checks"):
            return None

        def checks() -> Any:
            self.say(f"check of {name}")
            seen = [look(film.path, shot) for shot in times]
            return [
                asdict(check_caption(writer, sheet_of([frames]), caption, models.likeness(frames), told.floor))
                for frames, caption in zip(seen, said, strict=True)
            ]

        by_check = [film.mark, times, said, by, models.marks["embedder"], told.floor]
        checked = self.stages.get("checks", name, by_check, checks)
        for number, one in zip(numbers, checked, strict=True):
            if not one["kept"]:
                self.lines.append(f"{film.path.name}, shot {number + 1} left out: {one['why']}.")
        if last < STAGES.index("encoded"):
            return None
        good = [(number, one["caption"]) for number, one in zip(numbers, checked, strict=True) if one["kept"]]
        if not good:
            return None
        self._encode(film, name, [(film.shots[number], caption) for number, caption in good])
        self.learned += [
            LearnedShot(f"{film.path.stem}, shot {number + 1}", film.path, film.shots[number], caption)
            for number, caption in good
        ]
        return name

    def _encode(self, film: _Film, name: str, kept: list[tuple[Shot, str]]) -> None:
        told, models = self.settings, self.models
        file = self.folder / "encoded" / f"{name}.safetensors"
        how = {"width": told.width, "height": told.height, "fps": told.fps, "longest": told.longest,
               "keyframes": told.keyframes}  # fmt: skip

        def encoded() -> Any:
            self.say(f"encoding {name}, {len(kept)} shots")
            encode_scene(film.path, kept, models, file, **how)  # type: ignore[arg-type]
            return {"shots": len(kept)}

        marks = [models.marks[key] for key in ("embedder", "clip", "vae")]
        self.stages.get("encoded", name, [film.mark, kept, how, marks], encoded, lambda _: file.exists())

    def _given(self, film: _Film, numbers: list[int]) -> list[str] | None:
        told = self.lists["captions"].get(film.path.name)
        if told is None:
            return None
        try:
            captions = expand_captions(told, len(film.shots))
        except SceneDataError as error:
            raise SceneDataError(f"captions.json does not fit {film.path.name}: {error}.") from error
        return [captions[number] for number in numbers]

    def _how(self) -> str:
        return ("Statements were checked by the vision-language model." if self.models.writer is not None else
                "Statements were not checked, for want of a vision-language model; captions were compared with "
                "pictures by CLIP.")  # fmt: skip


def draw_scenes(report: SceneReport, path: Path) -> None:
    """A contact sheet of the first shots that are learned from, with their captions."""
    draw_sheet(
        [
            Row(one.name, one.caption, [to_pil(frame) for frame in look(one.path, one.shot)])
            for one in report.learned[:_SHEET_ROWS]
        ],
        path,
    )


def _name(film: _Film, shots: list[int]) -> str:
    return f"{film.path.stem}-{shots[0] + 1:04}"
