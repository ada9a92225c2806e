"""A film's sound out of ComfyUI's AUDIO, and on reels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from longreel.film.reel.choice import rebased
from longreel.film.reel.reel import FilmedShot, Reel, ReelError, ReelLayout, load_reel, save_reel
from longreel.film.storyboard.shot import Shot, TimedPrompt
from longreel.host.files.join import SOUND_RATE
from longreel.host.media.sound import film_sound, part_of_sound, samples_of, with_sound

LAYOUT = ReelLayout(
    fps=16.0,
    width=32,
    height=16,
    latent_channels=4,
    spatial_compression=8,
    temporal_compression=4,
    model="m",
    vae="v",
    engine={},
)


def tone(seconds: float, rate: int, pitch: float = 440.0, channels: int = 1) -> dict[str, Any]:
    wave = torch.sin(torch.arange(round(seconds * rate)) * (2 * torch.pi * pitch / rate)) * 0.5
    return {"waveform": wave.expand(1, channels, -1), "sample_rate": rate}


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reel]:
    """film(frames, ...): a reel of shots of so many frames."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))

    def reel(*frames: int) -> Reel:
        made = Reel.empty(LAYOUT)
        for seed, count in enumerate(frames):
            filmed = FilmedShot.store(
                Shot((TimedPrompt(0, "a"),), 1.0, seed),
                torch.zeros(1, 4, 1, 2, 4),
                previous=made.fingerprint,
                settings={},
                take_start=True,
                frames=count,
                folder=tmp_path,
            )
            made = made.append(filmed)
        return made

    return reel


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_any_rate_is_heard_at_the_same_time(rate: int):
    heard = samples_of(tone(1.0, rate))
    assert heard.shape == (2, SOUND_RATE)
    inner = slice(2000, SOUND_RATE - 2000)
    assert (heard - samples_of(tone(1.0, SOUND_RATE)))[:, inner].abs().max() < 0.02


def test_a_soundtrack_is_cut_or_followed_by_silence(film: Callable[..., Reel]):
    reel = film(16, 8)
    long = film_sound(reel, tone(9, SOUND_RATE, channels=2), 0.1, 0)
    assert long is not None
    assert torch.equal(long, samples_of(tone(1.5, SOUND_RATE)))
    short = film_sound(reel, tone(1, SOUND_RATE), 0.1, 0)
    assert short is not None
    assert short.shape == (2, SOUND_RATE * 3 // 2)
    assert not short[:, SOUND_RATE:].any()
    fading = film_sound(reel, tone(9, SOUND_RATE), 0.1, 0.5)
    assert fading is not None
    assert torch.equal(fading[:, :SOUND_RATE], long[:, :SOUND_RATE])
    assert fading[:, -1000:].abs().max() < 0.05
    assert torch.equal(part_of_sound(long, 16, 24, 16.0), long[:, SOUND_RATE:])
    assert film_sound(reel, None, 0.1, 0) is None


def test_a_shot_keeps_its_sound_where_the_take_goes(film: Callable[..., Reel], tmp_path: Path):
    plain = film(16, 16)
    reel = with_sound(plain, 2, tone(1, 44_100))
    assert reel.fingerprint == plain.fingerprint
    assert plain.shots[1].sound is None
    heard = film_sound(reel, None, 0, 0)
    assert heard is not None
    assert not heard[:, :SOUND_RATE].any()
    assert (heard[:, SOUND_RATE:] - samples_of(tone(1, 44_100))).abs().max() < 1e-6
    # Through a file, twice, and behind other shots.
    save_reel(reel, tmp_path / "one.reel.safetensors")
    opened = load_reel(tmp_path / "one.reel.safetensors")
    save_reel(opened, tmp_path / "two.reel.safetensors")
    again = load_reel(tmp_path / "two.reel.safetensors")
    assert again.shots[0].sound is None
    assert again.fingerprint == reel.fingerprint
    both = film_sound(again, None, 0, 0)
    assert both is not None
    assert torch.equal(both, heard)
    other = film(8)
    moved = other.append(rebased(again.shots[1], other.fingerprint))
    part = film_sound(moved, None, 0, 0)
    assert part is not None
    assert torch.equal(part[:, SOUND_RATE // 2 :], heard[:, SOUND_RATE:])
    assert with_sound(again, 2, None).shots[1].sound is None
    assert with_sound(again, 2, None).nbytes < again.nbytes


def test_what_is_too_loud_is_made_quieter_as_a_whole(film: Callable[..., Reel]):
    reel = with_sound(film(16), 1, {"waveform": torch.full((1, 1, SOUND_RATE), 0.75), "sample_rate": SOUND_RATE})
    heard = film_sound(reel, {"waveform": torch.full((1, 2, SOUND_RATE), 0.75), "sample_rate": SOUND_RATE}, 0, 0)
    assert heard is not None
    assert torch.equal(heard, torch.ones(2, SOUND_RATE))


def test_other_audio_is_refused(film: Callable[..., Reel]):
    with pytest.raises(ValueError, match="batch of 2 sounds"):
        samples_of({"waveform": torch.zeros(2, 1, 8), "sample_rate": 8000})
    with pytest.raises(ValueError, match="6 channels: mix it down"):
        samples_of({"waveform": torch.zeros(1, 6, 8), "sample_rate": 8000})
    with pytest.raises(ReelError, match="no shot 2"):
        with_sound(film(16), 2, tone(1, 8000))
