"""Every file operation of a film, a reel and a video fails once: success or a sentence, and the next try is right.

The usual suite fails each operation with one error; `pytest -m campaign tests/campaigns` with each of several.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from longreel.film.reel.choice import fingerprint_story
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, save_reel
from longreel.film.storyboard.shot import Shot, TimedPrompt
from longreel.host.files.video import VideoFileError, VideoWriter

from .faults import ERRORS, Disk

LAYOUT = ReelLayout(16.0, 32, 16, 4, 8, 4, "model", "vae", {"causal": {"layers": 1}})
SETTINGS = {"model": "m", "width": 32}
MOST = 200
"""More operations than any of these has."""


@dataclass(frozen=True)
class Task:
    """What is done on the disk. run: does it in a folder. whole: checks what is there then, and returns it as a value
    that is the same for every good run. refusals: how it may fail.
    """

    run: Callable[[Path], None]
    whole: Callable[[Path], Any]
    refusals: tuple[type[Exception], ...]


def filmed(folder: Path) -> FilmedShot:
    (plan,) = fingerprint_story([Shot((TimedPrompt(0, "A red ball."),), seed=4)], SETTINGS)
    return FilmedShot.store(
        plan.shot,
        torch.randn(1, 4, 3, 2, 4, generator=torch.Generator().manual_seed(4)),
        previous=plan.previous,
        settings=plan.settings,
        take_start=True,
        frames=9,
        tensors={"memory": {"k": torch.ones(8)}},
        folder=folder,
    )


def film(folder: Path) -> None:
    """A shot into its temporary file, and from there into a project."""
    ProjectStore(folder / "projects" / "film").add(filmed(folder / "temp"))


def film_whole(folder: Path) -> list[float]:
    store = ProjectStore(folder / "projects" / "film")
    found = store.find(filmed(folder).fingerprint)
    assert found is not None
    assert len(list(store.folder.iterdir())) == 1, "nothing half-written stays"
    latents: list[float] = found.latents().flatten().tolist()
    return latents


def reel(folder: Path) -> None:
    """A reel into a file, and again over it."""
    made = Reel.empty(LAYOUT).append(filmed(folder / "temp"))
    for _ in range(2):
        save_reel(made, folder / "film.reel.safetensors")


def reel_whole(folder: Path) -> list[float]:
    assert not list(folder.glob("*.part"))
    latents: list[float] = load_reel(folder / "film.reel.safetensors").latents(0).flatten().tolist()
    return latents


def video(folder: Path) -> None:
    """A video of three frames."""
    with VideoWriter(folder / "video" / "film.mp4", 32, 16, 16.0) as writer:
        writer.write(torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 16, 32, 3))


def video_whole(folder: Path) -> int:
    import av

    assert not list((folder / "video").glob("*.part"))
    with av.open(str(folder / "video" / "film.mp4")) as opened:
        return sum(1 for _ in opened.decode(video=0))


TASKS = {
    "film": Task(film, film_whole, (ReelError,)),
    "reel": Task(reel, reel_whole, (ReelError,)),
    "video": Task(video, video_whole, (VideoFileError,)),
}


def faulted(task: Task, folder: Path, at: int, code: int) -> str:
    """One run with a fault, and what it said; then one without."""
    (folder / "temp").mkdir(parents=True)
    disk, said = Disk(folder, at, code), ""
    with disk.in_use():
        try:
            task.run(folder)
        except task.refusals as error:
            said = str(error)
            assert said.endswith("."), said
            assert "\n" not in said
    task.run(folder)
    return said


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "codes", [ERRORS[:1], pytest.param(ERRORS, marks=pytest.mark.campaign)], ids=["short", "campaign"]
)
def test_every_operation_fails_once(tmp_path: Path, name: str, codes: tuple[int, ...]):
    task, good = TASKS[name], tmp_path / "good"
    (good / "temp").mkdir(parents=True)
    disk = Disk(good)
    with disk.in_use():
        task.run(good)
    expected, operations = task.whole(good), disk.operations
    assert 2 <= len(operations) <= MOST
    for code in codes:
        for at in range(1, len(operations) + 1):
            folder = tmp_path / f"{code}-{at}"
            said = faulted(task, folder, at, code)
            assert task.whole(folder) == expected, f"{operations[at - 1]}, {errno.errorcode[code]}: {said}"
