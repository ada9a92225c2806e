"""The groups of a reel: their names in files, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from longreel.film.reel.edit import Edit
from longreel.film.reel.groups import (
    KeyframeGroup,
    KVLogGroup,
    KVMemoryGroup,
    KVPinsGroup,
    ShownKeyframesGroup,
    TransitionGroup,
    groups_until,
)
from longreel.film.reel.reel import FilmedShot

Film = Callable[..., FilmedShot]
KEYFRAMES = {
    "shot": 2,
    "covers": [1],
    "bank": [
        {"uid": uid, "shot": shot, "frame": frame} for uid, shot, frame in (("a", 1, 9), ("b", 2, 1), ("c", 2, 4))
    ],
}


def parts(count: int) -> dict[str, torch.Tensor]:
    names = ("luma", "chroma", "latent", "embedding")
    return {f"{i}.{name}": torch.tensor([i, j]) for i in range(count) for j, name in enumerate(names)}


@pytest.fixture
def shot(film: Film) -> FilmedShot:
    return film(
        "a cat",
        tensors={"memory": {"k": torch.ones(2), "bank.positions": torch.zeros(3)}, "cache": parts(3)},
        meta={
            "memory": {"position": 6, "bank": None},
            "memory_log": [{"sink": [0]}],
            "cache": KEYFRAMES,
            "told": [["b", "a"], ["a"]],
            "transition": {"lead": 5},
        },
    )


def test_names_are_the_keys_of_the_file_format():
    groups = (KVMemoryGroup, KVLogGroup, KVPinsGroup, KeyframeGroup, ShownKeyframesGroup, TransitionGroup)
    assert [group.NAME for group in groups] == ["memory", "memory_log", "memory_edit", "cache", "told", "transition"]


def test_readers(shot: FilmedShot):
    memory, log, keyframes = KVMemoryGroup.of(shot), KVLogGroup.of(shot), KeyframeGroup.of(shot)
    assert memory and log and keyframes  # noqa: PT018
    assert (memory.position, memory.has_bank) == (6, False)
    assert set(memory.tensors()) == {"k", "bank.positions"}
    assert set(memory.tensors(["bank.positions"])) == {"bank.positions"}
    assert log.blocks == [{"sink": [0]}]
    assert (keyframes.shot, keyframes.covers, keyframes.own) == (2, [1], {"b", "c"})
    shown = ShownKeyframesGroup.of(shot)
    assert shown
    assert shown.uids == ["b", "a"]
    assert shot.lead == 5
    assert KVPinsGroup.of(shot) is None


def test_edits_carry_groups_too(tmp_path: Path):
    pins = KVPinsGroup.of(Edit.store(1, {}, {"memory_edit": {"pin": [3], "ban": [4, 5]}}, tmp_path))
    assert pins
    assert (pins.pinned, pins.banned, pins.tensors()) == ({3}, {4, 5}, {})


def test_a_shot_without_groups(film: Film):
    plain = film("a cat", tensors={}, meta={})
    assert plain.lead == 0
    assert groups_until(plain, 3) == ({}, {})


def test_what_holds_of_a_shot_that_is_cut_short(shot: FilmedShot):
    tensors, meta = groups_until(shot, 3)
    assert set(meta) == {"cache", "transition"}
    assert [entry["uid"] for entry in meta["cache"]["bank"]] == ["a", "b"]
    assert set(tensors["cache"]) == set(parts(2))
    assert all(torch.equal(tensors["cache"][name], tensor) for name, tensor in parts(2).items())
