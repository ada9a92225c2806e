"""Cache tokens on tiny models of the real Wan architecture, through ComfyUI's own sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.context_windows import ContextFuseMethod, ContextSchedule, IndexListContextHandler
from longreel.film.dual_cache import (
    FILMWEAVER,
    CacheError,
    CacheNoise,
    Keyframe,
    LayoutProfile,
    Payload,
    StoryCache,
    build_payload,
    push_chunk,
)
from longreel.host.wan import cache_tokens
from longreel.host.wan.cache_tokens import check_model, install, with_payload

from ... import tiny_models
from ...device import same

SIZE = (6, 4)
SIGMAS = torch.tensor([1.0, 0.6, 0.0])


def load(layers: int = 2, **options: Any) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(layers, **options), metadata=tiny_models.dit_metadata(causal=False)
    )


@pytest.fixture(scope="module")
def model():
    return load()


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int = 1) -> list[Any]:
    return [[noise(seed, 1, 8, tiny_models.TEXT_WIDTH), {}]]


def story(frames: int = 19, keyframes: int = 3, channels: int = 16, profile: LayoutProfile = FILMWEAVER) -> StoryCache:
    bank = tuple(
        Keyframe.of(torch.rand(4, 4, 3), noise(seed, channels, 1, *SIZE), noise(seed, 8)) for seed in range(keyframes)
    )
    cache = StoryCache("v", channels, *SIZE, profile=profile, bank=bank)
    return push_chunk(cache, noise(50, channels, frames, *SIZE)) if frames else cache


def payload(profile: LayoutProfile = FILMWEAVER, **options: Any) -> Payload:
    cache = story(profile=profile, **options)
    made = build_payload(cache, cache.bank, CacheNoise(shot=0.2, temporal=0.05))
    assert made is not None
    return made


def sample(
    model: Any, given: Payload | None = None, *, cfg: float = 1.0, mask: Any = None, frames: int = 6
) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(with_payload(prompt(1), given), with_payload(prompt(2), given))
    guider.set_cfg(cfg)
    channels = model.model.latent_format.latent_channels
    start = torch.zeros(1, channels, frames, *SIZE)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise(9, *start.shape), start, sampler, SIGMAS, denoise_mask=mask, disable_pbar=True)


def test_without_payload_the_output_is_that_of_the_stock_model_bit_for_bit(model):
    plain = sample(model, cfg=3.0)
    same(sample(install(model, FILMWEAVER), cfg=3.0), plain)


def test_the_model_that_was_cloned_stays_as_it_was(model):
    plain, before = sample(model), dict(model.model_options)
    patched = install(model, FILMWEAVER)
    told = sample(patched, payload())
    assert not torch.allclose(told, plain, atol=1e-3)
    same(sample(model), plain)
    assert model.model_options == before
    assert not model.wrappers


@pytest.mark.parametrize("mode", ["shared", "zero"])
def test_cache_tokens_are_made_outside_the_record_of_allocations(model, mode, paused):
    profile = replace(FILMWEAVER, time_mode=mode)
    sample(install(model, profile), payload(profile))
    passes = len(SIGMAS) - 1
    assert len(paused) == passes * (1 if mode == "shared" else 2), "the tokens, and their own modulation"


@pytest.mark.parametrize("mode", ["shared", "own", "zero"])
def test_every_part_of_the_payload_counts(model, mode):
    profile = replace(FILMWEAVER, time_mode=mode)
    patched = install(model, profile)
    results = [
        sample(patched, payload(profile, frames=frames, keyframes=keyframes))
        for frames, keyframes in ((19, 3), (19, 0), (0, 3), (1, 0), (3, 0))
    ]
    assert all(torch.isfinite(result).all() for result in results)
    assert len({round(float(result.double().sum()), 6) for result in results}) == len(results)


def test_modes_tell_the_cache_tokens_different_noise_levels(model):
    results = []
    for mode in ("shared", "own", "zero"):
        profile = replace(FILMWEAVER, time_mode=mode)
        results.append(sample(install(model, profile), payload(profile)))
    assert not torch.allclose(results[0], results[1], atol=1e-4)
    assert not torch.allclose(results[1], results[2], atol=1e-4)


def test_the_order_of_segments_means_nothing(model):
    made, patched = payload(), install(model, FILMWEAVER)
    turned = replace(made, segments=made.segments[::-1])
    assert torch.allclose(sample(patched, made), sample(patched, turned), atol=1e-5)


def test_one_noise_level_for_all_tokens_is_the_shared_mode(model, monkeypatch):
    """Per-token modulation with every token at the target's level gives what broadcasting gives."""
    patched, made = install(model, FILMWEAVER), payload()
    shared = sample(patched, made)
    own = replace(FILMWEAVER, time_mode="own")
    monkeypatch.setattr(cache_tokens, "_times", lambda payload, segment, timestep: timestep)
    told = replace(made, profile=own)
    assert torch.allclose(sample(install(model, own), told), shared, atol=1e-5)


def test_guidance_runs_both_prompts_at_once_with_one_payload(model):
    patched, sizes = install(model, FILMWEAVER), []
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL

    def count(executor, x, *args, **kwargs):
        sizes.append(x.shape[0])
        return executor(x, *args, **kwargs)

    patched.add_wrapper_with_key(kind, "count", count)
    sample(patched, payload(), cfg=3.0)
    assert sizes == [2, 2]


def test_another_replacement_of_the_first_block_acts_too(model):
    other = model.clone()
    seen = []

    def double(args, extra):
        seen.append(args["img"].shape[1])
        return {"img": extra["original_block"](args)["img"] * 1.5}

    other.set_model_patch_replace(double, "dit", "double_block", 0)
    alone, ours = sample(other), sample(install(model, FILMWEAVER), payload())
    both = sample(install(other, FILMWEAVER), payload())
    made = payload()
    assert seen[-1] == 6 * 3 * 2 + made.tokens, "it computes the cache tokens too"
    assert not torch.allclose(both, alone, atol=1e-3)
    assert not torch.allclose(both, ours, atol=1e-3)
    assert list(other.model_options["transformer_options"]["patches_replace"]["dit"]) == [("double_block", 0)]


def test_a_patch_after_the_blocks_sees_the_target_first(model):
    other, seen = model.clone(), []

    def look(args):
        seen.append((args["block_index"], args["img"].shape[1], args["img_offset"]))
        return args

    other.set_model_double_block_patch(look)
    made = payload()
    sample(install(other, FILMWEAVER), made)
    target = 6 * 3 * 2
    assert seen[:2] == [(0, target + made.tokens, 0), (1, target, 0)]


@pytest.mark.parametrize("mode", ["shared", "own"])
def test_noise_levels_by_frame(mode):
    """Wan 2.2 TI2V 5B: a known first frame is told time 0; frames keep their own levels beside the cache."""
    model = load(channels=48)
    assert model.model.latent_format.latent_channels == 48
    profile = replace(FILMWEAVER, time_mode=mode)
    mask = torch.ones(1, 1, 6, *SIZE)
    mask[:, :, 0] = 0
    seen = []
    patched = install(model, profile)
    patched.set_model_patch_replace(
        lambda args, extra: seen.append(args["vec"]) or extra["original_block"](args), "dit", "double_block", 0
    )
    made = payload(profile, channels=48)
    told = sample(patched, made, mask=mask)
    assert torch.isfinite(told).all()
    vec, tokens = seen[0][0], 6
    assert vec.shape[0] == 6 * tokens + made.tokens
    frames = vec[: 6 * tokens].unflatten(0, (6, tokens))
    assert torch.equal(frames, frames[:, :1].expand_as(frames)), "one level a frame"
    assert not torch.allclose(frames[0], frames[1])
    # a matrix product's rows may differ in the last bit on some processors
    assert torch.allclose(frames[1], frames[5], atol=1e-5)
    assert torch.allclose(vec[-1], frames[1, 0], atol=1e-5) == (mode == "shared")


def test_memory_is_declared(model):
    shapes = []

    def look(executor, model, noise_shape, conds, **kwargs):
        shapes.append(list(noise_shape))
        return executor(model, noise_shape, conds, **kwargs)

    patched = install(model, FILMWEAVER)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "look", look)
    sample(patched)
    made = payload()
    sample(patched, made)
    assert [shape[2] for shape in shapes] == [6, 6 + -(-made.tokens // 6)]


def test_at_832x480_full_caches_cost_five_frames_more():
    frame = Keyframe.of(torch.zeros(4, 4, 3), torch.zeros(16, 1, 60, 104), torch.ones(2))
    cache = push_chunk(StoryCache("v", 16, 60, 104), torch.zeros(16, 19, 60, 104))
    made = build_payload(cache, [frame] * 3)
    assert made.tokens == 17_212 - 9_360
    assert cache_tokens._weight(made, (1, 16, 6, 60, 104)) == pytest.approx(7_852 / 1_560)


def test_positions_of_the_published_layout():
    """The worked example of docs/methods/filmweaver.md, as the model's own embedder turns it into angles."""
    model = load(1)
    dit = model.model.diffusion_model
    frame = Keyframe.of(torch.zeros(4, 4, 3), torch.zeros(16, 1, 60, 104), torch.ones(2))
    cache = push_chunk(StoryCache("v", 16, 60, 104), torch.zeros(16, 19, 60, 104))
    segments = build_payload(cache, [frame] * 3).segments
    device = torch.device("cpu")
    for rank, segment in enumerate(segments[:3]):
        angles = cache_tokens._angles(dit, segment, FILMWEAVER, device, {})
        moved = replace(segment, phase=0.0)
        plain = dit.rope_encode(1, 60, 104, t_start=-(24 + 6 * rank), dtype=torch.float32)
        assert torch.allclose(cache_tokens._angles(dit, moved, FILMWEAVER, device, {}), plain, atol=1e-5)
        pairs = dit.rope_embedder.axes_dim[0] // 2
        assert torch.equal(angles[..., pairs:, :, :], plain[..., pairs:, :, :])
        turned = torch.atan2(angles[..., 1, 0], angles[..., 0, 0]) - torch.atan2(plain[..., 1, 0], plain[..., 0, 0])
        assert torch.allclose(torch.cos(turned[..., :pairs] - (rank + 1) / 6), torch.ones(1), atol=1e-5)
    newest = cache_tokens._angles(dit, segments[3], FILMWEAVER, device, {})
    assert torch.allclose(newest, dit.rope_encode(1, 60, 104, t_start=-1, dtype=torch.float32), atol=1e-5)
    scaled = {"rope_options": {"scale_y": 0.5, "shift_x": 2.0}}
    assert torch.allclose(
        cache_tokens._angles(dit, segments[3], FILMWEAVER, device, scaled),
        dit.rope_encode(1, 60, 104, t_start=-1, dtype=torch.float32, transformer_options=scaled),
        atol=1e-5,
    )


def test_tokens_are_those_of_the_model(model):
    """A clean frame at full rate is embedded exactly as the model embeds it within a chunk."""
    dit, latent = model.model.diffusion_model, noise(3, 16, 1, *SIZE)
    cache = push_chunk(StoryCache("v", 16, *SIZE), latent)
    (segment,) = build_payload(cache, []).segments
    wanted = dit.patch_embedding(latent[None]).flatten(2).transpose(1, 2)
    assert torch.equal(cache_tokens._embed(dit, segment, FILMWEAVER, latent), wanted)


@pytest.mark.parametrize("fill", ["zeros", "known"])
def test_image_to_video_channels_are_filled_as_the_profile_says(fill):
    model = comfy.sd.load_diffusion_model_state_dict(
        tiny_models.image_to_video_weights(), metadata=tiny_models.dit_metadata(causal=False)
    )
    profile = replace(FILMWEAVER, channel_fill=fill)
    install(model, profile)
    dit, latent = model.model.diffusion_model, noise(3, 16, 1, *SIZE)
    cache = push_chunk(StoryCache("v", 16, *SIZE, profile=profile), latent)
    (segment,) = build_payload(cache, []).segments
    rest = [torch.ones(1, 4, 1, *SIZE), latent[None]] if fill == "known" else [torch.zeros(1, 20, 1, *SIZE)]
    wanted = dit.patch_embedding(torch.cat([latent[None], *rest], dim=1)).flatten(2).transpose(1, 2)
    assert torch.equal(cache_tokens._embed(dit, segment, profile, latent), wanted)


def test_vace_is_refused():
    model = load(vace=True)
    with pytest.raises(CacheError, match="VACE"):
        install(model, FILMWEAVER)


def test_context_windows_are_refused(model):
    patched = install(model, FILMWEAVER)
    patched.model_options["context_handler"] = IndexListContextHandler(
        ContextSchedule("x", None), ContextFuseMethod("x", None), context_length=4, context_overlap=1, dim=2
    )
    with pytest.raises(CacheError, match="Context windows"):
        sample(patched, payload())
    with pytest.raises(CacheError, match="Context windows"):
        check_model(patched, FILMWEAVER)


def test_attention_that_takes_tokens_for_a_grid_is_refused(model):
    other = install(model, FILMWEAVER)
    other.set_model_attn1_patch(lambda args: args["x"])
    for refused in (lambda: sample(other, payload()), lambda: check_model(other, FILMWEAVER)):
        with pytest.raises(CacheError, match="grid of frames"):
            refused()
    replaced = install(model, FILMWEAVER)
    replaced.add_object_patch("diffusion_model.forward_orig", lambda *args, **kwargs: None)
    with pytest.raises(CacheError, match="grid of frames"):
        sample(replaced, payload())
    assert torch.isfinite(sample(install(model, FILMWEAVER), payload())).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"phase": 0.0}, "phase 0.166"), ({"time_mode": "own"}, 'time mode "shared" where "own"')],
)
def test_a_payload_of_another_layout_is_refused(model, change, message):
    with pytest.raises(CacheError, match=message):
        sample(install(model, replace(FILMWEAVER, **change)), payload())


def test_another_size_is_refused(model):
    cache = push_chunk(StoryCache("v", 16, 8, 8), noise(1, 16, 1, 8, 8))
    with pytest.raises(CacheError, match="8x8 and the shot's 4x6"):
        sample(install(model, FILMWEAVER), build_payload(cache, []))


def test_other_patches_are_refused(model):
    with pytest.raises(CacheError, match=r"patches are \[1, 2, 2\]"):
        install(model, replace(FILMWEAVER, patch=(1, 4, 4)))
