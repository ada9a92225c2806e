"""Shots as clips: a film joined of them shows what decoding in one go shows, and nothing is decoded twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from longreel.film.reel.choice import rebased
from longreel.film.reel.project import ProjectStore
from longreel.film.reel.reel import FilmedShot, Reel, ReelLayout
from longreel.film.storyboard.shot import Shot, TimedPrompt
from longreel.host.families.wan import StreamingDecoder
from longreel.host.files.join import join_videos
from longreel.host.media.clips import Clip, clip_steps, clips_of, decode_clips, number_clips
from longreel.host.media.decode import film_frames
from longreel.host.media.pictures import Pictures

from ... import tiny_models

SIZE, FPS = 32, 16.0
SHOTS = [("cut", 3, 8), ("continue", 3, 13), ("cut", 2, 5), ("continue", 3, 12)]
"""How each starts, its latent frames and its frames."""


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=tiny_models.vae_weights())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Latent frames of each call of a decoder."""
    calls: list[int] = []
    decode = StreamingDecoder.decode

    def counted(self: StreamingDecoder, latents: torch.Tensor):
        calls.append(latents.shape[2])
        return decode(self, latents)

    monkeypatch.setattr(StreamingDecoder, "decode", counted)
    return calls


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: comfy.sd.VAE) -> Callable[..., Reel]:
    """film(): a reel of SHOTS in a project. film(seeds=...): other takes of some."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    store = ProjectStore(tmp_path / "longreel" / "film")

    def reel(seeds: tuple[int, ...] = (0, 1, 2, 3), project: bool = True) -> Reel:
        channels = vae.latent_channels
        space = {"latent_channels": channels, "spatial_compression": 8, "temporal_compression": 4}
        film = Reel.empty(ReelLayout(fps=FPS, width=SIZE, height=SIZE, model="m", vae="v", engine={}, **space))
        for (start, latents, frames), seed in zip(SHOTS, seeds):
            filmed = FilmedShot.store(
                Shot((TimedPrompt(0, "a"),), 1.0, seed, start),  # type: ignore[arg-type]
                torch.randn(1, channels, latents, 4, 4, generator=torch.Generator().manual_seed(seed)),
                previous=film.fingerprint,
                settings={},
                take_start=start == "cut",
                frames=frames,
                folder=tmp_path,
            )
            film = film.append(store.add(filmed) if project else filmed)
        return film

    return reel


def clips(reel: Reel, vae: comfy.sd.VAE, shots: range = range(4)) -> tuple[list[Clip], list[Clip]]:
    every = clips_of(reel, [vae], shots, ".mp4", FPS)
    return every, [clip for clip in every if not clip.is_whole()]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def make(reel: Reel, vae: comfy.sd.VAE, watch: Callable[[int, torch.Tensor], object] = lambda *_: None) -> list[Clip]:
    every, missing = clips(reel, vae)
    decode_clips(reel, [vae], missing, FPS, watch)
    return every


def test_a_joined_film_is_the_film(film: Callable[..., Reel], vae: comfy.sd.VAE, tmp_path: Path):
    reel, seen = film(), []
    every = make(reel, vae, lambda position, frames: seen.append((position, frames.clone())))
    whole = torch.cat(list(film_frames(reel, vae)))
    assert len(whole) == reel.frames
    assert torch.equal(torch.cat([frames for _, frames in seen]), whole)
    assert [position for position, _ in seen] == list(np.cumsum([0, *(len(frames) for _, frames in seen)])[:-1])
    join_videos([clip.path for clip in every], tmp_path / "film.mp4")
    shown = frames_of(tmp_path / "film.mp4")
    assert len(shown) == reel.frames
    error = np.abs(shown - whole.mul(255).numpy()).mean(axis=(1, 2, 3))
    wrong = np.abs(np.roll(shown, 1, axis=0) - whole.mul(255).numpy()).mean(axis=(1, 2, 3))
    assert error.max() < wrong.min()


def test_only_new_shots_are_decoded(film: Callable[..., Reel], vae: comfy.sd.VAE, decoded: list[int]):
    reel = film()
    first = make(reel, vae)
    assert sum(decoded) == 11
    decoded.clear()
    assert make(film(), vae) == first
    assert clip_steps(reel, [vae], clips(reel, vae)[1]) == 0
    assert decoded == []
    # Another second shot, and the rest kept: the first two, which decode in one stream, are decoded again, and the clip
    # of the first stays.
    other = film((0, 7))
    for shot in reel.shots[2:]:
        other = other.append(rebased(shot, other.fingerprint))
    kept = [clip.path.stat().st_mtime_ns for clip in first]
    again = make(other, vae)
    assert sum(decoded) == 6
    assert [one.path == two.path for one, two in zip(first, again)] == [True, False, True, True]
    assert [clip.path.stat().st_mtime_ns for clip in first] == kept
    # A clip that is damaged, or has no poster, is made again.
    first[0].path.write_bytes(first[0].path.read_bytes()[:-200])
    first[2].poster.unlink()
    assert [clip.shot for clip in clips(reel, vae)[1]] == [0, 2]
    decoded.clear()
    make(reel, vae)
    assert sum(decoded) == 3 + 2


def test_an_interrupt_keeps_what_is_whole(film: Callable[..., Reel], vae: comfy.sd.VAE, decoded: list[int]):
    reel = film()

    def stop(position: int, frames: torch.Tensor) -> None:
        if position >= 10:
            raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        make(reel, vae, stop)
    every, missing = clips(reel, vae)
    assert [clip.shot for clip in missing] == [1, 2, 3]
    assert sorted(file.name for file in every[0].path.parent.iterdir()) == sorted(
        [every[0].path.name, every[0].poster.name, every[1].poster.name]
    )
    make(reel, vae)
    assert clips(reel, vae)[1] == []


def test_a_person_finds_the_film(film: Callable[..., Reel], vae: comfy.sd.VAE):
    reel = film()
    every = make(reel, vae)
    folder = every[0].path.parent.parent
    number_clips(reel, every)
    names = [f"{number:03}{suffix}" for number in range(1, 5) for suffix in (".jpg", ".mp4")]
    assert sorted(path.name for path in folder.glob("*.*") if path.suffix != ".safetensors") == names
    for clip in every:
        assert (folder / f"{clip.shot + 1:03}.mp4").samefile(clip.path)
    # The film got shorter: what is behind it goes, and takes do not.
    shorter = reel.branch(3)
    number_clips(shorter, every[:3])
    assert not list(folder.glob("004.*"))
    assert len(list(folder.glob("shot-*.safetensors"))) == 4
    # Old takes go with their clips.
    store = ProjectStore(folder)
    store.prune({shot.fingerprint for shot in shorter.shots}, dry_run=True)
    assert every[3].is_whole()
    store.prune({shot.fingerprint for shot in shorter.shots}, dry_run=False)
    assert not every[3].path.exists()
    assert every[2].is_whole()


def test_a_film_without_a_project_has_its_clips_for_a_while(
    film: Callable[..., Reel], vae: comfy.sd.VAE, tmp_path: Path
):
    reel = film(project=False)
    every = make(reel, vae)
    number_clips(reel, every)
    assert {clip.path.parent for clip in every} == {tmp_path / "temp" / "longreel" / "clips"}
    assert not list((tmp_path / "longreel" / "film").iterdir())
    # Another rate, size or VAE is another clip.
    assert clips_of(reel, [vae], range(4), ".mp4", 24.0)[0].path != every[0].path
    larger = replace(reel, layout=replace(reel.layout, width=64))
    assert clips_of(larger, [vae], range(4), ".mp4", FPS)[0].path != every[0].path


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (6, 10), (20, 38), (37, 38)])
def test_pictures_are_kept(film: Callable[..., Reel], vae: comfy.sd.VAE, decoded: list[int], start: int, stop: int):
    reel = film()
    whole = torch.cat(list(film_frames(reel, vae)))
    every, missing = clips(reel, vae)
    decoded.clear()
    pictures = Pictures(every, start, stop)
    decode_clips(reel, [vae], missing, FPS, pictures.see)
    assert torch.equal(pictures.finish(reel, [vae]), whole[start:stop])
    assert sum(decoded) == 11, "what was decoded for the clips is not decoded for the pictures"
    decoded.clear()
    again = Pictures(every, start, stop)
    assert again.kept == (stop - start <= 16)
    assert torch.equal(again.finish(reel, [vae]), whole[start:stop])
    assert bool(decoded) != again.kept
