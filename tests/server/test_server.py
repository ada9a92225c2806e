"""The pack in the real server: it loads, and the harness tells the truth about what ran."""

from __future__ import annotations

import urllib.request

import pytest

from .harness import PromptRejected, Server, ServerError


def picture(width: int, color: int) -> dict:
    """A small prompt of core's nodes: 1 makes a picture, 2 saves it."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 8, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "harness"}},
    }


def test_pack_loads_quietly(server: Server):
    start, found, _ = server.log_text().partition("To see the GUI go to")
    assert found
    for sign in ("Traceback", "IMPORT FAILED", "comfy_entrypoint", "Cannot import"):
        assert sign not in start, start
    assert "custom_nodes/longreel" in start


def test_harness_sees_what_ran_and_what_was_cached(server: Server):
    first, second = server.queue(picture(8, 1)), server.queue(picture(8, 1))
    assert (first.ran, first.cached) == (["1", "2"], [])
    assert (second.ran, second.cached) == ([], ["1", "2"])
    assert first.succeeded
    assert [server.path_of(file).is_file() for file in first.files()] == [True]


def test_harness_passes_complaints_on(server: Server):
    with pytest.raises(PromptRejected, match="Value 0 smaller than min of 1: width"):
        server.queue(picture(0, 2))


def test_node_errors_beside_a_good_output_are_not_missed(server: Server):
    prompt = picture(8, 3) | {"3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "no picture"}}}
    with pytest.raises(PromptRejected, match="images"):
        server.queue(prompt)


def test_killed_server_is_noticed_and_comes_back(own_server: Server):
    own_server.start()
    with pytest.raises(ServerError, match="broke off"):
        own_server.queue(picture(8, 4), on_event=lambda event: own_server.kill())
    own_server.restart()
    assert own_server.queue(picture(8, 4)).succeeded
    own_server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(own_server.url, timeout=5)
