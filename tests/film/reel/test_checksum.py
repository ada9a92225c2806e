"""A bit that flips in a stored shot is noticed when it is read, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.film.reel.checksum import checksum
from longreel.film.reel.groups import KVMemoryGroup
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, load_shot_file, save_reel
from longreel.film.reel.tensor_file import read_header
from safetensors.torch import load_file

Film = Callable[..., FilmedShot]
ROW = 32 << 10


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3 * ROW + 40), st.data())
def test_every_flipped_bit_changes_it(length: int, data: st.DataObject):
    plain = bytearray(torch.randint(0, 256, (length,), dtype=torch.uint8).numpy().tobytes())
    before = checksum(bytes(plain))
    plain[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(bytes(plain)) != before


def test_of_parts_it_is_that_of_the_whole_and_knows_pages_by_their_place():
    whole = torch.randint(0, 256, (3 * ROW + 77,), dtype=torch.uint8).numpy().tobytes()
    assert checksum(whole[2 * ROW :], checksum(whole[: 2 * ROW])) == checksum(whole)
    assert checksum(whole[ROW : 2 * ROW] + whole[:ROW] + whole[2 * ROW :]) != checksum(whole)
    assert checksum(whole[:ROW] + bytes(ROW) + whole[2 * ROW :]) != checksum(whole)
    # The public format: it must not change.
    assert f"{checksum(bytes(range(256)) * 129):08x}" == GOLDEN
    assert checksum(b"") == 0


GOLDEN = "1641e030"


def saved(film: Film, layout: ReelLayout, path: Path) -> Path:
    first = Reel.empty(layout).append(film("a cat", seed=1))
    save_reel(first.append(film("a dog", first.fingerprint, seed=2)), path)
    return path


@pytest.mark.parametrize("name", ["latents", "memory.k.0", "memory.seen"])
def test_what_flipped_on_disk_is_refused_when_it_is_read(film: Film, layout: ReelLayout, tmp_path: Path, name: str):
    path = saved(film, layout, tmp_path / "a.reel.safetensors")
    slot = read_header(path).slots[f"shots.1.{name}"]
    flip(path, slot.offset + slot.nbytes - 1, bit=7)
    reel = load_reel(path)
    shot = reel.shots[1]
    with pytest.raises(ReelError, match=r"a\.reel\.safetensors is damaged.*another copy"):
        shot.file.load([name])
    if name == "latents":
        with pytest.raises(ReelError, match="is damaged"):
            shot.latents(1, 2)
    else:
        assert shot.latents().shape == (1, 4, 6, 2, 4)
    assert reel.shots[0].file.load().keys() == {"latents", "memory.k.0", "memory.seen"}
    with pytest.raises(ReelError, match="is damaged"):
        save_reel(reel, tmp_path / "copy.safetensors")
    assert not (tmp_path / "copy.safetensors").exists()


def test_a_file_that_changes_while_it_is_open_is_verified_again(film: Film, layout: ReelLayout, tmp_path: Path):
    path = saved(film, layout, tmp_path / "a.reel.safetensors")
    reel = load_reel(path)
    good = reel.latents(0).clone()
    flip(path, read_header(path).slots["shots.0.latents"].offset)
    with pytest.raises(ReelError, match="is damaged"):
        reel.latents(0)
    flip(path, read_header(path).slots["shots.0.latents"].offset)
    assert torch.equal(reel.latents(0), good)


def test_a_project_films_a_shot_again_whose_latents_flipped(film: Film, tmp_path: Path):
    store = ProjectStore(tmp_path / "film")
    kept = store.add(film("a cat", seed=1))
    assert store.find(kept.fingerprint) is not None
    flip(kept.file.path, read_header(kept.file.path).slots["latents"].offset + 1)
    assert store.find(kept.fingerprint) is None
    again = store.add(film("a cat", seed=1))
    assert torch.equal(again.latents(), film("a cat", seed=1).latents())
    assert store.find(kept.fingerprint) is not None


def test_what_is_remembered_is_verified_when_a_film_goes_on(film: Film, tmp_path: Path):
    store = ProjectStore(tmp_path / "film")
    kept = store.add(film("a cat", seed=1))
    flip(kept.file.path, read_header(kept.file.path).slots["memory.k.0"].offset)
    group = KVMemoryGroup.of(load_shot_file(kept.file.path))
    assert group is not None
    with pytest.raises(ReelError, match="delete it and film that shot again"):
        group.tensors()


def test_files_of_before_there_were_checksums_are_read(film: Film, layout: ReelLayout, tmp_path: Path):
    path = tmp_path / "old.safetensors"
    saved(film, layout, path)
    expected = load_file(path)["shots.1.latents"].clone()
    strip_checksums(path)
    assert all(not slot.checksum for slot in read_header(path).slots.values())
    reel = load_reel(path)
    assert torch.equal(reel.latents(1), expected)
    save_reel(reel, tmp_path / "new.safetensors")
    assert all(slot.checksum for slot in read_header(tmp_path / "new.safetensors").slots.values())


def strip_checksums(path: Path) -> None:
    from longreel.film.reel import tensor_file

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    metadata = table.pop("__metadata__")
    info = json.loads(metadata["longreel"])
    del info["checksums"]
    metadata["longreel"] = json.dumps(info)
    metadata["longreel_sha256"] = tensor_file._digest(metadata["longreel"], table)
    header = json.dumps({"__metadata__": metadata, **table}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
