"""What a project holds beside its takes: a video of each shot, found again; and the project in one file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from .film_prompts import SHOTS, node, story
from .harness import Server

PROJECTS = ("with clips", "with clips elsewhere")


@pytest.fixture
def output(studio: Server) -> Iterator[Path]:
    """The output folder, which is afterwards as it was."""
    output: Path = studio.base / "output"
    before = set(output.rglob("*"))
    yield output
    for name in PROJECTS:
        shutil.rmtree(output / "longreel" / name, ignore_errors=True)
    for path in set(output.rglob("*")) - before:
        if path.is_file():
            path.unlink()


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_film_is_joined_of_clips_and_travels_with_its_project(studio: Server, output: Path):
    here, elsewhere = PROJECTS
    film = studio.queue(story(here, *SHOTS))
    assert film.succeeded, film.error
    (whole,) = film.files()
    folder = output / "longreel" / here
    clips = {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()}
    numbered = [folder / f"{number:03}.mp4" for number in (1, 2, 3)]
    assert frames(studio.path_of(whole)) == sum(map(frames, numbered)) == 29
    assert all(path.with_suffix(".jpg").exists() for path in numbered)
    # Under another name it is written again, of the same clips and with the same picture.
    again = story(here, *SHOTS)
    again["video"]["inputs"]["filename_prefix"] = "film again"
    packed = again | {
        "pack": node("LongreelPackProject", project=here, filename_prefix="projects/film"),
        "open": node("LongreelOpenProject", file=["pack", 0], project=elsewhere),
    }
    outcome = studio.queue(packed)
    assert outcome.succeeded, outcome.error
    assert {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()} == clips
    (second,) = outcome.files()
    assert studio.path_of(second).stat().st_size == pytest.approx(studio.path_of(whole).stat().st_size, rel=0.1)
    # Elsewhere nothing is filmed.
    moved = studio.queue(story(elsewhere, *SHOTS))
    assert moved.succeeded, moved.error
    told = moved.outputs["film"]["text"][0].splitlines()
    assert [line.split(" (take")[0] for line in told[:3]] == [f"shot {i} reused: nothing changed" for i in (1, 2, 3)]
    assert {path.name for path in (output / "longreel" / elsewhere / "clips").iterdir()} == {
        path.name for path in clips
    }
    assert outcome.outputs["open"]["text"][0].startswith(f"{elsewhere}: {3 + len(clips)} files, ")
    # A change of the last shot leaves the clips of the others.
    changed = studio.queue(story(here, *SHOTS[:2], SHOTS[2].replace("walks", "spins")))
    assert changed.succeeded, changed.error
    assert {path: path.stat().st_mtime_ns for path in clips} == clips
    assert len(list((folder / "clips").glob("*.mp4"))) == 4
