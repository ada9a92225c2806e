"""What each backend tells a model: tensors equal to those of core's nodes for the same pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_bernini import BerniniConditioning
from comfy_extras.nodes_wan import WanImageToVideo, WanPhantomSubjectToVideo, WanVaceToVideo
from longreel.engines.dual_cache_backends import (
    BACKENDS,
    Bernini,
    FilmWeaver,
    Phantom,
    StoryMem,
    Svi,
    Vace,
    make_backend,
)
from longreel.engines.dual_cache_inputs import Backend, ChunkInputs, check_history, chunks, prompt_per_chunk
from longreel.engines.engine import EngineError
from longreel.film.dual_cache import FILMWEAVER, CacheNoise, Keyframe, Picture, StoryCache, push_chunk
from longreel.film.reel.takes import PromptSchedule, ShotPlan
from longreel.film.storyboard.shot import TimedPrompt
from longreel.host.families import encode_image
from longreel.host.sampling import Conditioned, SamplerSettings, sample_chunk
from longreel.host.wan.cache_tokens import install
from longreel.host.wan.causal_models import UnsupportedModelError

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


def scene(vae: Any, count: int, history: torch.Tensor | None = None, anchor: torch.Tensor | None = None) -> ChunkInputs:
    cache = StoryCache("v", 16, SIZE[1] // 8, SIZE[0] // 8)
    return ChunkInputs(
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
        anchor=anchor,
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
        seen = vae.decode(history)[0][-5:]
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


def channels(model: Any, given: Conditioned) -> torch.Tensor:
    """What ComfyUI puts beside the noise for the positive prompt: [1, 4 + 16, frames, h, w], mask then frames."""
    ((_, options),) = given.positive
    noise = torch.zeros(1, 16, given.frames, SIZE[1] // 8, SIZE[0] // 8)
    beside = model.model.concat_cond(noise=noise, device=noise.device, **options)
    assert beside.shape == (1, 20, *noise.shape[2:])
    return beside


@pytest.fixture(scope="module")
def image_to_video():
    """Of the architecture of Wan 2.2 I2V A14B."""
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.dit_weights(6, in_dim=36), metadata=tiny_models.dit_metadata(causal=False)
    )


def clip(frames: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(1, 16, frames, 6, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("history", [0, 1, 2, 3, 19])
def test_storymem_is_cores_conditioning_behind_the_memories(vae, image_to_video, history: int):
    """M2V, MI2V and MM2V: core's node for the known pictures, and for mid-grey where nothing is known."""
    past = clip(history) if history else None
    given = StoryMem().condition(scene(vae, 3, past))
    known = min(history, 2)
    length = 4 * (known + FRAMES - 1) + 1
    grey = torch.full((length, SIZE[1], SIZE[0], 3), 0.5)
    seen = grey if past is None else vae.decode(past[:, :, -4:])[0][-(1 if history == 1 else 5) :]
    positive, negative, latent = WanImageToVideo.execute(text(1), text(2), vae, *SIZE, length, 1, seen).result
    for mine, core in ((given.positive, positive), (given.negative, negative)):
        ((_, told),), ((_, wanted),) = mine, core
        assert told.keys() == wanted.keys()
        assert torch.allclose(told["concat_latent_image"][:, :, 3:], wanted["concat_latent_image"], atol=1e-5)
    alone = torch.cat([encode_image(vae, picture, *SIZE) for picture in pictures(3)], dim=2)
    beside = channels(image_to_video, given)
    assert torch.allclose(beside[:, 4:, :3], FORMAT.process_in(alone), atol=4e-3)
    assert (beside[:, :4, : 3 + known] == 1).all(), "memories and what came before are known"
    assert (beside[:, :4, 3 + known :] == 0).all()
    assert (given.frames, given.trim) == (3 + latent["samples"].shape[2], 3 + known)
    assert film(StoryMem(), image_to_video, given).shape == (1, 16, FRAMES, 6, 4)


def test_storymem_tells_memories_in_the_order_they_were_filmed(vae):
    told = scene(vae, 3)
    later = [replace(one, shot=shot, frame=frame) for one, shot, frame in zip(told.keyframes, (4, 1, -1), (0, 9, -1))]
    given = StoryMem().condition(replace(told, keyframes=later))
    ((_, options),) = given.positive
    wanted = [FORMAT.process_out(one.latent[None].float()) for one in reversed(later)]
    assert torch.equal(options["concat_latent_image"][:, :, :3], torch.cat(wanted, dim=2))


@pytest.mark.parametrize("history", [0, 1, 5])
def test_svi_is_anchor_and_newest_latent_before_zeros(vae, image_to_video, history: int):
    anchor, past = clip(1, 8), clip(history) if history else None
    given = Svi().condition(scene(vae, 1, past, anchor if history else None))
    first = anchor if history else encode_image(vae, pictures(1)[0], *SIZE)
    beside = channels(image_to_video, given)
    told = 2 if history > 1 else 1
    assert torch.allclose(beside[:, 4:, :1], FORMAT.process_in(first), atol=4e-3)
    if past is not None and history > 1:
        assert torch.allclose(beside[:, 4:, 1:2], FORMAT.process_in(past[:, :, -1:]), atol=1e-5)
    assert torch.allclose(beside[:, 4:, told:], torch.zeros(()), atol=1e-6), "zeros of the model's space, not grey"
    # The mask is that of core's node for one picture.
    start = torch.rand(1, SIZE[1], SIZE[0], 3)
    core = WanImageToVideo.execute(text(1), text(2), vae, *SIZE, 4 * (given.frames - 1) + 1, 1, start).result
    wanted = Conditioned(core[0], core[1], given.frames)
    assert torch.equal(beside[:, :4], channels(image_to_video, wanted)[:, :4])
    assert given.trim == (told if history else 0)
    assert given.frames == FRAMES + given.trim
    assert film(Svi(), image_to_video, given).shape == (1, 16, FRAMES, 6, 4)


@pytest.mark.parametrize("backend", [StoryMem(), Svi()])
def test_image_to_video_is_asked_for(backend: Backend, image_to_video):
    backend.check([image_to_video, image_to_video])
    with pytest.raises(UnsupportedModelError, match="needs an image-to-video model: load wan"):
        backend.check([image_to_video, wan()])
    with pytest.raises(UnsupportedModelError, match="cannot film with VaceWanModel"):
        backend.check([wan(vace=True)])
    with pytest.raises(EngineError, match="films from pictures and there are none yet"):
        check_history(backend, StoryCache("v", 16, 6, 4))
    check_history(Bernini(), StoryCache("v", 16, 6, 4))


@pytest.mark.parametrize(
    ("backend", "frames", "begins", "wanted"),
    [
        (FilmWeaver(), 12, True, [6, 6]),
        (Bernini(), 50, True, [50]),
        (Vace(), 21, True, [21]),
        (StoryMem(), 22, True, [11, 11]),
        (StoryMem(), 40, True, [20, 20]),
        (StoryMem(), 41, True, [14, 14, 13]),
        (Svi(), 19, False, [19]),
        (Svi(), 20, False, [10, 10]),
    ],
)
def test_chunks_are_as_few_and_as_even_as_can_be(backend: Backend, frames: int, begins: bool, wanted: list[int]):
    assert chunks(backend, ShotPlan(1.0, frames, 1, begins, 0, 0)) == wanted


def test_a_prompt_holds_from_the_piece_that_lies_mostly_after_it():
    first, second, third = (TimedPrompt(at, str(at)) for at in (0, 1, 2))
    said = PromptSchedule(((0, first), (9, second), (13, third)), ())
    assert prompt_per_chunk(said, [10, 10, 10]) == [first, third, third], "second would hold for three frames of 30"
    assert prompt_per_chunk(said, [7, 7, 7]) == [first, second, third]
    assert prompt_per_chunk(PromptSchedule(((0, first), (6, second)), ()), [6, 6]) == [first, second]


def told_kinds(conditioning: list[Any]) -> list[str]:
    ((_, options),) = conditioning
    carried = options.get("model_conds", {}).get("longreel_cache")
    return [] if carried is None else [segment.kind for segment in carried.cond.segments]


def test_filmweaver_guides_by_keyframes_apart_and_knows_the_frames_before_in_all_of_them(vae):
    told = scene(vae, 3, torch.randn(1, 16, 6, 6, 4))
    given = FilmWeaver().condition(told)
    assert given.text_first
    assert given.middle is not None
    assert told_kinds(given.positive) == ["shot"] * 3 + ["temporal"] * 3
    assert told_kinds(given.middle) == told_kinds(given.negative) == ["temporal"] * 3
    assert given.middle[0][0] is given.positive[0][0], "the prompt"
    assert given.negative[0][0] is told.negative[0][0]
    first = FilmWeaver().condition(scene(vae, 3))
    assert first.middle is not None
    assert told_kinds(first.middle) == [], "as the model was taught when there is nothing to tell"


def test_text_and_keyframes_guide_with_weights_of_their_own(vae):
    """One step to no noise gives the guess itself, in which guidance is a sum."""
    model = install(wan(), FILMWEAVER)
    told = replace(scene(vae, 2), frames=FILMWEAVER.chunk)
    given = FilmWeaver().condition(told)
    assert given.middle is not None
    noise = torch.randn(1, 16, given.frames, 6, 4, generator=torch.Generator().manual_seed(9))

    def guess(what: Conditioned, cfg: float, reference_cfg: float) -> torch.Tensor:
        return sample_chunk([model], what, noise, SamplerSettings(1, cfg, "euler", reference_cfg=reference_cfg), 0)

    both, bare, nothing = (
        guess(Conditioned(one, one, given.frames), 1.0, 1.0) for one in (given.positive, given.middle, given.negative)
    )
    assert (both - bare).abs().max() > 1e-3
    assert torch.allclose(guess(given, 2.0, 3.0), nothing + 2 * (bare - nothing) + 3 * (both - bare), atol=1e-4)
    assert torch.allclose(guess(given, 1.0, 3.0), bare + 3 * (both - bare), atol=1e-4)
    assert torch.equal(guess(given, 1.0, 1.0), both)


def test_filmweaver_without_keyframes_is_guided_by_the_text_alone(vae):
    given = FilmWeaver().condition(scene(vae, 0, torch.randn(1, 16, 6, 6, 4)))
    assert given.middle is None
    assert told_kinds(given.positive) == told_kinds(given.negative) == ["temporal"] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_names(name: str):
    assert make_backend(name, wan()).name == name
