"""Packed projects: whole round trips, and every damage refused with nothing left behind."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from longreel.film.reel.archive import ArchiveError, open_archive, pack_project, project_files, read_contents

TAKES = [f"shot-{digit * 32}.safetensors" for digit in "ab"]
CLIP = f"clips/{'a' * 32}-{'0' * 16}.mp4"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "longreel" / "film"
    (folder / "clips").mkdir(parents=True)
    for number, name in enumerate((*TAKES, "review.json", CLIP)):
        (folder / name).write_bytes(bytes([number]) * 1000)
        os.utime(folder / name, ns=(10**18 + number, 10**18 + number))
    for name in ("001.mp4", "decision.json", "notes.txt", "shot-x.safetensors", "clips/own.mp4"):
        (folder / name).write_bytes(b"not the project's")
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in project_files(folder)
    }


def test_a_project_is_the_same_elsewhere(project: Path, tmp_path: Path):
    packed = pack_project(project, "film", tmp_path / "film.zip")
    assert sorted(each.name for each in packed) == sorted([*TAKES, "review.json", CLIP])
    assert read_contents(tmp_path / "film.zip") == ("film", packed)
    other = tmp_path / "elsewhere" / "other"
    assert open_archive(tmp_path / "film.zip", other) == packed
    assert contents(other) == contents(project)
    assert {path.name for path in other.rglob("*") if path.is_file()} == {Path(each.name).name for each in packed}
    assert [path.name for path in other.parent.iterdir()] == ["other"]
    # Opening it twice changes nothing; a project with other takes is not touched.
    (other / "review.json").write_text("mine")
    assert open_archive(tmp_path / "film.zip", other) == packed
    assert (other / "review.json").read_text() == "mine"
    (other / TAKES[0]).unlink()
    with pytest.raises(ArchiveError, match="already"):
        open_archive(tmp_path / "film.zip", other)


def test_nothing_to_pack(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no takes"):
        pack_project(tmp_path, "none", tmp_path / "film.zip")


def test_a_stop_leaves_nothing(project: Path, tmp_path: Path):
    pack_project(project, "film", tmp_path / "film.zip")
    root = tmp_path / "elsewhere"
    root.mkdir()
    old = root / ".opening-killed"
    old.mkdir()
    os.utime(old, (time.time() - 10**6,) * 2)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_archive(tmp_path / "film.zip", root / "film", stop)
    assert not list(root.iterdir())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused(project: Path, tmp_path: Path, data: st.DataObject):
    archive = tmp_path / "film.zip"
    pack_project(project, "film", archive)
    whole = archive.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip"]))
    damaged = (
        whole[:position] if kind == "cut" else whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    )
    archive.write_bytes(damaged)
    target = tmp_path / "elsewhere" / "film"
    try:
        open_archive(archive, target)
    except ArchiveError:
        assert not target.exists()
        assert not list(target.parent.glob("*"))
    else:  # a byte that says nothing, such as a date of the zip
        assert {name: data for name, (data, _) in contents(target).items()} == {
            name: data for name, (data, _) in contents(project).items()
        }
        for path in (*target.rglob("*.*"), target / "clips", target):
            path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files[0].update(name="../evil.safetensors"),
        lambda files: files[0].update(name="/etc/passwd"),
        lambda files: files[0].update(bytes=10**15),
        lambda files: files[0].update(sha256="0" * 64),
        lambda files: files.pop(),
        lambda files: files.append(files[0]),
    ],
)
def test_what_an_archive_says_is_not_believed(project: Path, tmp_path: Path, change):
    pack_project(project, "film", tmp_path / "film.zip")
    with zipfile.ZipFile(tmp_path / "film.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stated = json.loads(members["project.json"])
    change(stated["files"])
    members["project.json"] = json.dumps(stated).encode()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "changed.zip", "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        with pytest.raises(ArchiveError, match="pack it again"):
            open_archive(tmp_path / "changed.zip", tmp_path / "elsewhere" / "film")
        assert not list((tmp_path / "elsewhere").glob("*"))
