"""The causal engine with ShotStream's memory: what each take is shown of the reel, and that reels go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd
import pytest
import torch
from longreel.engines import causal
from longreel.engines.causal import CausalEngine
from longreel.engines.causal_memory import memory_log
from longreel.engines.causal_schedule import default_sigmas
from longreel.film.kv_memory import MEMFLOW, SHOTSTREAM
from longreel.film.kv_memory.plot import draw_log
from longreel.film.reel.reel import Reel, ReelError, load_reel, save_reel
from longreel.film.reel.takes import takes
from longreel.film.storyboard.text import parse_storyboard
from longreel.host.families import encode_image
from longreel.host.media.decode import film_frames, take_picture
from longreel.host.media.keyframes import LEAD
from longreel.host.miniature_clip import load_miniature_clip
from longreel.host.progress import Progress
from longreel.host.wan.shot_context import ShotContext
from safetensors.torch import save_file

from .. import tiny_models

STORY = """\
seconds: 1
A red ball stands at the beach.
[0.5s] A red ball jumps at the beach.
---
seconds: 0.5, start: continue
A red ball spins at the beach.
---
seconds: 0.7
The same character walks.
---
seconds: 0.5
A red ball."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CausalEngine:
    text = tmp_path_factory.mktemp("text") / tiny_models.TEXT
    save_file(tiny_models.text_weights(), text)
    model = comfy.sd.load_diffusion_model_state_dict(tiny_models.dit_weights(), metadata=tiny_models.dit_metadata())
    return CausalEngine(
        models=(model,),
        clip=load_miniature_clip(str(text)),
        vae=comfy.sd.VAE(sd=tiny_models.vae_weights()),
        width=32,
        height=48,
        fps=16.0,
        sigmas=default_sigmas(model, 2, SHOTSTREAM),
        memory=SHOTSTREAM,
    )


def film(engine: CausalEngine, text: str, reel: Reel | None = None, shots: slice = slice(None)) -> Reel:
    for shot in parse_storyboard(text).shots[shots]:
        reel = engine.film(shot, reel or Reel.empty(engine.layout()), Progress(1), engine.shot_inputs(shot))
    assert reel is not None
    return reel


def test_every_cut_is_shown_pictures_of_all_takes_under_their_words(
    engine: CausalEngine, monkeypatch: pytest.MonkeyPatch
):
    engine.check()
    given: list[ShotContext | None] = []
    real = causal.roll_out

    def spy(*args, **kwargs):
        given.append(kwargs["context"])
        return real(*args, **kwargs)

    monkeypatch.setattr(causal, "roll_out", spy)
    reel = film(engine, STORY)
    assert [shot.take_start for shot in reel.shots] == [True, False, True, True]
    first, goes_on, second, third = given
    assert goes_on is None
    assert first == ShotContext()
    assert second is not None
    assert third is not None
    # the first take shows 16 and 8 frames, the second 11: of six pictures each has three
    assert [take.frames for take in takes(reel.shots)] == [24, 11, 8]
    assert (second.take, second.takes) == (1, (0,) * 6)
    assert (third.take, third.takes) == (2, (0, 0, 0, 1, 1, 1))
    latents = [shot.latent_frames for shot in reel.shots]
    assert (second.position, third.position) == (sum(latents[:2]), sum(latents[:3]))
    # pictures 0, 5, 9, 14, 18, 23: a latent frame is one picture, then four each
    assert second.frames == (0, 2, 3, 4, 5, 6)
    assert third.frames == (0, 3, 6, *(sum(latents[:2]) + latent for latent in (0, 2, 3)))
    words = ["stands", "stands", "jumps", "jumps", "spins", "spins"]
    prompts = {word: engine.encode_prompt(f"A red ball {word} at the beach.")[0][0] for word in set(words)}
    assert all(torch.equal(caption[0][0], prompts[word]) for caption, word in zip(second.captions, words))
    assert len({id(caption) for caption in second.captions}) == 3
    assert third.rows()[:3] != third.rows()[3:]
    # the first pictures of a take are those of the film, encoded alone
    shown = torch.cat(list(film_frames(reel, engine.vae, 0, 6)))
    for index, frame in ((0, 0), (1, 5)):
        alone = encode_image(engine.vae, shown[frame : frame + 1], 32, 48)
        assert second.pictures is not None
        assert torch.allclose(second.pictures[:, :, index : index + 1], alone, atol=1e-4)


def test_pictures_come_from_the_right_place(engine: CausalEngine):
    """Frame by frame over the seam of two shots: as the whole take decodes, from LEAD latent frames before."""
    reel = film(engine, STORY, shots=slice(2))
    take = takes(reel.shots)[0]
    whole = torch.cat(list(film_frames(reel, engine.vae)))
    latents = torch.cat([reel.latents(0), reel.latents(1)], dim=2)
    for frame in range(take.frames):
        picture, latent = take_picture(reel, engine.vae, take, frame)
        assert latent == -(-frame // 4)
        expected = whole[frame]
        if latent > LEAD:
            near = engine.vae.decode(latents[:, :, latent - LEAD : latent + 1])[0]
            expected = near[1 + 4 * (LEAD - 1) + (frame - 1) % 4]
        assert torch.allclose(picture[0], expected, atol=1e-5)


def test_a_saved_reel_goes_on_bit_for_bit(engine: CausalEngine, tmp_path: Path):
    whole = film(engine, STORY)
    for cut in (1, 2, 3):
        save_reel(film(engine, STORY, shots=slice(cut)), tmp_path / "reel.safetensors")
        rest = film(engine, STORY, load_reel(tmp_path / "reel.safetensors"), slice(cut, None))
        assert rest.fingerprint == whole.fingerprint
        assert all(torch.equal(whole.latents(i), rest.latents(i)) for i in range(4))
        memories = [reel.shots[-1].file.group("memory") for reel in (whole, rest)]
        assert all(torch.equal(tensor, memories[1][name]) for name, tensor in memories[0].items())


def test_what_is_shown_reaches_the_film(engine: CausalEngine):
    def last(seed: int) -> torch.Tensor:
        story = f"seconds: 0.5, seed: {seed}\nA red ball.\n---\nseconds: 0.5, seed: 1\nThe same character."
        return film(engine, story).latents(1)

    assert not torch.allclose(last(3), last(4), atol=1e-3)


def test_shots_of_other_memories_are_shown_too(engine: CausalEngine):
    reel = film(replace(engine, memory=MEMFLOW), STORY, shots=slice(1))
    longer = film(engine, STORY, reel, slice(2, 3))
    assert longer.shots[1].meta["memory"]["sink"] == [0, 1, 2, 3, 3, 4]
    with pytest.raises(ValueError, match="has window 12, the memory settings now say 27"):
        film(engine, STORY, reel, slice(1, 2))


def test_memory_can_be_viewed_and_is_not_to_be_asked(engine: CausalEngine):
    reel = film(engine, STORY)
    lines = memory_log(reel)
    assert lines[0]["sink"] == [], "blank pictures are no frames of the film"
    assert lines[-1]["sink"] == sorted(set(reel.shots[-1].meta["memory"]["sink"]))
    assert draw_log(lines).size == (960, 540)
    with pytest.raises(ReelError, match="whatever the prompt"):
        engine.retrieve(reel, "A red ball.", 3)


def test_the_schedule_is_the_models_own_unless_it_is_shotstreams(engine: CausalEngine):
    assert default_sigmas(engine.model, 4, SHOTSTREAM) != default_sigmas(engine.model, 4)
    assert default_sigmas(engine.model, 4, SHOTSTREAM)[1] == pytest.approx(0.957929, abs=1e-6)
    assert default_sigmas(engine.model, 4) == default_sigmas(engine.model, 4, MEMFLOW)
