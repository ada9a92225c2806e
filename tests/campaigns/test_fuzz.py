"""Files from elsewhere, by the thousand: each is read as it is meant or refused in a sentence, in time and memory.

The usual suite runs a short campaign of a fixed seed. `pytest -m campaign tests/campaigns` runs a long one:
LONGREEL_FUZZ_SEED and LONGREEL_FUZZ_BUDGET (mutations of each kind of file) choose which. A failure names the number of
the mutation, which seed and number make again.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from longreel.film.dual_cache import FILMWEAVER, CacheError
from longreel.film.dual_cache.profile import LayoutProfile
from longreel.film.first_frame.arrangement import parse_arrangement
from longreel.film.first_frame.layouts import Size, plan
from longreel.film.first_frame.values import FirstFrameError, Layout
from longreel.film.kv_memory import KVLayout, KVMemory, MemoryMismatchError, MemorySettings, MemorySnapshot, snapshot
from longreel.film.kv_memory import restore as restore_memory
from longreel.film.kv_memory.settings import MemorySettingsError
from longreel.film.reel import tensor_file
from longreel.film.reel.choice import fingerprint_story
from longreel.film.reel.groups import KeyframeGroup, KVLogGroup, KVMemoryGroup, ShownKeyframesGroup, StatesGroup
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, save_reel
from longreel.film.reel.takes import takes
from longreel.film.storyboard.shot import Shot, StoryboardError, TimedPrompt
from longreel.film.storyboard.text import parse_storyboard
from longreel.training.dual_cache.samples import SceneShot, TrainingScene, load_scenes, save_scene
from longreel.training.first_frame.dataset import CastDataError, CastSettings, load_dataset
from longreel.training.first_frame.sources import list_clips

from .mutations import broken, mutated, text_of

SHORT = 60
SECONDS = 5.0
MEGABYTES = 1000
"""How much the whole campaign may add to the process's peak."""

KV = KVLayout(layers=1, heads=1, head_dim=6, tokens=2, temporal_channels=4)
MEMORY = MemorySettings(window=9, sink=3, bank=3)
LAYOUT = ReelLayout(16.0, 32, 16, 4, 8, 4, "model", "vae", {"causal": {"layers": 1}})
CACHE = {"vae": "v", "clip": "c", "chunk": 0, "latents": 3, "removed": []}
MARKS = {"quality": 1.0, "source": "generated", "noise_seed": 0, "pinned": False, "banned": False, "characters": ["a"]}


@dataclass(frozen=True)
class Target:
    """A kind of file. refusals: how it may be refused. spoil: a hostile variant, into an empty folder. read: as the
    pack reads it, and uses it.
    """

    refusals: tuple[type[Exception], ...]
    spoil: Callable[[random.Random, Path], None]
    read: Callable[[Path], object]


# Reels


def _good_reel(folder: Path) -> bytes:
    memory = KVMemory(KV, MEMORY, frames_per_block=3, dtype=torch.float32)
    saved = snapshot(memory)
    one_keyframe = {"luma": torch.zeros(4, 4).byte(), "chroma": torch.zeros(2, 2, 2).byte(), "latent": torch.zeros(1)}
    shown = {"uid": "k", "shot": 0, "frame": 1, **MARKS}
    log = {"position": 6, "sink": [0], "window": [0, 1], "bank": [[3]], "scores": [{"3": 0.5}], "picks": [{"3": 1}]}
    reel = Reel.empty(LAYOUT)
    for number, start in enumerate(("cut", "continue")):
        filmed = FilmedShot.store(
            Shot((TimedPrompt(0.0, "A cat."), TimedPrompt(0.5, "It sits.")), 1.0, number, start),  # type: ignore[arg-type]
            torch.randn(1, 4, 3, 2, 4),
            previous=reel.fingerprint,
            settings={"engine": "causal", "sigmas": [1.0, 0.0], "memory": {"window": 9}},
            take_start=start == "cut",
            frames=9,
            tensors={
                "memory": dict(saved.tensors),
                "cache": {f"0.{name}": value for name, value in (one_keyframe | {"embedding": torch.ones(2)}).items()},
            },
            meta={
                "memory": dict(saved.meta),
                "memory_log": [log],
                "memory_edit": {"pin": [3], "ban": [4]},
                "cache": {"shot": number, "bank": [shown], **CACHE},
                "told": [["k"]],
                "states": [["A cat sits."]],
                "transition": {"lead": 1},
            },
            folder=folder,
        )
        reel = reel.append(filmed)
    save_reel(reel, folder / "good")
    return (folder / "good").read_bytes()


def _signed(data: bytes, rng: random.Random) -> bytes:
    """The file with a hostile description or table under a true digest, as one who knows the format writes it."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    metadata = table.pop("__metadata__")
    info = json.loads(metadata["longreel"])
    if rng.random() < 0.8:
        info = mutated(info, rng)
    else:
        table = mutated(table, rng)
    metadata["longreel"] = text_of(info)
    with suppress(ValueError, RecursionError, AttributeError):  # what has no canonical form has no true digest
        metadata["longreel_sha256"] = tensor_file._digest(metadata["longreel"], table)
    if not isinstance(table, dict):
        table = {"x": table}
    header = json.dumps({"__metadata__": metadata, **table}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _use_reel(folder: Path) -> None:
    reel = load_reel(folder / "file")
    reel.describe()
    assert len(reel.fingerprint) in (0, 64)
    takes(reel.shots)
    reel.tail(3)
    for number, shot in enumerate(reel.shots):
        assert reel.latents(number).shape[2] == shot.latent_frames
        if memory := KVMemoryGroup.of(shot):
            assert memory.position >= 0
            restore_memory(
                MemorySnapshot(memory.tensors(), memory.meta), KV, MEMORY, frames_per_block=3, dtype=torch.float32
            )
        if keyframes := KeyframeGroup.of(shot):
            keyframes.own, keyframes.covers  # noqa: B018
        for group in (KVLogGroup.of(shot), ShownKeyframesGroup.of(shot), StatesGroup.of(shot)):
            [list(item) for item in (group.meta if group else ())]
    save_reel(reel, folder / "copy")


def _use_project(folder: Path) -> None:
    (folder / "shot-1.safetensors").write_bytes((folder / "file").read_bytes())
    store = ProjectStore(folder)
    store.explain(fingerprint_story([Shot((TimedPrompt(0.0, "A cat."),))], {"engine": "causal"}))


# Casts and scenes

ENTITIES = [{"picture": "p.png", "name": "thing", "description": "red"}, {"mask": "m.png"}, {"box": [1, 2, 30, 30]}]
CLIPS = [
    {"id": "a1", "clip": "c.mp4", "plate": "m.png", "caption": "A.", "subjects": "s.mp4", "entities": ENTITIES},
]
LINES = [{"file_path": "/home/x/data/videos/a1.mp4", "text": "A", "image_path": "images/a1.png", "type": "video"}]
ITEM = {"fingerprint": "f", "plate": True, "boxes": [{"x": 0, "y": 1, "width": 9, "height": 9}], "owners": [0]}


def spoiled_json(value: Any, name: str) -> Callable[[random.Random, Path], None]:
    def spoil(rng: random.Random, folder: Path) -> None:
        text = text_of(mutated(value, rng))
        data = text.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(broken(data, rng) if rng.random() < 0.3 else data)

    return spoil


def _dataset(rng: random.Random, folder: Path) -> None:
    for name in ("videos/a1.mp4", "images/a1.png", "items/a1.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    lines, item = spoiled_json(LINES, "train_data.json"), spoiled_json(ITEM, "items/a1.json")
    (folder / "train_data.json").write_text(json.dumps(LINES), encoding="utf-8")
    (folder / "items" / "a1.json").write_text(json.dumps(ITEM), encoding="utf-8")
    rng.choice((lines, item))(rng, folder)


def _scene(folder: Path) -> bytes:
    shapes = ((4, 2, 2, 2), (3, 4), (2,), (1, 4, 1, 2, 2), (1, 2))
    shots = tuple(SceneShot(*(torch.ones(shape) for shape in shapes)) for _ in range(2))
    save_scene(TrainingScene("vae", "text", shots), folder / "good.safetensors")
    data = (folder / "good.safetensors").read_bytes()
    (folder / "good.safetensors").unlink()
    return data


def spoiled_tensors(data: bytes) -> Callable[[random.Random, Path], None]:
    def spoil(rng: random.Random, folder: Path) -> None:
        if rng.random() < 0.5:
            (folder / "a.safetensors").write_bytes(broken(data, rng))
            return
        length = int.from_bytes(data[:8], "little")
        header = text_of(mutated(json.loads(data[8 : 8 + length]), rng)).encode()
        (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])

    return spoil


# Texts


def _text(good: str) -> Callable[[random.Random, Path], None]:
    def spoil(rng: random.Random, folder: Path) -> None:
        data = good.encode()
        for _ in range(rng.randint(1, 4)):
            data = broken(data, rng)
        (folder / "file").write_bytes(data)

    return spoil


def _read_text(folder: Path) -> str:
    return (folder / "file").read_bytes().decode("utf-8", "replace")


STORY = "seconds: 2, seed: 3\nA red ball.\n[0.4s] It jumps.\n---\nstart: continue\nIt sits.\n"


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Every kind of file, by name."""
    folder = tmp_path_factory.mktemp("good")
    reel, scene = _good_reel(folder), _scene(folder)
    layout = plan([Size(40, 60), Size(50, 30)], "auto", Size(64, 48), Size(30, 30)).to_json()

    def spoil_reel(rng: random.Random, place: Path) -> None:
        (place / "file").write_bytes(broken(reel, rng) if rng.random() < 0.25 else _signed(reel, rng))

    def read_profile(place: Path) -> None:
        LayoutProfile.from_metadata({next(iter(FILMWEAVER.to_metadata())): _read_text(place)}).spans(16)

    refused = (ReelError, MemoryMismatchError, MemorySettingsError)
    return {
        "reel": Target(refused, spoil_reel, _use_reel),
        "project": Target((), spoil_reel, _use_project),
        "profile": Target((CacheError,), spoiled_json(FILMWEAVER.to_json(), "file"), read_profile),
        "layout": Target(
            (FirstFrameError,),
            spoiled_json(json.loads(layout), "file"),
            lambda place: Layout.from_json(_read_text(place)).boxes,
        ),
        "cast list": Target(
            (CastDataError,),
            spoiled_json(CLIPS, "file"),
            lambda place: list_clips(place / "file", CastSettings(64, 48, 9)),
        ),
        "cast dataset": Target((CastDataError,), _dataset, load_dataset),
        "scenes": Target((CacheError,), spoiled_tensors(scene), load_scenes),
        "storyboard": Target((StoryboardError,), _text(STORY), lambda place: parse_storyboard(_read_text(place))),
        "arrangement": Target(
            (FirstFrameError,),
            _text("canvas 1280 x 720\n2: 0 0 640 360\n1: 0 360 320 360\n"),
            lambda place: parse_arrangement(_read_text(place)),
        ),
    }


KINDS = ("reel", "project", "profile", "layout", "cast list", "cast dataset", "scenes", "storyboard", "arrangement")


def campaign(target: Target, folder: Path, seed: int, budget: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = 0
    for number in range(budget):
        place = folder / str(number)
        place.mkdir()
        target.spoil(random.Random(f"{seed}/{number}"), place)
        start = time.process_time()
        try:
            target.read(place)
            read += 1
        except target.refusals as error:
            said = str(error)
            assert said.endswith("."), f"mutation {number} of seed {seed} is refused by no sentence: {said[-200:]}"
            assert len(said) < 2000, f"mutation {number} of seed {seed} is refused at length"
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed} ends in {type(error).__name__}: {error}") from error
        took = time.process_time() - start
        assert took < SECONDS, f"mutation {number} of seed {seed} takes {took:.1f} s"
        shutil.rmtree(place)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"the campaign of seed {seed} took {grown:.0f} MB"
    assert not target.refusals or read < budget, "nothing was hostile enough to be refused"


@pytest.mark.parametrize("kind", KINDS)
def test_short(kind: str, targets: dict[str, Target], tmp_path: Path):
    campaign(targets[kind], tmp_path, seed=20, budget=SHORT)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_long(kind: str, targets: dict[str, Target], tmp_path: Path):
    seed, budget = os.environ.get("LONGREEL_FUZZ_SEED", "1"), os.environ.get("LONGREEL_FUZZ_BUDGET", "4000")
    campaign(targets[kind], tmp_path, int(seed), int(budget))


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_is_read(kind: str, targets: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without faults nothing is refused: the campaign is about faults and not about files that were none."""
    globals_ = targets[kind].spoil.__globals__
    monkeypatch.setitem(globals_, "mutated", lambda value, rng: value)
    monkeypatch.setitem(globals_, "broken", lambda data, rng: data)
    targets[kind].spoil(random.Random(0), tmp_path)
    targets[kind].read(tmp_path)
