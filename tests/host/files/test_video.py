"""Films on disk: whole or not there, exact in rate and count, readable by ComfyUI's own video type."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from comfy.cli_args import args
from comfy.model_management import InterruptProcessingException
from longreel.film.reel.atomic import claim
from longreel.host.files.video import VideoFileError, VideoWriter, as_video, workflow_metadata


def _frames(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Flat saturated colours, one per frame, so that a wrong colour matrix or order shows."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.8, 0.8, 0.1]])
    return colours[torch.arange(count) % 4][:, None, None].expand(count, height, width, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [16.0, 23.976, Fraction(30000, 1001)])
def test_round_trip(tmp_path: Path, suffix: str, fps: float | Fraction) -> None:
    frames = _frames(9)
    path = tmp_path / "new" / f"film{suffix}"
    with VideoWriter(path, 48, 32, fps, crf=1, metadata={"prompt": {"1": "a"}, "note": "b"}) as writer:
        for chunk in frames.split([1, 4, 4]):
            writer.write(chunk)
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    video = as_video(path)
    components = video.get_components()
    assert video.get_dimensions() == (48, 32)
    assert components.images.shape == frames.shape
    assert (components.images - frames).abs().mean() < 0.02
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.colorspace == 6
        assert stream.pix_fmt == "yuv420p"
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(tags["prompt"]) == {"1": "a"}
        assert tags["note"] == "b"
        times = [frame.time for frame in container.decode(video=0)]
    step = 1 / float(fps)
    # MP4 keeps exact times; WebM's clock ticks in milliseconds.
    assert times == pytest.approx([i * step for i in range(9)], abs=1e-6 if suffix == ".mp4" else 6e-4)
    if suffix == ".mp4":
        assert video.get_frame_rate() == Fraction(fps).limit_denominator(1001)
        assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_save_video_copies_the_stream(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "film.mp4", 48, 32, 16) as writer:
        writer.write(_frames(5))
    as_video(writer.path).save_to(str(tmp_path / "saved.mp4"), metadata={"workflow": {}})
    with av.open(str(tmp_path / "film.mp4")) as ours, av.open(str(tmp_path / "saved.mp4")) as saved:
        packets = [[bytes(packet) for packet in file.demux(video=0)] for file in (ours, saved)]
    assert packets[0] == packets[1]


def test_a_film_is_named_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 48, 32, 16, place=lambda part: claim(part, tmp_path / "b.mp4")) as writer:
        writer.write(_frames(2))
        path.write_text("another server's")
    assert path.read_text() == "another server's"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("error", [InterruptProcessingException(), ValueError("x")])
def test_leaving_by_an_exception_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    older = tmp_path / "film.mp4"
    older.write_bytes(b"an older film")

    def film() -> None:
        with VideoWriter(older, 48, 32, 16) as writer:
            writer.write(_frames(4))
            raise error

    with pytest.raises(type(error)):
        film()
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]
    assert older.read_bytes() == b"an older film"


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_full_disk(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on file size to stand for a full disk")
    noise = torch.rand(24, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with (
            pytest.raises(VideoFileError, match=r"Cannot write .*: File too large; free some space"),
            VideoWriter(tmp_path / f"film{suffix}", 256, 256, 16, crf=1) as writer,
        ):
            writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VideoFileError, match="choose a folder that can be written"):
        VideoWriter(tmp_path / "file" / "film.mp4", 48, 32, 16)
    (tmp_path / "film.mp4").mkdir()
    with (
        pytest.raises(VideoFileError, match="choose a folder that can be written"),
        VideoWriter(tmp_path / "film.mp4", 48, 32, 16) as writer,
    ):
        writer.write(_frames(1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "film.mp4"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(VideoFileError, match="for example 50x32"):
        VideoWriter(tmp_path / "film.mp4", 49, 32, 16)
    with pytest.raises(VideoFileError, match=r"\.mp4 or \.webm"):
        VideoWriter(tmp_path / "film.avi", 48, 32, 16)
    with pytest.raises(VideoFileError, match="above 0"):
        VideoWriter(tmp_path / "film.mp4", 48, 32, 0)
    with pytest.raises(VideoFileError, match="would be empty"), VideoWriter(tmp_path / "film.mp4", 48, 32, 16):
        pass
    with pytest.raises(VideoFileError, match="same size"), VideoWriter(tmp_path / "a.mp4", 48, 32, 16) as writer:
        writer.write(_frames(1, 32, 64))
    assert list(tmp_path.iterdir()) == []


def test_workflow_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workflow_metadata(None, None) is None
    assert workflow_metadata({"1": {}}, {"workflow": {"nodes": []}}) == {"prompt": {"1": {}}, "workflow": {"nodes": []}}
    monkeypatch.setattr(args, "disable_metadata", True)
    assert workflow_metadata({"1": {}}, None) is None
