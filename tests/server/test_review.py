"""A film under review, by API prompts, HTTP and files alone."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import tiny_models
from .film_prompts import SHOTS, Prompt, node, story
from .harness import Event, Server, ServerError

PROJECT = "under review"
ROUTE = f"/longreel/projects/{PROJECT.replace(' ', '%20')}/review"


@pytest.fixture
def reviewed(studio: Server) -> Iterator[Server]:
    """The server, whose output folder is afterwards as it was."""
    output = studio.base / "output"
    before = set(output.rglob("*"))
    yield studio
    shutil.rmtree(output / "longreel" / PROJECT, ignore_errors=True)
    for path in set(output.rglob("*")) - before:
        if path.is_file():
            path.unlink()


def prompt(*shots: str) -> Prompt:
    under = story(PROJECT, *shots)
    film = under.pop("film")
    under["review"] = {"class_type": "LongreelReviewFilm", "inputs": film["inputs"]}
    under["video"]["inputs"] |= {"reel": ["review", 0], "filename_prefix": "review", "first_shot": ["review", 1]}
    return under | {"words": node("PreviewAny", source=["review", 2])}


def run(server: Server, *shots: str) -> tuple[dict[str, Any], list[str]]:
    """Films, and returns what waits and what was done with each shot; what waits is on disk and its video is shown."""
    takes = server.base / "output" / "longreel" / PROJECT
    before = set(takes.glob("shot-*.safetensors"))
    outcome = server.queue(prompt(*shots))
    assert outcome.succeeded, outcome.error
    told = [line.split(" (take")[0] for line in outcome.outputs["review"]["text"][0].splitlines()]
    done = [line for line in told if line.startswith("shot ") and ("reused" in line or "filmed" in line)]
    assert len(set(takes.glob("shot-*.safetensors")) - before) == sum("filmed: " in line for line in done)
    status = server.get(ROUTE)
    waiting = status["waiting"] or {}
    assert waiting.get("filmed", True)
    assert len(done) == waiting.get("shot", len(shots))
    return waiting, [line.split()[2].rstrip(":") for line in done]


def refused(server: Server, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(server.url + ROUTE, json.dumps(body).encode(), headers or {})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    return caught.value.code, caught.value.read().decode()


def test_a_film_is_reviewed_shot_by_shot(reviewed: Server):
    assert reviewed.get(ROUTE) == {"project": PROJECT, "waiting": None, "approved": [], "decisions": 0}
    one, done = run(reviewed, *SHOTS)
    assert (one["shot"], one["shots"], one["seed"], done) == (1, 3, 0, ["filmed"])
    # Queueing again without a decision does nothing.
    assert reviewed.queue(prompt(*SHOTS)).ran == []
    assert reviewed.get(ROUTE)["waiting"] == one
    status = reviewed.post(ROUTE, {"take": one["take"], "decision": "approve"})
    assert (status["waiting"], status["approved"]) == (None, [one["take"]])
    code, words = refused(reviewed, {"take": one["take"], "decision": "approve"})
    assert (code, "does not wait" in words) == (409, True)
    # Another seed for the second, by route; then again by file; then the first seed again, which is on disk.
    two, done = run(reviewed, *SHOTS)
    assert (two["shot"], two["seed"], done) == (2, 1, ["reused", "filmed"])
    reviewed.post(ROUTE, {"take": two["take"], "decision": "retry"})
    again, done = run(reviewed, *SHOTS)
    assert (again["shot"], again["seed"], done) == (2, 2, ["reused", "filmed"])
    folder: Path = reviewed.base / "output" / "longreel" / PROJECT
    wish = folder / "decision.json"
    wish.write_text(json.dumps({"take": again["take"], "decision": "retry", "seed": 1}))
    back, done = run(reviewed, *SHOTS)
    assert (back, done) == (two, ["reused", "reused"])
    assert not wish.exists()
    # It stops there, until it is approved.
    reviewed.post(ROUTE, {"take": two["take"], "decision": "stop"})
    stopped, _ = run(reviewed, *SHOTS)
    assert stopped == two | {"stopped": True}
    wish.write_text(json.dumps({"take": two["take"], "decision": "approve"}))
    three, done = run(reviewed, *SHOTS)
    assert (three["shot"], done) == (3, ["reused", "reused", "filmed"])
    # Other words are another take; what is behind it is looked at again, and so it is with the old words, at once.
    edited, _ = run(reviewed, SHOTS[0].replace("stands", "spins"), *SHOTS[1:])
    assert (edited["shot"], edited["stopped"]) == (1, False)
    assert run(reviewed, *SHOTS)[0] == three
    reviewed.post(ROUTE, {"take": three["take"], "decision": "approve"})
    assert run(reviewed, *SHOTS) == ({}, ["reused"] * 3)
    assert len(json.loads((folder / "review.json").read_text())["approved"]) == 3


def test_a_killed_server_loses_neither_takes_nor_decisions(own_server: Server):
    """It is killed while the review waits, and again while the next shot is filmed."""
    tiny_models.write(own_server.base / "models")
    own_server.start()
    one, _ = run(own_server, *SHOTS[:2])
    own_server.post(ROUTE, {"take": one["take"], "decision": "retry", "seed": 4})
    one, _ = run(own_server, *SHOTS[:2])
    project = own_server.base / "output" / "longreel" / PROJECT
    takes = {path.name: path.read_bytes() for path in project.glob("shot-*")}
    own_server.kill()
    own_server.restart()
    assert own_server.get(ROUTE)["waiting"] == one
    approved = own_server.post(ROUTE, {"take": one["take"], "decision": "approve"})
    assert (one["seed"], approved["approved"]) == (4, [one["take"]])

    filming: set[str] = set()

    def kill_at_second(event: Event) -> None:
        node = event["data"].get("node") if event["type"] == "executing" else None
        if node and node.startswith("review."):
            filming.add(node)
            if len(filming) == 2:
                own_server.kill()

    with pytest.raises(ServerError, match="broke off"):
        own_server.queue(prompt(*SHOTS[:2]), on_event=kill_at_second)
    own_server.restart()
    status = own_server.get(ROUTE)
    assert (status["approved"], status["waiting"]["shot"]) == ([one["take"]], 2)
    assert {name: (project / name).read_bytes() for name in takes} == takes
    two, done = run(own_server, *SHOTS[:2])
    assert (two["shot"], two["take"], done[0]) == (2, status["waiting"]["take"], "reused")
    assert own_server.post(ROUTE, {"take": two["take"], "decision": "approve"})["waiting"] is None
    assert run(own_server, *SHOTS[:2]) == ({}, ["reused"] * 2)
    assert not list(project.rglob("*.part"))


def test_a_decision_must_be_one_from_here(reviewed: Server):
    assert refused(reviewed, {"take": "0" * 8, "decision": "approve"})[0] == 409
    assert refused(reviewed, {"take": "0" * 8, "decision": "film"})[0] == 400
    assert refused(reviewed, ["approve"])[0] == 400
    assert refused(reviewed, "x" * 10_000)[0] == 400
    body = {"take": "0" * 8, "decision": "approve"}
    assert refused(reviewed, body, {"Origin": "https://example.com", "Sec-Fetch-Site": "cross-site"})[0] == 403
    outcome = reviewed.queue(prompt("take: 00000000\nA red ball."))
    assert "has no such take" in outcome.error["exception_message"]
