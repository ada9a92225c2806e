"""A tiny decoder through core's stock loader: any partition of a take gives the frames of one decode."""

from __future__ import annotations

from functools import cache

import comfy.sd
import pytest
import torch
from comfy.taesd.taehv import TAEHV
from longreel.host.families import UnsupportedVaeError, encode_clip, of_vae


def weights(channels: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    made = {}
    for name, value in TAEHV(channels).state_dict().items():
        size = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        made[name] = (torch.randn(value.shape, generator=generator) * size).to(dtype)
    return made


@cache
def load(channels: int) -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=weights(channels), dtype=torch.float32)


@pytest.mark.parametrize(("channels", "sizes"), [(16, [1, 2, 8, 1]), (16, [12]), (48, [3, 2])])
def test_any_partition_equals_cores_decode(channels: int, sizes: list[int]):
    vae = load(channels)
    latents = torch.randn(1, channels, sum(sizes), 2, 3, generator=torch.Generator().manual_seed(len(sizes)))
    wanted = vae.decode(latents)[0].clamp(0, 1)
    family = of_vae(vae)
    decoder, pieces = family.decoder(), []
    for part in latents.split(sizes, dim=2):
        pieces += list(decoder.decode(part))
    frames = torch.cat(pieces)
    assert frames.shape == wanted.shape == (4 * sum(sizes) - 3, *wanted.shape[1:])
    assert float(wanted.std()) > 0.01, "the frames say something"
    torch.testing.assert_close(frames, wanted, rtol=0, atol=2e-6)
    assert family.chunks(sum(sizes)) == len(list(family.decoder().decode(latents)))


def test_it_stands_for_the_full_vae_of_its_latents():
    small, large = of_vae(load(16)).latents, of_vae(load(48)).latents
    assert (small.family, small.channels, small.spatial, small.temporal) == ("wan", 16, 8, 4)
    assert (large.family, large.channels, large.spatial, large.temporal) == ("wan", 48, 16, 4)
    assert encode_clip(load(16), torch.rand(5, 16, 24, 3), 24, 16).shape == (1, 16, 2, 2, 3)


def test_what_is_not_wans_is_refused():
    hunyuan = comfy.sd.VAE(sd=weights(16, torch.float16), dtype=torch.float32)
    with pytest.raises(UnsupportedVaeError, match="lighttaew2_1"):
        of_vae(hunyuan)
    with pytest.raises(ValueError, match="use the VAE that belongs"):
        next(of_vae(load(16)).decoder().decode(torch.zeros(1, 4, 2, 2, 3)))
