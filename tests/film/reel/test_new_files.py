"""Two servers with one folder: nobody's file takes another's place, and nobody's part is swept while it is written."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from longreel.film.reel import atomic, project
from longreel.film.reel.atomic import claim, part_of, sweep, whole_file
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, save_reel
from longreel.film.reel.stored_tensors import losses

Film = Callable[..., FilmedShot]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["links", "no links"])
def _disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(atomic.os, "link", no_links)


@pytest.mark.usefixtures("_disk")
def test_a_claim_takes_a_free_name_and_no_other(tmp_path: Path):
    part, path = tmp_path / "a.part", tmp_path / "a"
    part.write_text("new")
    claim(part, path)
    assert names(tmp_path) == ["a"]
    part.write_text("newer")
    with pytest.raises(FileExistsError):
        claim(part, path)
    assert (path.read_text(), part.read_text()) == ("new", "newer")


def _claim_numbers(folder: Path, who: int) -> None:
    for _ in range(20):
        part = part_of(folder / "film", unique=True)
        part.write_text(str(who))
        number = 1
        while True:
            try:
                claim(part, folder / f"film-{number:03}")
                break
            except FileExistsError:
                number += 1


def test_servers_that_number_their_files_at_the_same_time_keep_them_all(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    servers = [context.Process(target=_claim_numbers, args=(tmp_path, who)) for who in range(4)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert names(tmp_path) == [f"film-{number:03}" for number in range(1, 81)]
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert {who: written.count(who) for who in "0123"} == dict.fromkeys("0123", 20)


def test_a_reel_that_another_server_saved_meanwhile_stays(film: Film, layout: ReelLayout, tmp_path: Path):
    path = tmp_path / "reel"
    save_reel(Reel.empty(layout).append(film("theirs")), path)

    def next_number(part: Path) -> None:
        with pytest.raises(FileExistsError):
            claim(part, path)
        claim(part, tmp_path / "reel 2")

    save_reel(Reel.empty(layout).append(film("ours")), path, next_number)
    assert load_reel(path).shots[0].shot.prompts[0].text == "theirs"
    assert load_reel(tmp_path / "reel 2").shots[0].shot.prompts[0].text == "ours"
    assert names(tmp_path) == ["reel", "reel 2", "spill"]


@pytest.mark.parametrize("name", ["x" * 255, "\u5f71" * 85, "a.safetensors"])
def test_a_part_of_the_longest_name_can_be_written(tmp_path: Path, name: str):
    part = part_of(tmp_path / name, unique=True)
    with whole_file(tmp_path / name, unique=True) as other:
        other.write_text("x")
    assert len(os.fsencode(part.name)) <= 255
    assert names(tmp_path) == [name]


# Sweeping


def part_from(folder: Path, host: str | None = None, process: int | None = None, old: bool = False) -> Path:
    part = part_of(folder / "film.mp4", unique=True)
    if host is not None or process is not None:
        own = f".{atomic._HOST}.{os.getpid()}."
        part = part.with_name(part.name.replace(own, f".{host or atomic._HOST}.{process or os.getpid()}."))
    part.write_text("half")
    if old:
        os.utime(part, (0, 0))
    return part


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_what_a_killed_writer_left_goes_at_once_and_a_living_one_s_stays(tmp_path: Path, dead: int):
    gone = part_from(tmp_path, process=dead)
    kept = [part_from(tmp_path), part_from(tmp_path, process=os.getppid()), part_from(tmp_path, host="elsewhere")]
    gone_too = part_from(tmp_path, host="elsewhere", process=dead, old=True)
    strangers = [tmp_path / "download.iso.part", tmp_path / "film.mp4.1234abcd.part"]
    for stranger in strangers:
        stranger.write_text("theirs")
        os.utime(stranger, (0, 0))
    sweep(tmp_path)
    assert not gone.exists()
    assert not gone_too.exists()
    assert all(part.exists() for part in (*kept, *strangers))


def test_a_project_is_swept_when_it_is_opened(tmp_path: Path, dead: int):
    (tmp_path / "film").mkdir()
    part_from(tmp_path / "film", process=dead)
    living = part_from(tmp_path / "film")
    older_version_s = tmp_path / "film" / "shot-1.safetensors.1a2b3c4d.part"
    older_version_s.write_text("half")
    ProjectStore(tmp_path / "film")
    assert names(tmp_path / "film") == sorted([living.name, older_version_s.name])
    os.utime(older_version_s, (0, 0))
    ProjectStore(tmp_path / "film")
    assert names(tmp_path / "film") == [living.name]


def test_sweeping_a_folder_that_is_none_does_nothing(tmp_path: Path):
    sweep(tmp_path / "nowhere")


# Projects


def test_a_project_whose_folder_has_gone_is_made_again(film: Film, tmp_path: Path):
    store = ProjectStore(tmp_path / "projects" / "film")
    store.folder.rmdir()
    store.folder.parent.rmdir()
    kept = store.add(film("a cat", seed=1))
    assert torch.equal(kept.latents(), film("a cat", seed=1).latents())
    assert kept.file.path.parent == store.folder


@pytest.mark.usefixtures("_disk")
def test_a_shot_that_another_server_puts_into_the_project_meanwhile_is_used(
    film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, other = ProjectStore(tmp_path / "film"), ProjectStore(tmp_path / "film")
    theirs: list[FilmedShot] = []
    save = project.save_shot_file

    def slow(*args: object) -> None:
        monkeypatch.setattr(project, "save_shot_file", save)
        theirs.append(other.add(film("a cat", seed=1)))
        save(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(project, "save_shot_file", slow)
    ours = store.add(film("a cat", seed=1))
    assert ours.file.uid == theirs[0].file.uid
    assert torch.equal(theirs[0].latents(), ours.latents())
    assert len(names(store.folder)) == 1


# Files that go while somebody refers to them


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _exchange(path: Path) -> None:
    path.write_bytes(b"something else")


@pytest.mark.parametrize("spoil", [_delete, _cut, _exchange])
def test_a_file_that_goes_is_counted_once(film: Film, tmp_path: Path, spoil: Callable[[Path], None]):
    store = ProjectStore(tmp_path / "film")
    kept, other = store.add(film("a cat", seed=1)), store.add(film("a dog", seed=2))
    assert losses(store.folder) == 0
    spoil(kept.file.path)
    assert losses(store.folder) == 1
    with pytest.raises(ReelError, match=r"(gone|not whole|not a reel)"):
        kept.latents()
    assert losses(store.folder) == 1
    again = store.add(film("a cat", seed=1))
    assert losses(store.folder) == 1, "what was filmed again is whole"
    assert again.latents().shape == other.latents().shape
    assert losses(tmp_path / "another") == 0
