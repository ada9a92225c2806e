"""Videos measured end to end: sources that agree, figures of pictures whose embedding is known, what streams."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.image_encoders.dino2 import Dinov2Model
from comfy_api.latest import InputImpl, Types
from longreel.film.first_frame import Reference
from longreel.film.metrics import Character, MetricsError
from longreel.film.reel.reel import FilmedShot, Reel, ReelLayout
from longreel.film.storyboard.text import Storyboard, parse_storyboard
from longreel.host.files.video import VideoWriter
from longreel.host.media.measure import ContinuityOptions, measure_continuity, measure_identity
from longreel.host.media.source import Footage, footage_of, pick

from ... import tiny_models

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "white": (1.0, 1.0, 1.0)}


class ColourClip:
    """An embedder whose space is colour: a picture is its mean colour, a text the sum of the colours it names."""

    name, fingerprint = "colours", "0" * 64

    def images(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.mean(dim=(1, 2)), dim=-1)

    def text(self, prompt: str, whole: bool = False) -> torch.Tensor:
        parts = [prompt] if whole else prompt.split(". ")
        rows = [sum(torch.tensor(COLOURS[name]) for name in COLOURS if name in part) for part in parts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


CLIP: Any = ColourClip()


def plain(*names: str, frames: int = 8) -> torch.Tensor:
    """A film of shots of one colour each, 24 x 32."""
    return torch.cat([torch.tensor(COLOURS[name]).expand(frames, 24, 32, 3) for name in names]).contiguous()


def board(*prompts: str, seconds: float = 1) -> Storyboard:
    return parse_storyboard("\n---\n".join(f"seconds: {seconds}\n{prompt}" for prompt in prompts))


def measure(footage: Footage, story: Storyboard | None = None, who: Any = (), boxes: Any = None, **options: Any) -> Any:
    shots = story.shots if story else ()
    return measure_continuity(footage, CLIP, shots, who, boxes, ContinuityOptions(**options)).report


def film(images: torch.Tensor, fps: float = 8) -> Footage:
    return footage_of(images, fps, None, None, None)


def test_cuts_are_found_and_shots_follow_their_prompts():
    report = measure(film(plain("red", "blue", "red")), board("red", "red and blue", "green. red"))
    assert [(shot.start, shot.stop) for shot in report.shots] == [(0, 8), (8, 16), (16, 24)]
    assert [shot.keyframes for shot in report.shots] == [(4,), (12,), (20,)]
    half = 100 * 0.5**0.5
    assert [shot.alignment for shot in report.shots] == pytest.approx([100, half, half], abs=1e-4)
    assert [shot.alignment_sentences for shot in report.shots] == pytest.approx([100, half, 50], abs=1e-4)
    assert [pair.consistency for pair in report.pairs] == pytest.approx([0, 100, 0], abs=1e-4)
    assert report.film["all-shots consistency"] == pytest.approx(100 / 3, abs=1e-4)
    assert report.shots[2].copy == pytest.approx(100, abs=1e-4)
    # Red to blue: a third of the values fall and a third rise, by 1; within shots nothing changes.
    assert report.shots[1].cut == pytest.approx(255 * 2 / 3, rel=1e-4)
    assert report.film["dynamic degree"] == 0


def test_prompts_change_inside_a_shot():
    story = parse_storyboard("seconds: 2\nred\n[1s] blue")
    report = measure(film(plain("red", frames=16)), story, keyframes=2)
    assert report.shots[0].keyframes == (4, 12)
    assert report.shots[0].alignment == pytest.approx(50, abs=1e-3), "red is said first, then blue"


def test_characters_in_boxes():
    frames = plain("white", "green")
    frames[:8, 2:12, 2:12] = torch.tensor(COLOURS["red"])
    frames[:8, 2:12, 18:30] = torch.tensor(COLOURS["blue"])
    frames[8:, 10:20, 10:20] = torch.tensor(COLOURS["red"])
    red, blue = {"x": 2, "y": 2, "width": 10, "height": 10}, {"x": 18, "y": 2, "width": 12, "height": 10}
    boxes = [[blue, red], [{"x": 10, "y": 10, "width": 10, "height": 10}]]
    who = (Character("Ruby", "a red one"), Character("Sky", "a blue one"))
    report = measure(film(frames), None, who, boxes)
    assert report.shots[0].characters.keys() == {"Ruby", "Sky"}
    assert report.shots[1].characters == {"Ruby": pytest.approx(100, abs=1e-4)}
    assert report.film["character consistency"] == pytest.approx(100, abs=1e-4)
    assert report.film["characters skipped"] == 1
    assert report.boxes[0] == ({**red, "label": "Ruby"}, {**blue, "label": "Sky"})
    again = measure(film(frames), None, who, [list(each) for each in report.boxes])
    assert again.film == report.film, "a report's own boxes give the same report"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, 32, 24, 8, crf=1) as writer:
        writer.write(plain("red", "blue", "green", frames=12))
    return path


def test_a_file_a_trimmed_one_and_pictures_agree(written: Path):
    file = InputImpl.VideoFromFile(str(written))
    whole = measure(footage_of(None, 24, file, None, None))
    assert [(shot.start, shot.stop) for shot in whole.shots] == [(0, 12), (12, 24), (24, 36)]
    assert whole.film["seconds"] == 4.5
    parts = file.get_components()
    assert parts.frame_rate == 8
    same = measure(film(parts.images))
    for name, value in whole.film.items():
        assert same.film[name] == pytest.approx(value, abs=0.5) if value is not None else True
    trimmed = file.as_trimmed(start_time=1.5)
    assert [shot.stop for shot in measure(footage_of(None, 24, trimmed, None, None)).shots] == [12, 24]
    made = InputImpl.VideoFromComponents(Types.VideoComponents(images=parts.images, frame_rate=Fraction(8)))
    assert measure(footage_of(None, 24, made, None, None)).film == same.film


def test_a_long_video_does_not_pile_up():
    """Frames are made as they are asked for, and those handed out before are gone."""
    import weakref

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def stream() -> Any:
        nonlocal most
        for piece in range(30):
            frames = torch.full((16, 24, 32, 3), 0.2 if piece < 15 else 0.8)
            alive.add(frames)
            most = max(most, len(alive))
            yield frames
            del frames

    report = measure(Footage(16, stream, None))
    assert [shot.stop for shot in report.shots] == [240, 480]
    assert most <= 3


VAE_ID, FPS = "vae", 16.0


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=tiny_models.vae_weights())


def reel(*shots: str) -> Reel:
    made = Reel.empty(ReelLayout(FPS, 32, 24, 16, 8, 4, "model", VAE_ID, {}))
    for number, shot in enumerate(parse_storyboard("\n---\n".join(shots)).shots):
        cut = shot.start == "cut"
        latents = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(number))
        filmed = FilmedShot.store(
            shot, latents, previous=made.fingerprint, settings={}, take_start=cut, frames=5 if cut else 8
        )
        made = made.append(filmed)
    return made


def test_a_reel_brings_its_shots_and_prompts(vae: comfy.sd.VAE):
    shots = ("seconds: 0.3\nred", "seconds: 0.5, start: continue\nblue", "seconds: 0.3\ngreen")
    footage = footage_of(None, 24, None, reel(*shots), vae)
    report = measure(footage)
    assert [(shot.start, shot.stop) for shot in report.shots] == [(0, 5), (5, 13), (13, 18)]
    assert [shot.begins for shot in report.shots] == ["cut", "continue", "cut"]
    assert [shot.prompt for shot in report.shots] == ["red", "blue", "green"]
    assert report.shots[1].cut is None
    assert report.options["shots from"] == "the reel"
    decoded = torch.cat(list(footage.stream()))
    pictures = pick(footage, (2, 9, 15))
    assert torch.equal(pictures, decoded[[2, 9, 15]].cpu())
    assert report.shots[1].alignment == pytest.approx(
        100 * float(CLIP.images(pictures[1:2]) @ CLIP.text("blue").T), abs=1e-3
    )


BOX = {"x": 2, "y": 2, "width": 4, "height": 4}


def test_faults_are_told_in_one_sentence(vae: comfy.sd.VAE):
    two = film(plain("red", "blue"))
    filmed = reel("seconds: 0.3\nred")

    class NoVae:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("nothing may be decoded before bad input is refused")

    untouched = footage_of(None, 24, None, filmed, NoVae())  # type: ignore[arg-type]
    cases: list[tuple[Any, str]] = [
        (lambda: footage_of(None, 24, None, None, None), "nothing is connected"),
        (lambda: footage_of(plain("red"), 24, None, filmed, vae), "images and reel are connected"),
        (lambda: footage_of(None, 24, None, filmed, None), "connect the VAE"),
        (lambda: footage_of(None, 24, None, Reel.empty(filmed.layout), vae), "The reel is empty"),
        (lambda: film(torch.zeros(3, 8, 8)), "must be RGB"),
        (lambda: measure(film(torch.zeros(0, 8, 8, 3))), "no frames"),
        (lambda: measure(two, board("red", "blue", "red")), "The storyboard has 3 shots, but 2 are in the video"),
        (lambda: measure(two, board("red", "blue"), cuts="0.5, 1"), "but 3 are given by the cut times"),
        (lambda: measure(two, cuts="2"), "behind the video's end"),
        (lambda: measure(two, None, (), [[BOX]]), "There are 2 pictures and boxes for 1"),
        (lambda: measure(two, None, (), [[BOX], [BOX | {"x": 99}]]), "picture 2 lies outside the frame of 32 x 24"),
        (lambda: measure(untouched, board("red", "blue")), "but 1 is on the reel"),
        (lambda: measure(untouched, cuts="0.1"), "A reel knows its own cuts"),
        (lambda: measure(untouched, None, (), [[BOX | {"y": 24}]]), "lies outside the frame of 32 x 24"),
    ]
    for act, words in cases:
        with pytest.raises(MetricsError, match=words):
            act()


def test_what_could_not_be_measured_is_said():
    report = measure(film(plain("red", "blue")), None, (Character("Ruby", "red"),))
    assert any("No prompts" in note for note in report.notes)
    assert any("No boxes" in note for note in report.notes)
    assert report.film["all-shots alignment"] is report.film["character consistency"] is None


def refer(colour: str, name: str) -> Reference:
    return Reference.from_image(torch.tensor(COLOURS[colour]).expand(1, 8, 8, 3), None, name)


class Dino:
    """core's CLIP_VISION around a small DINOv2."""

    def __init__(self) -> None:
        config = {
            "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "layer_norm_eps": 1e-6,
            "use_swiglu_ffn": False, "patch_size": 14, "image_size": 28, "model_type": "dinov2",
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }  # fmt: skip
        from comfy.clip_vision import ClipVisionModel

        self.model = ClipVisionModel(config)
        assert isinstance(self.model.model, Dinov2Model)
        self.model.model.load_state_dict(tiny_models.random_weights(self.model.model, 11))


def test_who_is_missing_when():
    frames = plain("white", "white", "white", frames=16)
    frames[:16, 0:12, 0:12] = torch.tensor(COLOURS["red"])
    frames[16:32, 12:24, 12:24] = torch.tensor(COLOURS["blue"])
    frames[32:, 0:12, 0:12] = torch.tensor(COLOURS["red"])
    frames[32:, 12:24, 12:24] = torch.tensor(COLOURS["blue"])
    cast = [refer("red", "ball"), refer("blue", "")]
    dino = Dino().model
    report, shown = measure_identity(film(frames), cast, CLIP, dino, None, 6, 0.95)
    assert report.frames == (4, 12, 20, 28, 36, 44)
    assert torch.equal(shown, frames[list(report.frames)])
    ball, other = report.references
    assert (ball.name, other.name) == ("ball", "reference 2")
    assert ball.missing == ((2.5, 4.5),)
    assert other.missing == ((0.0, 2.5),)
    assert ball.seen == pytest.approx(100 * 4 / 6)
    assert ball.looks[0].clip == pytest.approx(100, abs=1e-4)
    # The window that is all red looks to DINO exactly like the reference.
    assert ball.looks[0].dino == pytest.approx(100, abs=1e-2)
    assert ball.looks[2].dino < 99.99
    assert report.model["DINO"] == "Dinov2Model"


def test_boxes_of_a_detector_are_enough():
    frames = plain("white", frames=8)
    frames[:, 0:12, 0:12] = torch.tensor(COLOURS["red"])
    cast = [refer("red", "ball"), refer("blue", "sea")]
    red = {"x": 0, "y": 0, "width": 12, "height": 12}
    report, _ = measure_identity(film(frames), cast, CLIP, None, [[red], []], 2, 0.9)
    ball, sea = report.references
    assert ball.seen == 50
    assert ball.missing == ((0.75, 1.0),)
    assert sea.seen == 0
    with pytest.raises(MetricsError, match="There are 2 pictures and boxes for 1"):
        measure_identity(film(frames), cast, CLIP, None, [[red]], 2, 0.9)
