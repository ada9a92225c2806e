"""Decoding block by block equals decoding at once, for every way of cutting a take into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from hypothesis import given, settings
from hypothesis import strategies as st
from longreel.host.families import UnsupportedVaeError, encode_clip, encode_image, of_vae
from longreel.host.families.wan import StreamingDecoder


def _random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a size that keeps activations near one, so that an error of the cache shows in the frames."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith("gamma"):
            weights[name] = torch.ones_like(value)
        elif value.ndim > 1:
            weights[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            weights[name] = torch.randn(value.shape, generator=generator) * 0.1
    return weights


@cache
def _vae(version: str, width: int) -> comfy.sd.VAE:
    mults = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    if version == "2.1":
        model = wan21.WanVAE(dim=width, z_dim=16, **mults)
        return comfy.sd.VAE(sd=_random_weights(model), dtype=torch.float32)
    # ComfyUI builds the 2.2 VAE at full width only, so its narrow twin replaces the network of a 2.1 VAE object.
    model = wan22.WanVAE(dim=width, dec_dim=width, z_dim=48, **mults)
    model.load_state_dict(_random_weights(model))
    vae = comfy.sd.VAE(sd=_random_weights(wan21.WanVAE(dim=8, z_dim=16, **mults)), dtype=torch.float32)
    vae.first_stage_model = model.eval()
    vae.latent_channels = 48
    vae.patcher = comfy.sd.comfy.model_patcher.CoreModelPatcher(model, vae.device, vae.device)
    return vae


@cache
def _take(version: str, width: int, size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    vae = _vae(version, width)
    latents = torch.randn(1, vae.latent_channels, length, size, size, generator=torch.Generator().manual_seed(length))
    with torch.inference_mode():
        return latents, vae.decode(latents)[0]


@pytest.fixture(autouse=True, scope="module")
def _release() -> Iterator[None]:
    yield
    _vae.cache_clear()
    _take.cache_clear()


@st.composite
def _partitions(draw: st.DrawFn) -> list[int]:
    left = draw(st.integers(1, 13))
    sizes = []
    while left:
        sizes.append(draw(st.integers(1, left)))
        left -= sizes[-1]
    return sizes


def _stream(decoder: StreamingDecoder, latents: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    chunks = [chunk for block in latents.split(sizes, dim=2) for chunk in decoder.decode(block)]
    assert max(len(chunk) for chunk in chunks) <= 8
    return torch.cat(chunks)


@settings(max_examples=25, deadline=None)
@given(sizes=_partitions())
def test_any_partition_equals_one_shot_21(sizes: list[int]) -> None:
    latents, whole = _take("2.1", 8, 4, sum(sizes))
    decoder = StreamingDecoder(_vae("2.1", 8))
    streamed = _stream(decoder, latents, sizes)
    assert streamed.shape == whole.shape == (1 + 4 * (sum(sizes) - 1), 32, 32, 3)
    assert decoder.latent_frames == sum(sizes)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 4, [3, 3, 3]])
def test_wider_and_larger(sizes: list[int]) -> None:
    latents, whole = _take("2.1", 16, 8, sum(sizes))
    torch.testing.assert_close(_stream(StreamingDecoder(_vae("2.1", 16)), latents, sizes), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1], [5], [1, 1, 2, 1], [3, 2]])
def test_any_partition_equals_one_shot_22(sizes: list[int]) -> None:
    latents, whole = _take("2.2", 8, 2, sum(sizes))
    streamed = _stream(StreamingDecoder(_vae("2.2", 8)), latents, sizes)
    assert streamed.shape == (1 + 4 * (sum(sizes) - 1), 32, 32, 3)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)


def test_the_seam_matters() -> None:
    """The test above can fail: restarting the cache in the middle of a take gives other frames."""
    latents, whole = _take("2.1", 8, 4, 6)
    vae = _vae("2.1", 8)
    torn = torch.cat([_stream(StreamingDecoder(vae), part, [part.shape[2]]) for part in latents.split(3, dim=2)])
    assert (torn[-4:] - whole[-4:]).abs().max() > 1e-2


def test_parked_cache_goes_on() -> None:
    latents, whole = _take("2.1", 8, 4, 6)
    decoder = StreamingDecoder(_vae("2.1", 8))
    assert decoder.nbytes == 0
    first = _stream(decoder, latents[:, :, :3], [3])
    decoder.park()
    second = _stream(decoder, latents[:, :, 3:], [1, 2])
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-5, rtol=0)


def test_cache_does_not_grow_or_keep_a_graph() -> None:
    latents, _ = _take("2.1", 8, 4, 13)
    decoder = StreamingDecoder(_vae("2.1", 8))
    sizes = []
    for block in latents.split(1, dim=2):
        assert not any(chunk.requires_grad for chunk in decoder.decode(block))
        sizes.append(decoder.nbytes)
    assert sizes[3] == sizes[-1] > 0


def test_interrupt_between_chunks_loses_nothing() -> None:
    """Frames are made as they are consumed; an interrupted decoder goes on where it stopped."""
    latents, whole = _take("2.1", 8, 4, 6)
    decoder = StreamingDecoder(_vae("2.1", 8))
    stream = decoder.decode(latents)
    got = [next(stream), next(stream)]
    assert decoder.latent_frames == 3
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        next(stream)
    got += list(decoder.decode(latents[:, :, decoder.latent_frames :]))
    assert len(got) == of_vae(_vae("2.1", 8)).chunks(6)
    torch.testing.assert_close(torch.cat(got), whole, atol=1e-5, rtol=0)


def test_failed_chunk_ends_the_take(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = _vae("2.1", 8)
    latents, _ = _take("2.1", 8, 4, 3)
    decoder = StreamingDecoder(vae)
    list(decoder.decode(latents))
    with monkeypatch.context() as patched:

        def out_of_memory(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError

        patched.setattr(vae.first_stage_model.decoder, "run_up", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            list(decoder.decode(latents))
    with pytest.raises(RuntimeError, match="decode the take again"):
        list(decoder.decode(latents))


def test_other_families_are_refused() -> None:
    vae = comfy.sd.VAE(sd={"nothing": torch.zeros(1)})
    with pytest.raises(UnsupportedVaeError, match="no VAE"):
        of_vae(vae)
    vae.first_stage_model = torch.nn.Linear(1, 1)
    with pytest.raises(UnsupportedVaeError, match="this one is a Linear"):
        encode_image(vae, torch.zeros(8, 8, 3), 8, 8)


def test_latents_of_another_vae_are_refused() -> None:
    with pytest.raises(ValueError, match="use the VAE that belongs to the model"):
        next(StreamingDecoder(_vae("2.1", 8)).decode(torch.zeros(1, 48, 1, 4, 4)))


def test_image_and_clip_start() -> None:
    vae = _vae("2.1", 8)
    image = torch.rand(40, 64, 4)
    with torch.inference_mode():
        latent = encode_image(vae, image, 32, 32)
        assert latent.shape == (1, 16, 1, 4, 4)
        # Scaled to 51 x 32 and cropped: the outer columns cannot matter, the centre does.
        for column, matters in ((0, False), (32, True)):
            other = image.clone()
            other[:, column] = 1 - other[:, column]
            assert torch.equal(encode_image(vae, other, 32, 32), latent) is not matters
        assert encode_clip(vae, torch.rand(11, 32, 32, 3), 32, 32).shape == (1, 16, 3, 4, 4)
    with pytest.raises(ValueError, match="pick one"):
        encode_image(vae, torch.rand(2, 8, 8, 3), 32, 32)
