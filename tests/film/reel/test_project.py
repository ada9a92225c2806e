"""The project store: what is reused and why, kills, half-written files, names."""

from __future__ import annotations

import gc
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.reel import reel, tensor_file
from longreel.film.reel.choice import Decision, PlannedShot, fingerprint_story
from longreel.film.reel.fingerprint import canonical_json, shot_fingerprint
from longreel.film.reel.project import ProjectStore, project_folder
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, save_reel
from longreel.film.storyboard.text import Shot, TimedPrompt

SETTINGS: dict[str, Any] = {"model": "model-a", "memory": {"window": 9, "sink": 3}, "width": 32}


def shot(text: str, **options: Any) -> Shot:
    return Shot((TimedPrompt(0, text),), **options)


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "projects" / "a film")


def make(plan: PlannedShot, folder: Path) -> FilmedShot:
    generator = torch.Generator().manual_seed(plan.shot.seed)
    return FilmedShot.store(
        plan.shot,
        torch.randn(1, 4, 3, 2, 4, generator=generator),
        previous=plan.previous,
        settings=plan.settings,
        take_start=True,
        frames=9,
        tensors={"memory": {"k": torch.ones(8)}},
        folder=folder,
    )


def film_all(store: ProjectStore, planned: tuple[PlannedShot, ...], folder: Path) -> list[str]:
    """What a queue does: reuse what is there, film the rest; returns the prompts that were filmed."""
    filmed = []
    for plan in planned:
        if store.find(plan.fingerprint) is None:
            store.add(make(plan, folder))
            filmed.append(plan.shot.prompts[0].text)
    return filmed


def reasons(decisions: list[Decision]) -> list[str]:
    assert [decision.shot for decision in decisions] == list(range(len(decisions)))
    assert all((decision.action == "reused") == (decision.reason == "nothing changed") for decision in decisions)
    return [decision.reason for decision in decisions]


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints


def test_a_fingerprint_covers_the_past_the_shot_and_the_settings() -> None:
    base = shot_fingerprint("", shot("a"), SETTINGS)
    assert base == shot_fingerprint("", shot("a"), {**SETTINGS, "width": 32.0})
    assert base == shot_fingerprint("", shot("a"), dict(reversed(SETTINGS.items())))
    others = [
        shot_fingerprint("0", shot("a"), SETTINGS),
        shot_fingerprint("", shot("b"), SETTINGS),
        shot_fingerprint("", shot("a", seconds=5.5), SETTINGS),
        shot_fingerprint("", shot("a", seed=1), SETTINGS),
        shot_fingerprint("", shot("a", start="continue"), SETTINGS),
        shot_fingerprint("", shot("a", references=("x.png",)), SETTINGS),
        shot_fingerprint("", shot("a"), {**SETTINGS, "memory": {"window": 9, "sink": 0}}),
    ]
    assert len({base, *others}) == 8


def test_a_fingerprint_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A change here films every project of every user again.
    assert shot_fingerprint(
        "", shot("A caf\u00e9.", seconds=2.5, seed=2**64 - 1), {"shift": 5.0, "on": True, "x": None}
    ) == ("c512d5f5d2358cf5430a46bc9a70dcb0607d0ba45df25f481678a1c8d974f8d2")


def test_canonical_json() -> None:
    assert (
        canonical_json({"b": (1.0, 0.5), "a": {"y": None, "x": "\u00e9"}})
        == '{"a":{"x":"\\u00e9","y":null},"b":[1,0.5]}'
    )
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
    with pytest.raises(TypeError):
        canonical_json(torch.zeros(1))


# ---------------------------------------------------------------------------------------------------------------------
# Adding and finding


def test_a_shot_of_the_project_outlives_the_reel_it_was_filmed_for(store: ProjectStore, tmp_path: Path) -> None:
    (plan,) = fingerprint_story([shot("a", seed=4)], SETTINGS)
    assert store.find(plan.fingerprint) is None
    filmed = make(plan, tmp_path)
    latents = filmed.latents().clone()
    kept = store.add(filmed)
    assert kept.file.path.parent == store.folder
    assert os.stat(kept.file.path).st_ino == os.stat(filmed.file.path).st_ino, "on one disk nothing is copied"
    del filmed
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["projects"]
    found = ProjectStore(store.folder).find(plan.fingerprint)
    assert found is not None
    assert torch.equal(found.latents(), latents)
    assert found.fingerprint == plan.fingerprint
    assert store.add(kept).file.path == kept.file.path


def test_without_links_a_shot_is_copied(store: ProjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(tensor_file.os, "link", no_links)
    (plan,) = fingerprint_story([shot("a")], SETTINGS)
    filmed = make(plan, tmp_path)
    kept = store.add(filmed)
    assert os.stat(kept.file.path).st_ino != os.stat(filmed.file.path).st_ino
    assert torch.equal(kept.latents(), filmed.latents())
    assert len(list(store.folder.iterdir())) == 1


def test_a_shot_out_of_a_saved_reel_or_with_new_metadata_is_written_anew(
    store: ProjectStore, layout: ReelLayout, tmp_path: Path
) -> None:
    one, two = (make(plan, tmp_path) for plan in fingerprint_story([shot("a"), shot("b")], SETTINGS))
    save_reel(Reel.empty(layout).append(one), tmp_path / "film")
    kept = store.add(load_reel(tmp_path / "film").shots[0])
    assert torch.equal(kept.latents(), one.latents())
    assert kept.file.names == one.file.names
    assert store.add(replace(two, meta={"keyframes": {"pinned": [3]}})).meta == {"keyframes": {"pinned": [3]}}


def test_a_damaged_shot_is_filmed_again_and_the_ones_after_it_are_reused(store: ProjectStore, tmp_path: Path) -> None:
    planned = fingerprint_story([shot("a"), shot("b"), shot("c"), shot("d")], SETTINGS)
    film_all(store, planned[:3], tmp_path)
    kept = store.find(planned[1].fingerprint)
    assert kept is not None
    content = kept.file.path.read_bytes()
    kept.file.path.write_bytes(content[:-1])
    assert store.find(planned[1].fingerprint) is None
    assert reasons(store.explain(planned)) == [
        "nothing changed",
        "its file is damaged",
        "nothing changed",
        "not filmed before",
    ]
    assert film_all(store, planned, tmp_path) == ["b", "d"]
    assert kept.file.path.read_bytes()[-100:] == content[-100:]


def test_a_file_under_another_shots_name_is_not_taken_for_it(store: ProjectStore, tmp_path: Path) -> None:
    first, second = fingerprint_story([shot("a"), shot("b")], SETTINGS)
    kept = store.add(make(first, tmp_path))
    kept.file.path.rename(kept.file.path.with_name(f"shot-{second.fingerprint[:32]}.safetensors"))
    assert store.find(second.fingerprint) is None


def test_half_written_files_are_passed_over_and_cleared(store: ProjectStore, tmp_path: Path) -> None:
    planned = fingerprint_story([shot("a")], SETTINGS)
    film_all(store, planned, tmp_path)
    whole = next(store.folder.iterdir())
    old, young = store.folder / "shot-1.safetensors.1a.part", store.folder / "shot-2.safetensors.2b.part"
    for part in (old, young):
        part.write_bytes(whole.read_bytes()[:500])
    os.utime(old, (0, 0))
    assert len(store.shots()) == 1
    reopened = ProjectStore(store.folder)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([whole.name, young.name])
    assert film_all(reopened, planned, tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process to kill is forked")
@pytest.mark.parametrize("moment", ["between shots", "while writing"])
def test_a_killed_process_loses_only_the_shot_it_was_in(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = fingerprint_story([shot(text) for text in "abc"], SETTINGS)
    # Without links a shot is written into the project byte by byte.
    monkeypatch.setattr(reel, "link_file", lambda source, path, place: False)
    child = os.fork()
    if child == 0:
        try:
            store = ProjectStore(tmp_path / "film")
            film_all(store, planned[:2], tmp_path)
            if moment == "while writing":
                last = make(planned[2], tmp_path)
                write = tensor_file._write

                def die(file: BinaryIO, source: Any) -> None:
                    write(file, source)
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

                tensor_file._write = die
                store.add(last)
        finally:
            # Also after an error: the child must never go on with the other tests.
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    parts = list((tmp_path / "film").glob("*.part"))
    assert len(parts) == (moment == "while writing")
    for part in parts:
        os.utime(part, (0, 0))
    store = ProjectStore(tmp_path / "film")
    assert reasons(store.explain(planned)) == ["nothing changed", "nothing changed", "not filmed before"]
    assert len(list(store.folder.iterdir())) == 2
    assert film_all(store, planned, tmp_path) == ["c"]


def test_a_project_that_cannot_be_written_says_so_and_keeps_the_shot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReelError, match="cannot be made"):
        ProjectStore(tmp_path / "file" / "film")
    store = ProjectStore(tmp_path / "film")
    (plan,) = fingerprint_story([shot("a")], SETTINGS)
    filmed = make(plan, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file.os, "fsync", full)
    with pytest.raises(ReelError, match="No space left"):
        store.add(filmed)
    assert list(store.folder.iterdir()) == []
    assert filmed.latents().shape == (1, 4, 3, 2, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Reasons


def test_the_first_queue_films_everything_and_the_second_nothing(store: ProjectStore, tmp_path: Path) -> None:
    planned = fingerprint_story([shot("a"), shot("b"), shot("c")], SETTINGS)
    assert reasons(store.explain(planned)) == ["not filmed before"] * 3
    assert film_all(store, planned, tmp_path) == ["a", "b", "c"]
    assert reasons(store.explain(planned)) == ["nothing changed"] * 3
    assert film_all(store, planned, tmp_path) == []


@pytest.mark.parametrize(
    ("edited", "settings_", "expected"),
    [
        (["a", shot("x"), "c"], SETTINGS, ["nothing changed", "prompt changed", "an earlier shot changed"]),
        (["a", shot("b", seconds=3), "c"], SETTINGS, ["nothing changed", "seconds changed", "an earlier shot changed"]),
        (["a", shot("b", seed=3), shot("y")], SETTINGS, ["nothing changed", "seed changed", "an earlier shot changed"]),
        (
            ["a", shot("b", start="continue"), "c"],
            SETTINGS,
            ["nothing changed", "start changed", "an earlier shot changed"],
        ),
        (
            ["a", "b", shot("c", references=("r",))],
            SETTINGS,
            ["nothing changed", "nothing changed", "references changed"],
        ),
        (["a", "b", "c", "d"], SETTINGS, ["nothing changed"] * 3 + ["not filmed before"]),
        (["a", "n", "b", "c"], SETTINGS, ["nothing changed", "not filmed before"] + ["an earlier shot changed"] * 2),
        (["a", "c"], SETTINGS, ["nothing changed", "an earlier shot changed"]),
        (["a"], {**SETTINGS, "model": "model-b"}, ["model changed"]),
        (
            ["a", "b"],
            {**SETTINGS, "memory": {"window": 9, "sink": 1}},
            ["memory.sink changed", "an earlier shot changed"],
        ),
        (["a"], {**SETTINGS, "lora": 1}, ["lora changed"]),
    ],
)
def test_reasons_name_the_first_difference(
    store: ProjectStore, tmp_path: Path, edited: list[Any], settings_: dict[str, Any], expected: list[str]
) -> None:
    film_all(store, fingerprint_story([shot("a"), shot("b"), shot("c")], SETTINGS), tmp_path)
    shots = [shot(item) if isinstance(item, str) else item for item in edited]
    planned = fingerprint_story(shots, settings_)
    assert reasons(store.explain(planned)) == expected
    film_all(store, planned, tmp_path)
    assert reasons(store.explain(planned)) == ["nothing changed"] * len(planned)


def test_undoing_an_edit_uses_the_old_shots(store: ProjectStore, tmp_path: Path) -> None:
    before = fingerprint_story([shot("a"), shot("b"), shot("c")], SETTINGS)
    after = fingerprint_story([shot("a"), shot("x"), shot("c")], SETTINGS)
    film_all(store, before, tmp_path)
    assert film_all(store, after, tmp_path) == ["x", "c"]
    assert film_all(store, before, tmp_path) == []


def test_a_story_that_continues_a_reel_depends_on_it(store: ProjectStore, tmp_path: Path) -> None:
    assert film_all(store, fingerprint_story([shot("a")], SETTINGS, previous="1" * 64), tmp_path) == ["a"]
    assert film_all(store, fingerprint_story([shot("a")], SETTINGS, previous="2" * 64), tmp_path) == ["a"]


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("name", ["film", "My film 2", "\u7535\u5f71", "caf\u00e9", "a-b_c"])
def test_ordinary_names_stay(tmp_path: Path, name: str) -> None:
    assert project_folder(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["", " ", "..", "../..", "/", "___", "\ud800"])
def test_names_without_letters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReelError, match="cannot name a project"):
        project_folder(tmp_path, name)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=120)
    | st.sampled_from(["../x", "/etc/x", "C:\\x", "a/../../b", "con", "NUL.txt", "x" * 300, "x. ", "a\0b"])
)
def test_any_name_is_a_plain_folder_inside_the_root_or_refused(name: str) -> None:
    root = Path("/projects")
    try:
        folder = project_folder(root, name)
    except ReelError:
        return
    assert folder.parent == root
    assert folder.name not in (".", "..")
    assert len(folder.name) <= 90
    assert not set(folder.name) & set('/\\:*?"<>|\0\n')
    assert folder.name == folder.name.strip(" .")
    assert folder.name.lower() not in ("con", "nul", "prn", "aux")


def test_different_names_have_different_folders(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a:b", "x" * 90, "x" * 91, "../a_b"]
    assert len({project_folder(tmp_path, name) for name in names}) == len(names)
    assert project_folder(tmp_path, "cafe\u0301") == project_folder(tmp_path, "caf\u00e9")
