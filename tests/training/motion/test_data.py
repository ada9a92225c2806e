"""Clips with their flow: of the small world, and of videos; encoded once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import av
import pytest
import torch
from longreel.film.motion import pad_flow
from longreel.training.motion.data import (
    MINIATURE,
    Encoders,
    MotionDataError,
    MotionSpec,
    encode_clips,
    load_examples,
    spec_of,
    world_clips,
)
from longreel.training.motion.sources import list_videos, video_clips

SPEC = replace(MINIATURE, frames=5)


class FakeEncoders:
    """A VAE that keeps every fourth frame, and a text encoder that counts letters."""

    def __init__(self):
        self.calls = 0
        self.model = SimpleNamespace(model=SimpleNamespace(process_latent_in=lambda x: x * 2))
        self.vae = SimpleNamespace(encode=self.encode)
        self.clip = SimpleNamespace(
            tokenize=str, encode_from_tokens=lambda text: torch.full((1, 2, 3), float(len(text)))
        )

    def encode(self, frames):
        self.calls += 1
        return frames[::4, ::8, ::8].movedim(-1, 0)[None]

    def all(self, name="tiny"):
        return Encoders(self.model, self.clip, self.vae, name)


def test_clips_are_encoded_once_with_their_flow(tmp_path):
    fake, sources = FakeEncoders(), world_clips(2, SPEC)
    assert encode_clips(sources, fake.all(), SPEC, tmp_path, say=lambda line: None) == 2
    assert fake.calls == 4
    assert encode_clips(sources, fake.all(), SPEC, tmp_path) == 0
    assert fake.calls == 4, "kept"
    examples, empty = load_examples(tmp_path)
    clip = sources[0].make()
    expected = SPEC.codec.encode(pad_flow(clip.flow))[::4, ::8, ::8].movedim(-1, 0) * 2
    assert torch.allclose(examples[0].motion, expected, atol=0.01)
    assert examples[0].text[0, 0] == pytest.approx(len(clip.caption), rel=0.01)
    assert (empty == 0).all()
    assert spec_of(tmp_path) == SPEC
    assert encode_clips(sources, fake.all(), SPEC, tmp_path, measured=True) == 2
    measured = load_examples(tmp_path)[0][0]
    assert measured.flow.shape == (4, 2, 64, 64)
    assert not torch.equal(measured.shuffled, measured.latents)


def test_another_spec_or_model_needs_another_folder(tmp_path):
    fake = FakeEncoders()
    encode_clips(world_clips(1, SPEC), fake.all(), SPEC, tmp_path)
    with pytest.raises(MotionDataError, match="frames 5, not 9"):
        encode_clips([], fake.all(), replace(SPEC, frames=9), tmp_path)
    with pytest.raises(MotionDataError, match="base tiny, not other"):
        encode_clips([], fake.all("other"), SPEC, tmp_path)
    with pytest.raises(MotionDataError, match="no motion dataset"):
        spec_of(tmp_path / "nothing")
    with pytest.raises(MotionDataError, match="no clips"):
        load_examples(tmp_path / "nothing")


def test_clips_of_the_world_move_and_held_out_ones_are_new():
    for held_out in (False, True):
        for source in world_clips(6, SPEC, held_out=held_out):
            assert source.make().flow.abs().max() > 0.1
    names = {source.name for source in (*world_clips(6, SPEC), *world_clips(6, SPEC, held_out=True))}
    assert len(names) == 12


def write(path, colours, count=12, size=(64, 48)):
    """A video of shots, each a ground of noise of its own brightness that moves to the right.

    Its quantiser is fixed: at FFmpeg's default bit rate nothing is left of the second shot's noise, and without texture
    nothing moves.
    """
    generator = torch.Generator().manual_seed(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=16, options={"qmin": "2", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for colour in colours:
            ground = torch.rand(size[1], size[0], 1, generator=generator) * 60 + colour
            for index in range(count):
                frame = ground.expand(-1, -1, 3).clone().roll(2 * index, 1)
                picture = av.VideoFrame.from_ndarray(frame.clamp(0, 255).byte().numpy(), format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode())


def test_videos_are_cut_where_shots_change(tmp_path):
    write(tmp_path / "pan.mp4", (30, 180))
    (tmp_path / "pan.txt").write_text("A pan.\n")
    spec = MotionSpec(32, 32, 5, 16.0, flow_model="blocks")
    sources = video_clips(list_videos(tmp_path), spec, say=lambda line: None)
    starts = [int(source.name.rpartition("-")[2]) for source in sources]
    assert starts == [0, 5, 12, 17], "none across the cut at 12"
    clip = sources[1].make()
    assert clip.frames.shape == (5, 32, 32, 3)
    assert clip.caption == "A pan."
    assert clip.flow[:, 0].median() == pytest.approx(2 * 32 / 48, abs=0.5)
    other = replace(spec, direction="backward_negated")
    assert video_clips(list_videos(tmp_path), other, say=lambda line: None)[1].make().flow[:, 0].median() > 0.5


def test_bad_folders_are_one_sentence(tmp_path):
    with pytest.raises(MotionDataError, match="no videos"):
        list_videos(tmp_path)
    write(tmp_path / "a.mp4", (30,))
    with pytest.raises(MotionDataError, match=r"write a\.txt beside it"):
        list_videos(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(MotionDataError, match="No video holds a clip"):
        video_clips(list_videos(tmp_path), MotionSpec(32, 32, 49), say=lambda line: None)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "b.txt").write_text("x")
    told: list[str] = []
    sources = video_clips(list_videos(tmp_path), MotionSpec(32, 32, 5), say=told.append)
    assert {source.name.rpartition("-")[0] for source in sources} == {"a"}
    assert any(line.startswith("b.mp4 left out: b.mp4 cannot be read") for line in told)
