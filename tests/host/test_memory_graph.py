"""Allocations that outlive a block are made while ComfyUI does not record them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_prefetch
import pytest
from longreel.host.memory_graph import outside_memory_graph


def test_the_record_is_paused_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []

    @contextmanager
    def pause() -> Iterator[None]:
        events.append("paused")
        yield
        events.append("goes on")

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", pause, raising=False)
    with outside_memory_graph():
        events.append("allocates")
    assert events == ["paused", "allocates", "goes on"]


def test_a_release_that_records_nothing_has_nothing_to_pause(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(comfy.model_prefetch, "pause_malloc_graph", raising=False)
    with outside_memory_graph():
        pass
