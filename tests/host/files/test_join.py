"""Joined films: the frames of their parts, each once and none changed."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from longreel.host.files.join import SOUND_RATE, frame_order, join_videos
from longreel.host.files.video import VideoFileError, VideoWriter


def moving(count: int, first: int) -> torch.Tensor:
    """A bright square that moves over noise, so that the encoder reorders frames."""
    frames = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1) * 0.4
    for i in range(count):
        left = (first + i) % 40
        frames[i, 8:20, left : left + 8] = 0.9
    return frames


def written(path: Path, frames: torch.Tensor) -> Path:
    with VideoWriter(path, 48, 32, 23.976) as writer:
        writer.write(frames)
    return path


def decoded(path: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray() for frame in frames]), [frame.time for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_joined_is_the_parts_and_nothing_else(tmp_path: Path, suffix: str):
    counts = [21, 1, 2, 17]
    starts = [sum(counts[:i]) for i in range(4)]
    parts = [written(tmp_path / f"{i}{suffix}", moving(n, start)) for i, (n, start) in enumerate(zip(counts, starts))]
    target = tmp_path / "new" / f"film{suffix}"
    join_videos(parts, target, metadata={"prompt": {"1": 2}})
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    frames, times = decoded(target)
    assert np.array_equal(frames, np.concatenate([decoded(part)[0] for part in parts]))
    step = 1 / 23.976
    assert times == pytest.approx([i * step for i in range(41)], abs=1e-6 if suffix == ".mp4" else 6e-4)
    assert sorted(frame_order(target)) == list(range(41))
    # As close to the frames as a film that is written at once: no seam.
    once, _ = decoded(written(tmp_path / f"once{suffix}", moving(41, 0)))
    assert once.shape == frames.shape
    assert np.abs(once.astype(int) - frames).mean() < 2
    with av.open(str(target)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(tags["prompt"]) == {"1": 2}
        assert container.streams.video[0].codec_context.colorspace == 6
        if suffix == ".mp4":
            assert container.streams.video[0].average_rate == pytest.approx(23.976)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_sound_is_encoded_once_and_the_pictures_not_at_all(tmp_path: Path, suffix: str):
    parts = [written(tmp_path / f"{i}{suffix}", moving(21, i)) for i in range(2)]
    silent, film = tmp_path / f"silent{suffix}", tmp_path / f"film{suffix}"
    join_videos(parts, silent)
    # A tone of another pitch in each half, the same in both channels, the right one quieter.
    samples = round(42 / 23.976 * SOUND_RATE)
    half = samples // 2
    pitch = torch.where(torch.arange(samples) < half, 500.0, 2000.0)
    tone = torch.sin((pitch / SOUND_RATE).cumsum(0) * 2 * torch.pi)
    join_videos(parts, film, sound=torch.stack([tone, tone / 2]) * 0.5)
    assert packets(film) == packets(silent)
    with av.open(str(film)) as container:
        heard = list(container.decode(audio=0))
        assert {frame.sample_rate for frame in heard} == {SOUND_RATE}
        assert [frame.layout.name for frame in heard[:1]] == ["stereo"]
        assert abs(float(heard[0].pts * heard[0].time_base)) < 0.001
        played = torch.from_numpy(np.concatenate([frame.to_ndarray() for frame in heard], axis=1))
        streams = [stream.duration * stream.time_base for stream in container.streams if stream.duration]
    # As long as the pictures but for a frame of the codec, and every sample where it was.
    assert samples <= played.shape[1] + 1024
    assert played.shape[1] <= samples + 2048
    assert all(length == pytest.approx(42 / 23.976, abs=0.05) for length in streams)
    for start in (2000, half - 4000, half + 2000, samples - 6000):
        wanted = torch.stack([tone, tone / 2])[:, start : start + 2000] * 0.5
        assert (played[:, start : start + 2000] - wanted).abs().max() < 0.05


def packets(path: Path) -> list[tuple[bytes, int, int]]:
    """What a video stream holds, and when."""
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]


def test_what_cannot_be_joined_leaves_nothing(tmp_path: Path):
    part = written(tmp_path / "part.mp4", moving(5, 0))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VideoFileError, match="Cannot write"):
        join_videos([part], tmp_path / "file" / "film.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(part.read_bytes()[:-1])
    assert len(frame_order(cut)) == 4
    assert frame_order(tmp_path / "none.mp4") == []
    assert not list(tmp_path.glob("*.part"))
