"""Teaching AID on a scaled-down SVD: clips to examples, the loss, a run that learns, stops, goes on and loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from longreel.film.instruction.settings import AdapterSettings
from longreel.host.svd.adapters import Strengths, apply_adapter, load_adapter, sites_of
from longreel.host.svd.model import SvdSize, make_svd
from longreel.training.core.loop import TrainState, callbacks
from longreel.training.core.lora import LoraError
from longreel.training.instruction import data
from longreel.training.instruction.data import Clip, Encoders, Example, InstructionDataError, encode_clips, list_clips
from longreel.training.instruction.train import MINIATURE, AidTrainable, Lesson, held_out_loss, train_adapter
from safetensors.torch import load_file

from ...host.svd.conftest import random_weights
from ...host.svd.test_guidance import Clip as Words
from ...host.svd.test_guidance import Vae, Vision

SIZE = SvdSize(32, (1, 2), (True, True), 1, 16, 24)
FRAMES, TOKENS = 4, 5
RUN = replace(MINIATURE, steps=6, batch=2, micro_batch=2, warmup=1, save_every=0, sample_every=3, lr=1e-2)


@pytest.fixture(scope="module")
def svd():
    model = make_svd(SIZE)
    unet = model.model.diffusion_model
    unet.load_state_dict(random_weights(unet))
    return model


@pytest.fixture(scope="module")
def settings(svd) -> AdapterSettings:
    return AdapterSettings(
        sites=sites_of(svd.model.diffusion_model), num_frames=FRAMES, context_dim=24, text_dim=24, vision_dim=20,
        tokens_per_frame=TOKENS, num_states=3, dq_heads=4, ff_mult=2, lt_head_width=8, width=64, height=64,
    )  # fmt: skip


def example(seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    levels = len(data.AUGMENTATIONS)
    return Example(
        f"{seed}", noise(FRAMES, 4, 8, 8), noise(levels, 2, 4, 8, 8), noise(4, 8, 8), noise(1, 24), noise(7, 20),
        noise(TOKENS, 24), noise(3, TOKENS, 24), noise(TOKENS, 24),
    )  # fmt: skip


EXAMPLES = [example(seed) for seed in range(4)]


@pytest.mark.parametrize("mode", ["decoupled", "full"])
def test_a_run_learns_leaves_the_base_alone_and_its_file_films(svd, settings, tmp_path, mode: str):
    before = {key: value.clone() for key, value in svd.model.diffusion_model.state_dict().items()}
    tuned = replace(settings, context_mode=mode)
    made = train_adapter(svd, tuned, EXAMPLES[:3], RUN, tmp_path, held_out=EXAMPLES[2:], say=lambda _: None)
    after = svd.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    file = load_adapter(made)
    assert file.notes["dataset"] == "3 clips"
    assert file.notes["steps"] == "6"
    assert file.adapter.at("spatial", "middle_block").up.weight.any()
    apply_adapter(svd, file, Strengths())
    rows = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3, 6]


def test_a_stopped_run_goes_on_to_the_same_end(svd, settings, tmp_path):
    quiet = replace(RUN, sample_every=0)
    whole = train_adapter(svd, settings, EXAMPLES, quiet, tmp_path / "whole", say=lambda _: None)

    def stop(state: TrainState) -> None:
        if state.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), callbacks(stop):
        train_adapter(svd, settings, EXAMPLES, quiet, tmp_path / "half", say=lambda _: None)
    half = train_adapter(svd, settings, EXAMPLES, quiet, tmp_path / "half", say=lambda _: None)
    first, second = load_file(whole), load_file(half)
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(LoraError, match=r"lr 0\.01, not"):
        train_adapter(svd, settings, EXAMPLES, replace(quiet, lr=1.0), tmp_path / "whole", say=lambda _: None)


def lesson(svd, settings, **changes) -> Lesson:
    from longreel.film.instruction.adapters import AidAdapter

    adapter = AidAdapter(settings, torch.nn)
    adapter.load_state_dict(random_weights(adapter, 4))
    return Lesson(svd, AidTrainable(adapter), replace(RUN, **changes), bf16=False)


def test_recomputed_layers_give_the_same_gradients(svd, settings):
    grads = []
    for checkpointing in (False, True):
        taught = lesson(svd, settings, checkpointing=checkpointing)
        torch.manual_seed(1)
        loss, _ = taught.loss(EXAMPLES[:2])
        loss.backward()
        grads.append({name: value.grad.clone() for name, value in taught.adapter.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-5, rtol=1e-4)


def test_videos_of_a_batch_are_learned_as_if_alone(svd, settings):
    taught = lesson(svd, settings)
    both = held_out_error(taught, EXAMPLES[:2])
    alone = held_out_error(taught, EXAMPLES[:1])
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)


def held_out_error(taught: Lesson, examples) -> torch.Tensor:
    clean = torch.stack([one.latents for one in examples])
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(3)).expand_as(clean)
    no, count = [False] * len(examples), len(examples)
    with torch.no_grad():
        return taught.error(examples, clean, noise, torch.full((count,), 2.0), [1] * count, 0, no, no, no)


def test_without_words_and_frames_the_condition_is_svds_own_zeros(svd, settings):
    taught = lesson(svd, settings)
    token, context = taught._context(EXAMPLES[:2], [True, False], [True, False], [False, False], FRAMES)
    assert not token[0].any()
    assert not context[0].any()
    assert context[1].any()
    assert not taught._shown(EXAMPLES[0], 1, 0, True).any()


def test_losses_are_told_with_anothers_words_too(svd, settings):
    taught = lesson(svd, settings)
    own, other = held_out_loss(taught, EXAMPLES), held_out_loss(taught, EXAMPLES, swapped=True)
    assert own.keys() == {"0.2", "1", "4", "16"}
    assert own == held_out_loss(taught, EXAMPLES), "the noise is fixed"
    assert own != other


# Clips


def write_video(path: Path, frames: int = 9) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(frames):
            picture = np.full((64, 64, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_clips_of_a_folder_with_one_that_is_damaged(settings, tmp_path):
    for name, text in (("a", "lift the lid\n"), ("b", "shut it\nit is open\nit is shut\n"), ("d", "")):
        write_video(tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    (tmp_path / "c.txt").write_text("x")
    said: list[str] = []
    clips = list(list_clips(tmp_path, settings, say=said.append))
    assert [(clip.name, clip.instruction) for clip in clips] == [("a.mp4", "lift the lid"), ("b.mp4", "shut it")]
    assert clips[0].states is None
    assert clips[1].states.texts == ("it is open", "it is shut", "it is shut")
    means = clips[0].frames.mean((1, 2, 3)) * 255
    torch.testing.assert_close(means, torch.tensor([0.0, 60.0, 100.0, 160.0]), atol=6, rtol=0)
    assert ["c.mp4" in line for line in said] == [True, False]
    assert "write its instruction into d.txt" in said[1]


def test_folders_without_clips_are_refused_with_a_sentence(settings, tmp_path):
    with pytest.raises(InstructionDataError, match="holds no videos"):
        next(list_clips(tmp_path, settings))
    write_video(tmp_path / "a.mp4")
    with pytest.raises(InstructionDataError, match="None of the 1 videos"):
        next(list_clips(tmp_path, settings, say=lambda _: None))


def test_examples_are_encoded_once(settings, tmp_path):
    latent_format = SimpleNamespace(process_in=lambda latents: latents * 0.5)
    encoders = Encoders(Words(), Vision(), Vae(), latent_format, "same")
    clips = [Clip("a", torch.full((FRAMES, 64, 64, 3), 0.25), "lift the lid")]
    (one,) = encode_clips(clips, settings, encoders, tmp_path)
    assert (one.latents == -0.25).all()
    assert (one.known[0] == -0.5).all(), "what stands beside the noise is not scaled"
    assert one.known[2].std() > one.known[1].std() > 0
    assert one.states.shape == (3, TOKENS, 24)
    broken = replace(encoders, vae=None)
    (again,) = encode_clips(clips, settings, broken, tmp_path)
    assert torch.equal(again.patches, one.patches)
