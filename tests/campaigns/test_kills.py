"""Filming killed at any moment and gone on with: nothing finished is lost or filmed again, and the film is the same.

A process films a story of tiny models in a project and is killed, by the clock or at one of its file operations. The
usual suite kills a few; `LONGREEL_FUZZ_SEED=7 LONGREEL_KILLS=70 pytest -m campaign tests/campaigns` that many of each
engine. A failure names the number of the kill, which seed and number make again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_schedule import default_sigmas
from longreel.engines.engine import EngineBase
from longreel.engines.filming import film_shot, prepare
from longreel.film.reel.project import ProjectStore
from longreel.film.storyboard.text import parse_storyboard
from longreel.host.miniature_clip import load_miniature_clip
from safetensors.torch import save_file

from .. import tiny_models
from ..engines.test_other_nodes import cache_guided, first_frame
from .faults import Disk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the process to kill is forked")
SHORT = 2
SHOTS = ("seconds: 0.3\nA red ball.", "seconds: 0.3{}\nA red ball jumps.", "seconds: 0.3\nA blue star.")


def causal(clip: Any, vae: Any, _folder: Path) -> CausalEngine:
    model = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=tiny_models.dit_metadata())
    sigmas = default_sigmas(model, 2)
    return CausalEngine(models=(model,), clip=clip, vae=vae, width=32, height=32, fps=16.0, sigmas=sigmas)


@dataclass(frozen=True)
class Filming:
    """An engine, its story, the film that comes of it undisturbed, and how long and how many operations that takes."""

    engine: EngineBase
    story: str
    latents: tuple[torch.Tensor, ...]
    seconds: float
    operations: int


def film(
    engine: EngineBase, story: str, folder: Path, done: Callable[[int], object] = lambda _: None
) -> tuple[tuple[torch.Tensor, ...], list[int]]:
    """The latents of each shot, and the numbers of those that the project did not have."""
    store, reel = ProjectStore(folder), None
    jobs = prepare(engine, parse_storyboard(story).shots, None, store).jobs
    for job in jobs:
        reel = film_shot(engine, job.shot, reel, store, job.place)
        done(job.place.shot)
    assert reel is not None
    missing = [job.place.shot for job in jobs if job.decision is not None and job.decision.action == "filmed"]
    return tuple(reel.latents(number) for number in range(len(reel.shots))), missing


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A forked process has no threads but its own, and the last bits of a sum are those of its threads' parts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp")))
        yield


@pytest.fixture(scope="module", params=[causal, cache_guided, first_frame], ids=lambda make: make.__name__)
def filming(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filming:
    folder = tmp_path_factory.mktemp("models")
    save_file(tiny_models.text_weights(), folder / tiny_models.TEXT)
    clip, vae = load_miniature_clip(str(folder / tiny_models.TEXT)), comfy.sd.VAE(sd=tiny_models.vae_weights())
    engine: EngineBase = request.param(clip, vae, folder)
    story = "\n---\n".join(SHOTS).format(", start: continue" if engine.capabilities.continues else "")
    film(engine, story, folder / "first")
    disk, began = Disk(folder / "second"), time.monotonic()
    with disk.in_use():
        latents, _ = film(engine, story, folder / "second")
    return Filming(engine, story, latents, time.monotonic() - began, len(disk.operations))


class _Killer(Disk):
    def strike(self, path: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def kill(filming: Filming, folder: Path, at: int, seconds: float) -> bytes:
    """Film in a process that is killed at an operation (0: none) or after some seconds; the shots it finished."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with _Killer(folder, at).in_use():
                film(filming.engine, filming.story, folder, lambda shot: os.write(write, bytes([shot])))
        finally:
            # Also after an error: it must never go on with the other tests.
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        finished = pipe.read()
    os.waitpid(child, 0)
    return finished


def survive(filming: Filming, folder: Path, seed: int, kills: int) -> None:
    for number in range(kills):
        rng = random.Random(f"{seed} {number}")
        by_clock = rng.random() < 0.5
        at = 0 if by_clock else rng.randint(1, filming.operations)
        seconds = 0.001 + rng.random() * filming.seconds * 1.1 if by_clock else 60.0
        finished = kill(filming, folder / f"{number}", at, seconds)
        latents, missing = film(filming.engine, filming.story, folder / f"{number}")
        said = f"kill {number} of seed {seed}: finished {[*finished]}, filmed again {missing}"
        assert not set(finished) & set(missing), said
        assert all(torch.equal(one, other) for one, other in zip(latents, filming.latents, strict=True)), said
        assert not list((folder / f"{number}").glob("*.part")), said


def test_a_few_kills(filming: Filming, tmp_path: Path):
    survive(filming, tmp_path, 1, SHORT)


@pytest.mark.campaign
def test_many_kills(filming: Filming, tmp_path: Path):
    survive(
        filming, tmp_path, int(os.environ.get("LONGREEL_FUZZ_SEED", "7")), int(os.environ.get("LONGREEL_KILLS", "70"))
    )
