"""Reels as values, their tensors on disk, and Save Reel / Load Reel."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from longreel.film.reel import stored_tensors, tensor_file
from longreel.film.reel.groups import KVMemoryGroup
from longreel.film.reel.reel import (
    FilmedShot,
    Reel,
    ReelError,
    ReelLayout,
    check_layout,
    human_size,
    load_reel,
    load_shot_file,
    save_reel,
)
from longreel.film.reel.reel import save_shot_file as save_shot
from longreel.film.reel.tensor_file import read_header, write_tensor_file
from safetensors.torch import load_file, save_file

Film = Callable[..., FilmedShot]
slow_fixture = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def reel(layout: ReelLayout, film: Film) -> Reel:
    """Two shots, the second continuing the first, with a group that this version knows nothing of."""
    first = Reel.empty(layout).append(film("a cat", seed=1))
    faces = {"keyframes": {"image.0": torch.arange(12, dtype=torch.uint8).reshape(3, 4), "flag": torch.tensor([True])}}
    return first.append(
        film(
            "it sits",
            first.fingerprint,
            3,
            seed=2,
            take_start=False,
            tensors=faces,
            meta={"keyframes": {"who": ["cat"]}},
        )
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_filming_gives_a_new_reel_and_leaves_the_old_one(layout: ReelLayout, film: Film) -> None:
    empty = Reel.empty(layout)
    one = empty.append(film("a cat"))
    two = one.append(film("a dog", one.fingerprint))
    assert (len(empty.shots), len(one.shots), len(two.shots)) == (0, 1, 2)
    assert (empty.last_shot, empty.fingerprint, empty.frames, empty.nbytes) == (None, "", 0, 0)
    assert two.shots[0] is one.shots[0]
    assert two.last_shot is two.shots[1]
    assert two.branch(1).shots == one.shots
    assert two.branch(0).fingerprint == ""
    with pytest.raises(ReelError, match="2 shots"):
        two.branch(3)


def test_tensors_come_back_bit_for_bit_and_only_those_asked_for(reel: Reel) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, keys = torch.randn(1, 4, 6, 2, 4, generator=generator), torch.randn(3, 5, generator=generator).bfloat16()
    assert torch.equal(reel.latents(0), latents)
    assert torch.equal(reel.latents(0, 2, 4), latents[:, :, 2:4])
    group = KVMemoryGroup.of(reel.shots[0])
    assert group is not None
    memory = group.tensors()
    assert memory.keys() == {"k.0", "seen"}
    assert memory["k.0"].dtype == torch.bfloat16
    assert torch.equal(memory["k.0"], keys)
    assert memory["seen"].shape == ()
    assert memory["seen"].item() == 7
    assert group.meta == {"position": 6}
    assert KVMemoryGroup.of(reel.shots[1]) is None
    assert reel.shots[0].file.load(["memory.seen"]).keys() == {"memory.seen"}
    assert set(reel.shots[0].file.names) == {"latents", "memory.k.0", "memory.seen"}


def test_latents_are_kept_in_fp32_and_views_are_written_right(film: Film, tmp_path: Path, layout: ReelLayout) -> None:
    latents = torch.randn(1, 4, 8, 2, 4).bfloat16()[:, :, ::2].requires_grad_()
    window = torch.arange(20.0).reshape(4, 5).T
    filmed = FilmedShot.store(
        film("x").shot,
        latents,
        previous="",
        settings={},
        take_start=True,
        frames=5,
        tensors={"memory": {"window": window, "nothing": torch.empty(0, 3)}},
        folder=tmp_path,
    )
    assert filmed.latent_frames == 4
    assert filmed.latents().dtype == torch.float32
    assert torch.equal(filmed.latents(), latents.detach().float())
    assert torch.equal(filmed.file.group("memory")["window"], window)
    assert filmed.file.group("memory")["nothing"].shape == (0, 3)


def test_a_temporary_file_lives_as_long_as_a_reel_holds_it(layout: ReelLayout, film: Film, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    one = Reel.empty(layout).append(film("a cat"))
    two = one.append(film("a dog", one.fingerprint))
    branch = replace(two, shots=(replace(two.shots[0], meta={"keyframes": {"pinned": [0]}}),))
    assert len(files(spill)) == 2
    del two
    gc.collect()
    assert len(files(spill)) == 1
    del one
    gc.collect()
    assert len(files(spill)) == 1
    assert branch.latents(0).shape == (1, 4, 6, 2, 4)
    del branch
    gc.collect()
    assert files(spill) == []


def test_a_reel_is_light_and_says_how_big_it_is(layout: ReelLayout, film: Film) -> None:
    reel = Reel.empty(layout).append(film("a cat"))
    assert reel.describe() == "1 shot, 1.0 s (16 frames at 16 fps), 32x16, 806 B on disk"
    assert reel.nbytes == 4 * 192 + 2 * 15 + 8 == reel.shots[0].file.nbytes
    assert not any(isinstance(value, torch.Tensor) for value in _reachable(reel))
    assert Reel.empty(layout).describe() == "0 shots, 0.0 s (0 frames at 16 fps), 32x16, 0 B on disk"


def _reachable(root: object) -> list[object]:
    """Everything a value of ours holds, through its attributes and containers."""
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
        elif hasattr(value, "__dict__"):
            todo += vars(value).values()
    return list(seen.values())


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (4_234_000_000, "4.2 GB"), (2e12, "2.0 TB")],
)
def test_sizes_are_written_for_people(nbytes: float, text: str) -> None:
    assert human_size(int(nbytes)) == text


def test_shots_that_do_not_fit_are_refused(layout: ReelLayout, film: Film, reel: Reel) -> None:
    empty = Reel.empty(layout)
    with pytest.raises(ReelError, match="start it with a cut"):
        empty.append(film("x", take_start=False))
    with pytest.raises(ReelError, match="after another one"):
        reel.append(film("x"))
    with pytest.raises(ReelError, match=r"\[1, 4, 6, 2, 4\] and the reel's are \[1, 16, 6, 2, 4\]"):
        Reel.empty(replace(layout, latent_channels=16)).append(film("x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "model-b"}, "filmed with another model: connect"),
        ({"vae": "vae-b"}, "filmed with another VAE: connect"),
        ({"width": 64}, "width 32 and this engine has 64: set the engine"),
        ({"fps": 24.0}, "fps 16.0 and this engine has 24.0"),
        ({"engine": {"frames_per_block": 3, "layers": 30}}, "layers 2 and this engine with 30"),
    ],
)
def test_a_reel_of_another_model_vae_or_layout_is_refused(reel: Reel, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ReelError, match=words):
        check_layout(reel, replace(reel.layout, **change))


def test_engines_that_remember_differently_may_take_turns(reel: Reel, layout: ReelLayout) -> None:
    check_layout(reel, layout)
    check_layout(reel, replace(layout, engine={"filmweaver": {"keyframes": 8}}))


def test_a_layout_cannot_be_changed_through_what_it_was_made_of() -> None:
    engine = {"heads": (1, 2)}
    layout = ReelLayout(16, 8, 8, 4, 8, 4, "m", "v", engine)
    engine["heads"] = (3,)
    assert layout.engine == {"heads": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        replace(layout, engine={"scale": float("inf")})


def same(a: Reel, b: Reel) -> bool:
    def told(reel: Reel) -> list[object]:
        return [replace(filmed, file=None) and vars(replace(filmed, file=None)) for filmed in reel.shots]  # type: ignore[arg-type]

    def loaded(reel: Reel) -> list[dict[str, torch.Tensor]]:
        return [filmed.file.load() for filmed in reel.shots]

    return (
        a.layout == b.layout
        and told(a) == told(b)
        and all(
            x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)
            for x, y in zip(loaded(a), loaded(b), strict=True)
        )
    )


def test_save_and_load_give_the_same_reel(reel: Reel, tmp_path: Path) -> None:
    path = tmp_path / "film.safetensors"
    save_reel(reel, path)
    loaded = load_reel(path)
    assert same(reel, loaded)
    assert loaded.fingerprint == reel.fingerprint
    assert loaded.shots[1].meta == {"keyframes": {"who": ["cat"]}}
    assert loaded.shots[1].file.group("keyframes").keys() == {"image.0", "flag"}
    save_reel(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert load_file(path)["shots.0.latents"].shape == (1, 4, 6, 2, 4)
    save_reel(reel.branch(0), tmp_path / "empty.safetensors")
    assert load_reel(tmp_path / "empty.safetensors").shots == ()
    assert files(tmp_path) == ["again.safetensors", "empty.safetensors", "film.safetensors", "spill"]


def test_a_loaded_file_is_never_deleted(reel: Reel, tmp_path: Path) -> None:
    path = tmp_path / "film.safetensors"
    save_reel(reel, path)
    loaded = load_reel(path)
    del loaded
    gc.collect()
    assert path.exists()


def test_saving_onto_the_file_that_was_loaded(reel: Reel, film: Film, tmp_path: Path) -> None:
    path = tmp_path / "film.safetensors"
    save_reel(reel, path)
    loaded = load_reel(path)
    longer = loaded.append(film("a dog", loaded.fingerprint, seed=3))
    save_reel(longer, path)
    assert same(loaded, reel)
    assert same(load_reel(path), longer)
    save_reel(reel.branch(1), path)
    assert torch.equal(loaded.latents(0), reel.latents(0))
    with pytest.raises(ReelError, match="replaced by a file without this shot"):
        loaded.latents(1)
    path.unlink()
    with pytest.raises(ReelError, match="is gone"):
        loaded.latents(0)


def test_nothing_is_lost_when_saving_fails(reel: Reel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.safetensors"
    save_reel(reel.branch(1), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file.os, "fsync", full)
    with pytest.raises(ReelError, match="No space left on device"):
        save_reel(reel, path)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_file.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_reel(reel, path)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["film.safetensors", "spill"]
    with pytest.raises(ReelError, match=r"cannot be written \(No such file"):
        save_reel(reel, tmp_path / "absent" / "film.safetensors")


def test_foreign_files_are_refused(reel: Reel, film: Film, tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes | None, str]] = {
        "absent": (None, "cannot be read"),
        "empty": (b"", "is not a reel"),
        "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a reel"),
        "text": (b"seconds: 5\nA cat walks.", "is not a reel"),
        "brackets": ((200_000).to_bytes(8, "little") + b"{" + b"[" * 199_999, "is not a reel"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ReelError, match=words):
            load_reel(tmp_path / name)
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ReelError, match="not one of Longreel's"):
        load_reel(tmp_path / "model.safetensors")
    save_shot(reel.shots[0], tmp_path / "shot.safetensors")
    with pytest.raises(ReelError, match="one shot of a project"):
        load_reel(tmp_path / "shot.safetensors")
    save_reel(reel, tmp_path / "reel.safetensors")
    with pytest.raises(ReelError, match="holds a reel"):
        load_shot_file(tmp_path / "reel.safetensors")
    (tmp_path / "long").write_bytes((tmp_path / "reel.safetensors").read_bytes() + b"\0")
    with pytest.raises(ReelError, match="not whole"):
        load_reel(tmp_path / "long")


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "FORMAT_VERSION", 2)
    write_tensor_file(tmp_path / "new", {"kind": "reel", "shots": []}, {})
    monkeypatch.undo()
    with pytest.raises(ReelError, match="update Longreel"):
        load_reel(tmp_path / "new")


def test_a_reel_whose_layout_contradicts_its_latents_is_refused(reel: Reel, tmp_path: Path) -> None:
    save_reel(reel, tmp_path / "film")
    header = read_header(tmp_path / "film")
    info = json.loads(json.dumps(header.info))
    info["layout"]["height"] = 64
    write_tensor_file(tmp_path / "wrong", info, header.slots)
    with pytest.raises(ReelError, match="latents are"):
        load_reel(tmp_path / "wrong")


@slow_fixture
@given(data=st.data())
def test_a_file_cut_short_anywhere_is_refused(reel: Reel, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "film.safetensors"
    if not path.exists():
        save_reel(reel, path)
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / "cut").write_bytes(content[:length])
    with pytest.raises(ReelError, match=r"\.$"):
        load_reel(tmp_path / "cut")


@slow_fixture
@given(data=st.data())
def test_a_changed_header_is_refused_or_changes_nothing(reel: Reel, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "film.safetensors"
    if not path.exists():
        save_reel(reel, path)
    content = bytearray(path.read_bytes())
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.integers(0, header_bytes - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / "flipped").write_bytes(content)
    try:
        loaded = load_reel(tmp_path / "flipped")
    except ReelError:
        return
    assert same(loaded, reel)


def test_saving_never_holds_the_tensors(reel: Reel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a tensor was loaded")

    monkeypatch.setattr(stored_tensors, "safe_open", refuse)
    save_reel(reel, tmp_path / "film.safetensors")
    assert load_reel(tmp_path / "film.safetensors").describe() == reel.describe()


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child is read from wait4")
def test_storing_a_big_shot_takes_no_second_copy(tmp_path: Path) -> None:
    code = f"""
import resource, torch
from pathlib import Path
from longreel.film.reel.reel import FilmedShot
from longreel.film.storyboard.shot import Shot, TimedPrompt
memory = {{f"k.{{i}}": torch.ones(4_000_000, dtype=torch.bfloat16) for i in range(32)}}
latents = torch.zeros(1, 4, 1, 2, 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shot = FilmedShot.store(Shot((TimedPrompt(0, "x"),)), latents, previous="", settings={{}}, take_start=True, frames=1,
                        tensors={{"memory": memory}}, folder=Path({str(tmp_path)!r}))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 24  # MB, of 256


def test_tensors_lie_where_their_elements_are_aligned(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3), "c": torch.ones(1, dtype=torch.bfloat16)}
    write_tensor_file(tmp_path / "x", {"kind": "shot", "shots": []}, {**tensors, "d": torch.ones(1).double()})
    slots = read_header(tmp_path / "x").slots
    sizes = {"a": 1, "b": 4, "c": 2, "d": 8}
    assert {name: slot.offset % sizes[name] for name, slot in slots.items()} == dict.fromkeys("abcd", 0)
