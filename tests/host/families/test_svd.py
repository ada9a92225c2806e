"""Stable Video Diffusion as a family: ComfyUI's own VAE on shots of [1, 4, T, h, w]."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.sd
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from longreel.film.reel.latent_space import LatentSpace
from longreel.host.families import UnsupportedVaeError, encode_image, of, of_vae
from longreel.host.families.svd import from_rows, to_rows

from ... import tiny_models


def small_engine(encoder_config: dict[str, Any], decoder_config: dict[str, Any], **rest: Any) -> AutoencodingEngine:
    """The network as ComfyUI builds it, a quarter as wide."""
    for config in (encoder_config, decoder_config):
        config["params"]["ch"] = 32
    return AutoencodingEngine(encoder_config=encoder_config, decoder_config=decoder_config, **rest)


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32}
    sizes |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    network = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": sizes},
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**sizes, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sd, "AutoencodingEngine", small_engine)
        return comfy.sd.VAE(sd=tiny_models.random_weights(network, 3), dtype=torch.float32)


def svd(**config: Any) -> Any:
    base = comfy.model_base.SVD_img2vid.__new__(comfy.model_base.SVD_img2vid)
    torch.nn.Module.__init__(base)
    base.model_config = SimpleNamespace(unet_config=config)
    return SimpleNamespace(model=base)


def test_a_shot_is_what_comfyui_encodes_and_decodes(vae: comfy.sd.VAE):
    family = of_vae(vae)
    assert family.latents == LatentSpace("svd", 4, 8, 1)
    frames = torch.rand(5, 32, 40, 3, generator=torch.Generator().manual_seed(1))
    latents = family.encode(frames, 40, 32)
    assert latents.shape == family.latents.shape(5, 40, 32) == (1, 4, 5, 4, 5)
    assert torch.equal(to_rows(latents), vae.encode(frames))
    assert torch.equal(from_rows(to_rows(latents)), latents)
    assert torch.allclose(encode_image(vae, frames[1], 40, 32), latents[:, :, 1:2], atol=1e-5)
    (decoded,) = family.decoder().decode(latents)
    assert decoded.shape == frames.shape
    assert torch.equal(decoded, vae.decode(to_rows(latents)))
    with pytest.raises(ValueError, match="use the VAE that belongs to the model"):
        list(family.decoder().decode(torch.zeros(1, 16, 1, 4, 4)))


def test_model_and_vae_belong_together(vae: comfy.sd.VAE):
    model = svd(channel_mult=[1, 2, 4, 4], context_dim=1024)
    family = of(model, vae)
    assert (family.cell(model), family.text_width(model)) == (64, 1024)
    wan = comfy.sd.load_diffusion_model_state_dict(tiny_models.wan_weights(1), metadata=tiny_models.dit_metadata(False))
    with pytest.raises(UnsupportedVaeError, match="load model and VAE from one checkpoint"):
        of(wan, vae)
    with pytest.raises(UnsupportedVaeError, match=r"load wan2\.2_vae\.safetensors"):
        of(SimpleNamespace(model=SimpleNamespace(latent_format=SimpleNamespace(latent_channels=48))),
           comfy.sd.VAE(sd=tiny_models.vae_weights()))  # fmt: skip
