"""One reader for pictures, one for footage: every format by every way in, against core's reading."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl
from longreel.film.picture_reader import PictureError, on_white, read_cut_out, read_mask, read_picture
from longreel.film.video_reader import VideoReader, VideoReadError, list_videos
from longreel.host.files.pictures import load_cut_out, load_picture
from longreel.host.media.source import footage_of
from longreel.nodes.first_frame_compose import LongreelReference
from longreel.training.dual_cache.scenes.films import list_films, take_frames
from longreel.training.first_frame.dataset import CastSettings, read_frames
from longreel.training.first_frame.sources import list_clips
from longreel.training.instruction.data import read_frames as instruction_frames
from longreel.training.motion.data import MotionSpec
from longreel.training.motion.sources import _stream
from PIL import Image

import nodes as core_nodes

from .media_files import PICTURES, WIDTH, grey16, ramp, rgb, rgba, write_video

LEVEL = 1.1 / 255
SIZE = (64, 48)
TRANSPARENT = {"rgba.png", "grey-alpha.png", "palette.png", "rgba.webp"}
CORE_TURNS_WRONGLY = {"mirrored.jpg"}


@pytest.fixture(autouse=True)
def _input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


# Pictures


def cast_plate(path: Path) -> torch.Tensor:
    """The picture as the plate of a cast list."""
    write_video(path.parent / "clip.mp4", times=[i / 16 for i in range(9)])
    entry = {"id": "a", "clip": "clip.mp4", "plate": path.name, "entities": [{"box": [1, 1, 20, 20]}]}
    (path.parent / "list.json").write_text(json.dumps([entry]), encoding="utf-8")
    plate = list_clips(path.parent / "list.json", CastSettings(64, 48, 9))[0].load().plate
    assert plate is not None
    return plate


PICTURE_READERS: dict[str, Callable[[Path], torch.Tensor]] = {
    "storyboard": lambda path: load_picture(path.name)[0],
    "cut-out": lambda path: on_white(load_cut_out(path.name)[0]),
    "cast list": cast_plate,
    "bytes": lambda path: read_picture(io.BytesIO(path.read_bytes())),
}


@pytest.mark.parametrize("reader", PICTURE_READERS)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_core_s_upright_and_on_white(name: str, reader: str, tmp_path: Path):
    path = tmp_path / name
    PICTURES[name](path)
    found = PICTURE_READERS[reader](path)
    image, mask = core_nodes.LoadImage().load_image(name)
    expected = image[0, ..., :3]
    if name in TRANSPARENT:
        assert mask.shape[1:] == expected.shape[:2]
        expected = on_white(torch.cat([expected, 1 - mask[0, ..., None]], dim=-1))
        assert (found[:, WIDTH // 2 + 1 :] == 1).all(), "nothing that is hidden is filmed"
    if name in CORE_TURNS_WRONGLY:
        expected = expected.flip(0)
    # Decoders of lossy formats differ by a level or two.
    assert apart(found, expected) <= (4 * LEVEL if name.endswith(("jpg", "webp")) else LEVEL)
    if name.endswith("jpg"):
        assert apart(found, torch.from_numpy(ramp()).float()) < 0.05


def test_a_cut_out_keeps_its_opacity_and_a_mask_counts_what_is_hidden_as_black(tmp_path: Path):
    rgba().save(tmp_path / "a.png")
    alpha = read_cut_out(tmp_path / "a.png")[..., 3]
    assert (alpha[:, : WIDTH // 2] == 1).all()
    assert (alpha[:, WIDTH // 2 :] == 0).all()
    white = Image.new("RGBA", (8, 6), (255, 255, 255, 255))
    white.paste((255, 255, 255, 0), (4, 0, 8, 6))
    white.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").mean() == 0.5
    grey16().save(tmp_path / "grey.png")
    assert apart(read_mask(tmp_path / "grey.png"), torch.from_numpy(ramp()[..., 0]).float()) <= LEVEL


def _noise(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))


def _cut(path: Path) -> None:
    PICTURES["rgba.png"](path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def _page(path: Path) -> None:
    path.write_text("<!doctype html><title>Not found</title>", encoding="utf-8")


def _wide(path: Path) -> None:
    """A PNG's header that claims 100,000 x 100,000 pixels."""
    rgb().save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_noise, "is not a picture that can be read"),
        (_cut, "is cut short: copy or download it again"),
        (_page, "is not a picture that can be read"),
        (_wide, "(is not a picture|scale it down)"),
        (lambda path: path.write_bytes(b""), "is not a picture"),
        (lambda path: path.mkdir(), r"cannot be read as a picture: Is a directory\."),
        (lambda path: None, r"cannot be read as a picture: No such file or directory\."),
        (lambda path: Image.new("F", (4, 4)).save(path, format="TIFF"), "save it with 8 or 16 bits"),
        (lambda path: Image.new("I", (4, 4), 70000).save(path, format="TIFF"), "save it with 8 or 16"),
    ],
)
def test_what_is_no_picture_is_one_sentence(make: Callable[[Path], Any], words: str, tmp_path: Path):
    make(tmp_path / "a.png")
    with pytest.raises(PictureError, match=words):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("cut_out", ["mask (1 = keep)", "mask (1 = remove)"])
def test_core_s_placeholder_mask_is_no_mask_in_either_mode(cut_out: str, tmp_path: Path):
    rgb().save(tmp_path / "a.png")
    image, mask = core_nodes.LoadImage().load_image("a.png")
    assert mask.shape[1:] == (64, 64)
    made = LongreelReference.execute(image, "mug", "", cut_out, mask).result[0]
    assert made.picture.getchannel("A").getextrema() == (255, 255)


# Footage

# 4 frames at 4 a second, then 10 at 16: the mean rate is some 8.6.
VARIABLE = [0, 0.25, 0.5, 0.75, *(round(1 + i / 16, 3) for i in range(10))]


def _through(number: int) -> np.ndarray:
    """Grey, with a transparent right half over magenta."""
    picture = np.full((SIZE[1], SIZE[0], 4), 20 * number, np.uint8)
    picture[..., 3] = 255
    picture[:, SIZE[0] // 2 :] = (255, 0, 255, 0)
    return picture


FOOTAGE: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": lambda path: write_video(path),
    "odd.mp4": lambda path: write_video(path, size=(50, 34)),
    "10-bit.mp4": lambda path: write_video(path, pixels="yuv444p10le"),
    "turned-90.mp4": lambda path: write_video(path, turned=90),
    "turned-180.mp4": lambda path: write_video(path, turned=180),
    "turned-270.mov": lambda path: write_video(path, turned=270),
    "vp9.webm": lambda path: write_video(path, "libvpx-vp9"),
    "mjpeg.avi": lambda path: write_video(path, "mjpeg", "yuvj420p"),
    "mpeg4.mkv": lambda path: write_video(path, "mpeg4"),
    "ffv1.mkv": lambda path: write_video(path, "ffv1", "yuv420p"),
    "rgb.mov": lambda path: write_video(path, "png", "rgb24"),
    "alpha.mov": lambda path: write_video(path, "png", "rgba", colours=_through),
    "variable.mp4": lambda path: write_video(path, times=VARIABLE),
}


def measured(path: Path) -> torch.Tensor:
    """As a report on a VIDEO reads it."""
    return torch.cat(list(footage_of(None, 0, InputImpl.VideoFromFile(str(path)), None, None).stream()))


def spread(path: Path, count: int, size: tuple[int, int]) -> torch.Tensor:
    return instruction_frames(path, count, *size)


FOOTAGE_READERS: dict[str, Callable[[Path, int, float, tuple[int, int]], torch.Tensor]] = {
    "report": lambda path, count, fps, size: measured(path),
    "cast": lambda path, count, fps, size: read_frames(path, count)[0],
    "instruction": lambda path, count, fps, size: spread(path, count, size),
    "motion": lambda path, count, fps, size: torch.cat(
        list(_stream(path, MotionSpec(width=size[0], height=size[1], frames=9, fps=fps)))
    ),
    "scenes": lambda path, count, fps, size: take_frames(path, [(i + 0.5) / fps for i in range(count)], size),
}


@pytest.mark.parametrize("reader", FOOTAGE_READERS)
@pytest.mark.parametrize("name", FOOTAGE)
def test_footage_is_core_s_at_its_own_times_and_on_white(name: str, reader: str, tmp_path: Path):
    path = FOOTAGE[name](tmp_path / name)
    core = InputImpl.VideoFromFile(str(path)).get_components()
    expected, fps = core.images, float(core.frame_rate)
    if core.alpha is not None:
        expected = on_white(torch.cat([expected, core.alpha], dim=-1))
        assert (expected[:, :, SIZE[0] // 2 :] == 1).all()
    if name == "variable.mp4":
        assert fps == pytest.approx(14 / 1.625, abs=0.1)
        shown = [max(i for i, time in enumerate(VARIABLE) if time <= (n + 0.5) / fps) for n in range(14)]
        assert len(set(shown)) < len(shown), "the slow half has each frame twice"
        expected = expected[shown]
    height, width = expected.shape[1:3]
    found = FOOTAGE_READERS[reader](path, len(expected), fps, (width, height))
    assert apart(found, expected) < 1e-6
    assert (width < height) == (name in {"turned-90.mp4", "turned-270.mov"})


def test_turned_footage_lies_as_it_is_watched(tmp_path: Path):
    """Red grows to the right as it is stored; turned clockwise it grows downwards."""
    frames, _ = read_frames(write_video(tmp_path / "a.mp4", turned=90))
    assert frames[0, -1, :, 0].mean() - frames[0, 0, :, 0].mean() > 0.8
    assert frames[0, :, 0, 1].mean() - frames[0, :, -1, 1].mean() > 0.8


@pytest.mark.parametrize("fps", [4.0, 8.0, 24.0])
def test_another_rate_keeps_the_speed(fps: float, tmp_path: Path):
    with VideoReader(write_video(tmp_path / "a.mp4", times=VARIABLE)) as video:
        assert video.duration == pytest.approx(1.625, abs=0.07)
        times = [frame.time for frame in video.at_rate(fps)]
        again = [frame.time for frame in video.at_rate(fps)]
    assert times == again
    assert len(times) == round(1.625 * fps)
    assert all(shown - 1e-3 <= (n + 0.5) / fps < shown + 0.251 for n, shown in enumerate(times))


def test_frames_at_times_are_found_from_a_later_place_too(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", times=[i / 16 for i in range(48)])
    with VideoReader(path) as video:
        found = [frame.time for frame in video.at_times([2.0, 2.55, 9.0])]
        assert found == pytest.approx([2.0, 2.5, 47 / 16], abs=1e-3)
        assert [frame.time for frame in video.at_times([0.0, 0.13])] == pytest.approx([0, 0.125])


def test_hidden_files_are_no_films(tmp_path: Path):
    """The ._ files that macOS leaves beside each film on other disks, and a folder that is called like a film."""
    write_video(tmp_path / "up.mp4")
    (tmp_path / "._up.mp4").write_bytes(b"\x00\x05\x16\x07" + bytes(20))
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in list_videos(tmp_path)] == ["up.mp4"]
    assert list_films(tmp_path) == list_videos(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x00\x05\x16\x07" + bytes(20), b"<html></html>", bytes(1000)])
def test_what_is_no_footage_is_one_sentence(data: bytes, tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(VideoReadError, match=r"^a\.mp4 cannot be read as a video \(.*\): use another copy\.$"):
        VideoReader(tmp_path / "a.mp4")


def test_sound_alone_is_no_footage(tmp_path: Path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoReadError, match="has no pictures that can be decoded"):
        VideoReader(tmp_path / "a.mp4")
