"""Edits of a reel: they decide what follows, survive files, and go with what they were made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from longreel.film.reel.edit import Edit
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, check_layout, load_reel, save_reel

Film = Callable[..., FilmedShot]


def edit(after: int, value: int, folder: Path) -> Edit:
    return Edit.store(after, {"cache": {"picture": torch.tensor([value])}}, {"cache": {"uid": value}}, folder)


def test_an_edit_decides_what_follows(layout: ReelLayout, film: Film, tmp_path: Path) -> None:
    empty = Reel.empty(layout)
    told = empty.edited(edit(0, 1, tmp_path))
    assert len({empty.fingerprint, told.fingerprint, empty.edited(edit(0, 2, tmp_path)).fingerprint}) == 3
    assert told.fingerprint == empty.edited(edit(0, 1, tmp_path)).fingerprint
    with pytest.raises(ReelError, match="filmed after another"):
        told.append(film("a cat"))
    longer = told.append(film("a cat", previous=told.fingerprint))
    assert longer.fingerprint == longer.shots[0].fingerprint
    twice = longer.edited(edit(1, 3, tmp_path)).edited(edit(1, 4, tmp_path))
    assert [part.after for part in twice.edits] == [0, 1, 1]
    assert [part.after for part in twice.branch(1).edits] == [0, 1, 1]
    assert [part.after for part in twice.branch(0).edits] == [0]
    assert twice.branch(0).fingerprint == told.fingerprint


def test_edits_go_through_a_file(layout: ReelLayout, film: Film, tmp_path: Path) -> None:
    reel = Reel.empty(layout).edited(edit(0, 5, tmp_path))
    reel = reel.append(film("a cat", previous=reel.fingerprint)).edited(edit(1, 6, tmp_path))
    save_reel(reel, tmp_path / "a.reel.safetensors")
    loaded = load_reel(tmp_path / "a.reel.safetensors")
    assert loaded.fingerprint == reel.fingerprint
    assert [part.file.group("cache")["picture"].item() for part in loaded.edits] == [5, 6]
    assert torch.equal(loaded.latents(0), reel.latents(0))
    assert loaded.nbytes == reel.nbytes
    save_reel(loaded, tmp_path / "a.reel.safetensors")
    assert loaded.edits[1].file.group("cache")["picture"].item() == 6


def test_an_edit_of_a_temporary_file_goes_with_the_reel(layout: ReelLayout, tmp_path: Path) -> None:
    reel = Reel.empty(layout).edited(edit(0, 5, tmp_path))
    path = reel.edits[0].file.path
    assert path.exists()
    del reel
    assert not path.exists()


def test_models_may_differ_between_engines_that_share_no_memory(layout: ReelLayout, film: Film) -> None:
    other = replace(layout, engine={}, model="model-b")
    begun = Reel.empty(other)
    check_layout(begun, layout)
    bound = begun.joined(layout)
    check_layout(bound, other)
    check_layout(bound, replace(layout, engine={"steps": 1}, model="model-c"))
    with pytest.raises(ReelError, match="another model"):
        check_layout(bound, replace(layout, model="model-c"))
    with pytest.raises(ReelError, match="layers 2"):
        check_layout(bound, replace(layout, engine={"layers": 30}))
    assert bound.joined(other).layout == bound.layout
