"""The miniature's SVD: training a whole UNet, the scale of its autoencoder, its file, the clips it learns from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from longreel.film.instruction import InstructionError
from longreel.host.svd.adapters import sites_of
from longreel.host.svd.model import SvdSize, make_svd
from longreel.host.svd.small import (
    MINIATURE_SIZE,
    load_small_svd,
    make_autoencoder,
    make_vae,
    make_vision,
    with_temporal_decoder,
)
from longreel.miniature.world import ACTIONS, render
from longreel.training.instruction.base import UNET_ZERO, initialise, train_unet, without_words
from longreel.training.instruction.miniature import write_base
from longreel.training.instruction.small_world import FRAMES, draw_pool, scenes

from .test_train import EXAMPLES, RUN, settings, svd  # noqa: F401 - fixtures


def test_a_whole_unet_learns_a_clip_by_the_adapters_loss(settings, tmp_path):  # noqa: F811
    model = make_svd(SvdSize(32, (1,), (True,), 1, 16, 24))
    unet = model.model.diffusion_model
    settings = replace(settings, sites=sites_of(unet))
    initialise(unet, 1, zero=UNET_ZERO)
    run = replace(RUN, steps=30, lr=1e-2, muon_lr=2e-2, ema_decay=0.9, warmup=5, sample_every=0, frames_dropout=0.0)
    run = replace(run, text_dropout=0.0, both_dropout=0.0)
    said: list[str] = []
    train_unet(model, settings, EXAMPLES[:1], run, tmp_path, say=said.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in said if "loss" in line]
    assert losses[-1] < 0.95, "the mean of the run; a network that gives zeros has a loss of one"
    assert unet.out[2].weight.any(), "the model itself has learned, not a copy"
    assert not without_words(settings).has_text


@pytest.fixture(scope="module")
def network():
    made = make_autoencoder()
    initialise(made, 3)
    return made.eval()


def test_the_temporal_decoder_begins_as_the_decoder_of_images(network):
    pixels = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = network.quant_conv(network.encoder(pixels.movedim(-1, 1) * 2 - 1))[:, :4]
        shown = (network.decoder(network.post_quant_conv(raw)).movedim(1, -1) + 1) / 2
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    vae = make_vae(with_temporal_decoder(network, mean, std))
    latents = vae.encode(pixels)
    scaled = latents * 0.18215
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(latents), shown.clamp(0, 1), atol=1e-3, rtol=0)


def test_a_base_is_one_file_and_reads_back(network, tmp_path):
    model, vision = make_svd(MINIATURE_SIZE), make_vision()
    initialise(model.model.diffusion_model, 1)
    initialise(vision.model, 2)
    vae = make_vae(with_temporal_decoder(network, torch.zeros(4), torch.ones(4)))
    path = tmp_path / "small.safetensors"
    write_base(path, model.model.diffusion_model, vae.first_stage_model, vision.model, {"clips": "1"})
    small = load_small_svd(path)
    assert sites_of(small.model.model.diffusion_model) == sites_of(model.model.diffusion_model)
    for mine, other in (
        (model.model.diffusion_model, small.model.model.diffusion_model),
        (vae.first_stage_model, small.vae.first_stage_model),
        (vision.model, small.clip_vision.model),
    ):
        kept = other.state_dict()
        assert all(torch.equal(kept[name], value.half().float()) for name, value in mine.state_dict().items())


def test_other_files_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    with pytest.raises(InstructionError, match="cut off"):
        load_small_svd(tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InstructionError, match="no small Stable Video Diffusion"):
        load_small_svd(tmp_path / "other.safetensors")


class Drawn:
    """The world as `World` draws it, scene by scene."""

    def render(self, several, times):
        made = [render(scene, moments) for scene, moments in zip(several, times, strict=True)]
        return type("Pictures", (), {
            "frames": torch.stack([one.frames for one in made]),
            "masks": torch.stack([one.masks[:, 0] for one in made]),
        })  # fmt: skip


def test_the_same_first_frame_goes_with_every_action():
    chosen = scenes(3, 0, held_out=True)
    pool = draw_pool(chosen[:1], Drawn())
    assert pool.frames.shape == (1, len(ACTIONS), FRAMES, 3, 64, 64)
    assert (pool.frames[:, :, 0] == pool.frames[:, :1, 0]).all()
    later = pool.frames[0, :, 3].float()
    assert all(not torch.equal(later[i], later[j]) for i in range(6) for j in range(i))
    clips = list(pool.clips(1))
    assert len({clip.instruction for clip in clips}) == len(ACTIONS)
    assert all("stands" in clip.states.texts[0] for clip in clips)
    assert chosen == scenes(3, 0, held_out=True)
    assert not set(chosen) & set(scenes(50, 0, held_out=False))
