"""Kept results: killed anywhere and run again, the same; changed anywhere, only what follows from it is made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.training.core.stages import StageCache

UNITS = ("a", "b")
NAMES = ("first", "second", "third")


class Killed(BaseException):
    pass


class Machine:
    """Three stages in a row on two units; every operation that could be the last one is counted."""

    def __init__(self, folder: Path):
        self.folder, self.left, self.calls = folder, 10**9, []

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def run(self, source: dict[str, int], again: tuple[str, ...] = ()) -> dict[str, list[int]]:
        kept, self.calls = StageCache(self.folder, again), []
        results = {}
        for unit in UNITS:
            value, row = source[unit], []
            for number, stage in enumerate(NAMES):

                def make(stage: str = stage, unit: str = unit, value: int = value, number: int = number) -> int:
                    self.calls.append((stage, unit))
                    self.tick()
                    # The second stage forgets the sign: a change of it must not run further down.
                    return abs(value) if number == 1 else value + 10

                value = kept.get(stage, unit, [stage, value], make)
                self.tick()
                row.append(value)
            results[unit] = row
        return results


def expected(source: dict[str, int]) -> dict[str, list[int]]:
    return {unit: [n + 10, abs(n + 10), abs(n + 10) + 10] for unit, n in source.items()}


sources = st.fixed_dictionaries({unit: st.integers(-30, 30) for unit in UNITS})
# How far a run gets before it is killed, and what it is to make again.
runs = st.tuples(sources, st.integers(0, 15), st.sets(st.sampled_from(NAMES)))


@settings(deadline=None)  # files on a busy machine
@given(st.lists(runs, max_size=4), sources)
def test_after_any_kills_and_changes_a_run_gives_what_a_fresh_one_gives(history: list, source: dict[str, int]):
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        for earlier, left, again in history:
            machine.left = left
            with contextlib.suppress(Killed):
                machine.run(earlier, tuple(again))
        machine.left = 10**9
        assert machine.run(source) == expected(source)
        assert machine.run(source) == expected(source)
        assert machine.calls == [], "the second time nothing is made"


@settings(deadline=None)
@given(sources, sources)
def test_a_change_runs_down_the_chain_until_nothing_changes(old: dict[str, int], new: dict[str, int]):
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        machine.run(old)
        machine.run(new)
        for unit in UNITS:
            first, second = old[unit] != new[unit], old[unit] + 10 != new[unit] + 10
            third = abs(old[unit] + 10) != abs(new[unit] + 10)
            made = [stage for stage, of in machine.calls if of == unit]
            assert made == [stage for stage, changed in zip(NAMES, (first, second, third), strict=True) if changed]


def test_one_stage_is_made_again_alone(tmp_path: Path):
    machine = Machine(tmp_path)
    source = dict.fromkeys(UNITS, 1)
    machine.run(source)
    machine.run(source, ("second",))
    assert machine.calls == [("second", "a"), ("second", "b")]


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"from": "x"}'])
def test_a_damaged_file_is_no_result(tmp_path: Path, damage: str):
    kept = StageCache(tmp_path)
    kept.get("first", "a", 1, lambda: 5)
    (tmp_path / "first" / "a.json").write_text(damage)
    assert StageCache(tmp_path).get("first", "a", 1, lambda: 6) == 6


def test_a_kill_while_writing_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    StageCache(tmp_path).get("first", "a", 1, lambda: 5)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            StageCache(tmp_path).get("first", "a", 2, lambda: 6)
    assert StageCache(tmp_path).get("first", "a", 1, lambda: 7) == 5


def test_results_of_what_is_gone_are_removed_and_missing_files_made_again(tmp_path: Path):
    kept = StageCache(tmp_path)
    for unit in UNITS:
        kept.get("first", unit, 1, lambda: 5)
    kept.keep("first", ["b"])
    assert [path.stem for path in (tmp_path / "first").iterdir()] == ["b"]
    assert StageCache(tmp_path).get("first", "b", 1, lambda: 6, is_complete=lambda result: False) == 6
