"""What a sentence about a file quotes of it is short, however long it is there."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from longreel.film.decode import Value, quoted
from longreel.film.dual_cache import FILMWEAVER
from longreel.film.dual_cache.profile import LayoutProfile
from longreel.film.first_frame.layouts import Size, plan
from longreel.film.first_frame.values import Layout
from longreel.film.kv_memory.settings import MemorySettings
from longreel.film.motion.codec import FlowCodec

LONG = "\ud800x" * 5000


def layout() -> None:
    good = json.loads(plan([Size(40, 60)], "auto", Size(64, 48), Size(30, 30)).to_json())
    Layout.from_json(json.dumps(good | {LONG: 1}))


def profile() -> None:
    key = next(iter(FILMWEAVER.to_metadata()))
    LayoutProfile.from_metadata({key: json.dumps(FILMWEAVER.to_json() | {LONG: 1})})


@pytest.mark.parametrize(
    "read",
    [
        layout,
        profile,
        lambda: MemorySettings(positions=LONG),
        lambda: Value({LONG: {}})[LONG]["a"],
        lambda: Value({LONG: 1})[LONG].text(),
        lambda: FlowCodec(encoding=LONG),
    ],
    ids=["layout", "profile", "settings", "field", "value", "codec"],
)
def test_long_words_are_cut(read: Callable[[], object]):
    with pytest.raises(ValueError, match=r"\.\.\.") as raised:
        read()
    assert len(str(raised.value)) < 400


def test_short_words_are_whole():
    assert quoted("a b") == "'a b'"
    assert quoted("\ud800") == "'\\ud800'"
