"""Everything lies in ComfyUI's folders, wherever the user has moved them, and nothing leads out of them."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import folder_paths
import pytest
from longreel.film.reel.atomic import part_of
from longreel.host.files import paths


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("output", "input", "temp"):
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
        (tmp_path / name).mkdir()
    registered = copy.deepcopy(folder_paths.folder_names_and_paths)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", registered)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def test_stock_loaders_list_the_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MINIATURE_WEIGHTS", tmp_path / "weights")
    name = "longreel-miniature-test.safetensors"
    for kind in ("diffusion_models", "vae", "text_encoders"):
        (tmp_path / "weights" / kind).mkdir(parents=True)
        (tmp_path / "weights" / kind / f"{kind}-{name}").touch()
    before = {kind: folder_paths.get_folder_paths(kind) for kind in ("diffusion_models", "vae", "text_encoders")}
    paths.register_model_folders()
    paths.register_model_folders()
    for kind, folders in before.items():
        assert [x for x in folder_paths.get_filename_list(kind) if x.endswith(name)] == [f"{kind}-{name}"]
        assert folder_paths.get_folder_paths(kind) == [*folders, str(tmp_path / "weights" / kind)]


def test_project_folder(tmp_path: Path) -> None:
    assert paths.project_folder("my film") == tmp_path / "output" / "longreel" / "my film"
    for name in ("../x", "/etc", "a/../../b", "a\0b"):
        assert paths.project_folder(name).parent == tmp_path / "output" / "longreel"
    for name in ("", " ", ".", ".."):
        with pytest.raises(ValueError, match="cannot name a project"):
            paths.project_folder(name)


def test_spill_folder(tmp_path: Path) -> None:
    assert paths.spill_folder() == tmp_path / "temp" / "longreel"
    assert paths.spill_folder().is_dir()


def test_input_file(tmp_path: Path) -> None:
    (tmp_path / "input" / "cat.png").touch()
    (tmp_path / "output" / "cat.png").touch()
    assert paths.input_file("cat.png") == tmp_path / "input" / "cat.png"
    assert paths.input_file("cat.png [output]") == tmp_path / "output" / "cat.png"
    with pytest.raises(ValueError, match=r"no file 'dog\.png'"):
        paths.input_file("dog.png")
    with pytest.raises(ValueError, match="There is no file"):
        paths.input_file("../output/cat.png")


def test_output_file(tmp_path: Path) -> None:
    first = paths.output_file("films/long-%width%x%height%", ".mp4", 64, 48)
    assert first.filename == "long-64x48_00001_.mp4"
    assert first.subfolder == "films"
    assert first.path == tmp_path / "output" / "films" / first.filename
    first.path.touch()
    assert paths.output_file("films/long-64x48", ".webm", 64, 48).filename == "long-64x48_00002_.webm"
    with pytest.raises(ValueError, match="leads out"):
        paths.output_file("../film", ".mp4", 64, 48)


def test_a_number_that_another_server_took_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    ours, theirs = (paths.output_file("films/x", ".mp4", 64, 48) for _ in range(2))
    assert ours.path == theirs.path
    for who, target in (("theirs", theirs), ("ours", ours)):
        part = part_of(target.path, unique=True)
        part.write_text(who)
        target.place(part)
    assert (theirs.filename, ours.filename) == ("x_00001_.mp4", "x_00002_.mp4")
    assert (theirs.path.read_text(), ours.path.read_text()) == ("theirs", "ours")
    assert len(list((tmp_path / "output" / "films").iterdir())) == 2


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("./", "is empty"),
        ("a\nb", "no file name can have"),
        ("a\0", "no file name can have"),
        ("\ud800", "no file name can have"),
        ("../film", "leads out"),
        ("/etc/film", "leads out"),
        ("link/film", "leads out"),
        ("x" * 250, "too long"),
        ("\u00e4" * 120, "too long"),
        ("/".join(["x" * 200] * 30), "too long"),
        ("file/film", "file is a file"),
    ],
)
def test_prefixes_that_cannot_be_are_known_before(tmp_path: Path, prefix: str, message: str) -> None:
    (tmp_path / "output" / "file").touch()
    (tmp_path / "output" / "link").symlink_to(tmp_path / "input")
    assert message in paths.prefix_fault(prefix)
    with pytest.raises(ValueError, match=message):
        paths.output_file(prefix, ".mp4", 64, 48)


def test_prefixes_that_can_be(tmp_path: Path) -> None:
    for prefix in (None, "film", "a/b/c", "x" * 200, "%date:yyyy-MM-dd%/film", "50%", "video/"):
        assert paths.prefix_fault(prefix) == ""
    assert list((tmp_path / "output").iterdir()) == []


def test_dates_are_filled_in_as_the_editor_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.struct_time((2026, 3, 7, 5, 4, 9, 0, 66, 0))
    monkeypatch.setattr(paths.time, "localtime", lambda: now)
    filled = paths.output_file("%date:yyyy-MM-dd%/%date:yy.M.d hhmmss%-%width%", ".mp4", 64, 48)
    assert (filled.subfolder, filled.filename) == ("2026-03-07", "26.3.7 050409-64_00001_.mp4")


def test_names_of_projects_fit_every_disk() -> None:
    for name in ("\U00020000" * 80, "a" * 300, "\u00e9" * 200):
        assert len(paths.project_folder(name).name.encode()) <= 255
    assert paths.project_folder("\U00020000" * 80) != paths.project_folder("\U00020000" * 79)
    for device in ("COM\u00b9", "lpt\u00b3", "nul", "com1"):
        assert paths.project_folder(device).name != device


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be made \(Not a directory\)"):
        paths.spill_folder()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "x/" * 3000, "../a", "a [temp", ""])
def test_names_that_no_file_can_have_are_one_sentence(name: str):
    with pytest.raises(ValueError, match=r"^There is no file ") as raised:
        paths.input_file(name)
    assert str(raised.value).endswith("correct the name.")
    assert len(str(raised.value)) < 400
