"""What takes whole servers: a fresh install from the registry's archive, and filming that is killed with its server.

`LONGREEL_FUZZ_SEED=7 LONGREEL_SERVER_KILLS=20 pytest -m campaign tests/campaigns/test_server_campaigns.py`
"""

from __future__ import annotations

import os
import random
import shutil
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .. import tiny_models
from ..house.test_registry import archive_names
from ..server.film_prompts import SHOTS, story
from ..server.harness import REPOSITORY, Server, ServerError

pytestmark = pytest.mark.campaign
WAYS = ("LongreelCausalEngine", "LongreelStoryboard", "LongreelFilmStoryboard", "LongreelReelToVideo")


def test_fresh_install_from_the_archive(own_server: Server):
    """Only what the archive holds, in a folder of its own: the quick start's nodes, help pages and templates are there,
    and a film is made.
    """
    pack = own_server.base / "custom_nodes" / "longreel"
    pack.unlink()
    for name in sorted(archive_names()):
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, pack / name)
    tiny_models.write(own_server.base / "models")
    with own_server as server:
        nodes = server.object_info()
        assert set(WAYS) <= nodes.keys()
        assert nodes[WAYS[0]]["python_module"] == "custom_nodes.longreel"
        for node in WAYS:
            with urllib.request.urlopen(f"{server.url}/extensions/longreel/docs/{node}/en.md", timeout=60) as page:
                assert page.read().startswith(b"#")
        assert "quickstart" in str(server.get("/workflow_templates"))
        assert server.queue(story("installed", SHOTS[0])).succeeded


def shots_of(server: Server, project: str) -> dict[str, int]:
    """Name and time of each finished shot."""
    folder = server.base / "output" / "longreel" / project
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shot-*.safetensors")}


def latents_of(server: Server, project: str) -> dict[str, Any]:
    folder = Path(server.base / "output" / "longreel" / project)
    return {file.name: load_file(file) for file in folder.glob("shot-*.safetensors")}


def test_a_killed_server_loses_no_finished_shot(own_server: Server):
    seed, kills = os.environ.get("LONGREEL_FUZZ_SEED", "7"), int(os.environ.get("LONGREEL_SERVER_KILLS", "20"))
    tiny_models.write(own_server.base / "models")
    own_server.start()
    began = time.monotonic()
    assert own_server.queue(story("whole", *SHOTS)).succeeded
    seconds, whole = time.monotonic() - began, latents_of(own_server, "whole")
    for number in range(kills):
        rng, project = random.Random(f"{seed} {number}"), f"killed {number}"
        events, at = rng.randint(1, 40), rng.random() * seconds
        by_clock, begun, seen = rng.random() < 0.5, time.monotonic(), 0

        def strike(_: Any) -> None:
            nonlocal seen
            seen += 1
            if time.monotonic() - begun > at if by_clock else seen >= events:  # noqa: B023 - called in this round
                own_server.kill()

        with suppress(ServerError):
            own_server.queue(story(project, *SHOTS), on_event=strike)
        if seen and own_server._process is None:  # killed, before or after the end
            own_server.start()
        finished = shots_of(own_server, project)
        assert own_server.queue(story(project, *SHOTS)).succeeded
        after = shots_of(own_server, project)
        said = f"kill {number} of seed {seed}"
        assert finished.items() <= after.items(), f"{said}: filmed again"
        found = latents_of(own_server, project)
        assert found.keys() == whole.keys(), said
        assert all(found[name][key].equal(whole[name][key]) for name in whole for key in whole[name]), said
        assert not list((own_server.base / "output" / "longreel" / project).rglob("*.part")), said
