"""What each backend tells a model: tensors equal to those of core's nodes for the same pictures."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_bernini import BerniniConditioning
from comfy_extras.nodes_wan import WanPhantomSubjectToVideo, WanVaceToVideo
from longreel.engines.cache_backends import BACKENDS, Backend, Bernini, FilmWeaver, Phantom, Scene, Vace, make_backend
from longreel.film.cache import CacheNoise, Keyframe, Picture, StoryCache, push_chunk
from longreel.host.chunk import Conditioned, SamplerSettings, sample_chunk
from longreel.host.streaming_vae import encode_image

from .. import tiny_models

FORMAT = comfy.latent_formats.Wan21()
SIZE = (32, 48)
FRAMES = 4


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=tiny_models.vae_weights())


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, SIZE[1], SIZE[0], 3, generator=torch.Generator().manual_seed(4))


def text(seed: int) -> list[Any]:
    return [[torch.randn(1, 8, tiny_models.TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]


def keyframe(picture: torch.Tensor, vae: Any) -> Keyframe:
    return Keyframe.of(picture, FORMAT.process_in(encode_image(vae, picture, *SIZE))[0], torch.ones(4))


def scene(vae: Any, count: int, history: torch.Tensor | None = None) -> Scene:
    cache = StoryCache("v", 16, SIZE[1] // 8, SIZE[0] // 8)
    return Scene(
        positive=text(1),
        negative=text(2),
        cache=cache if history is None else push_chunk(cache, FORMAT.process_in(history)[0]),
        keyframes=[keyframe(picture, vae) for picture in pictures(count)],
        frames=FRAMES,
        size=SIZE,
        vae=vae,
        latent_format=FORMAT,
        noise=CacheNoise(),
        noise_seed=0,
    )


def same(mine: list[Any], theirs: list[Any]) -> None:
    """Equal but for the half precision that keyframes are stored in."""
    ((text_a, options_a),), ((text_b, options_b),) = mine, theirs
    assert torch.equal(text_a, text_b)
    assert options_a.keys() == options_b.keys()
    for name, wanted in options_b.items():
        pairs = zip(options_a[name], wanted) if isinstance(wanted, list) else [(options_a[name], wanted)]
        for a, b in pairs:
            assert a == b if isinstance(b, float) else (a.shape == b.shape and torch.allclose(a, b, atol=4e-3)), name


def film(backend: Backend, model: Any, given: Conditioned) -> torch.Tensor:
    backend.check([model])
    noise = torch.randn(1, 16, given.frames, 6, 4, generator=torch.Generator().manual_seed(9))
    return sample_chunk([model], given, noise, SamplerSettings(steps=1, cfg=2.0, sampler="euler"), 0)


def wan(**options: Any) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(1, **options), metadata=tiny_models.dit_metadata(causal=False)
    )


def test_bernini_is_cores_conditioning(vae):
    given = Bernini().condition(scene(vae, 3))
    shown = {f"reference_image_{i}": picture[None] for i, picture in enumerate(pictures(3))}
    length = 4 * (FRAMES - 1) + 1
    positive, negative, latent = BerniniConditioning.execute(
        text(1), text(2), vae, *SIZE, length, 1, reference_images=shown
    ).result
    same(given.positive, positive)
    same(given.negative, negative)
    assert (given.frames, given.trim, given.middle) == (latent["samples"].shape[2], 0, None)
    model = wan()
    told = film(Bernini(), model, given)
    assert told.shape == (1, 16, FRAMES, 6, 4)
    assert not torch.allclose(told, film(Bernini(), model, Bernini().condition(scene(vae, 0))), atol=1e-3)


def test_phantom_is_cores_conditioning(vae):
    given = Phantom().condition(scene(vae, 3))
    length = 4 * (FRAMES - 1) + 1
    positive, middle, negative, _ = WanPhantomSubjectToVideo.execute(
        text(1), text(2), vae, *SIZE, length, 1, pictures(3)
    ).result
    same(given.positive, positive)
    assert given.middle is not None
    same(given.middle, middle)
    same(given.negative, negative)
    assert film(Phantom(), wan(), given).shape == (1, 16, FRAMES, 6, 4)


@pytest.mark.parametrize("known", [0, 2])
def test_vace_is_cores_conditioning(vae, known: int):
    history = torch.randn(1, 16, 3, 6, 4, generator=torch.Generator().manual_seed(3)) if known else None
    told = scene(vae, 1, history)
    given = Vace().condition(told)
    length = 4 * (known + FRAMES - 1) + 1
    video = masks = None
    if history is not None:
        seen = vae.decode(history[:, :, -2:])[0]
        grey = torch.full((length - len(seen), SIZE[1], SIZE[0], 3), 0.5)
        video = torch.cat([seen, grey])
        masks = torch.cat([torch.zeros(len(seen), SIZE[1], SIZE[0]), torch.ones(length - len(seen), SIZE[1], SIZE[0])])
    shown = Picture.of(pictures(1)[0]).image()[None]
    positive, negative, latent, trim = WanVaceToVideo.execute(
        text(1), text(2), vae, *SIZE, length, 1, 1.0, video, masks, shown
    ).result
    same(given.positive, positive)
    same(given.negative, negative)
    assert (given.frames, given.trim) == (latent["samples"].shape[2], trim + known)
    assert film(Vace(), wan(vace=True), given).shape == (1, 16, FRAMES, 6, 4)


def test_filmweaver_tells_both_prompts_the_same_payload(vae):
    given = FilmWeaver().condition(scene(vae, 3))
    carried = [options["model_conds"]["longreel_cache"].cond for ((_, options),) in (given.positive, given.negative)]
    assert carried[0] is carried[1]
    assert [segment.kind for segment in carried[0].segments] == ["shot"] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_names(name: str):
    assert make_backend(name, wan()).name == name
