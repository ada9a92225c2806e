"""roll_out through the real ComfyUI on the golden file's tiny Wan model."""

from __future__ import annotations

import gc
import json
import weakref
from types import SimpleNamespace

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from longreel.film.kv_memory import LONGLIVE, MEMFLOW, UNBOUNDED, MemorySettings, MemorySettingsError, MemorySnapshot
from longreel.host.wan import attention as frame_attention_room
from longreel.host.wan import forward as wan
from longreel.host.wan.causal_models import UnsupportedModelError
from longreel.host.wan.noise import SeededNoise
from longreel.host.wan.rollout import Prompt, RolloutError, RolloutSampler, roll_out
from longreel.kernels.dense import dense_attention
from longreel.kernels.ops import frame_attention, qk_prep
from longreel.kernels.sparse import copy_frames
from safetensors.torch import load, save

from ...device import same

SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])


@pytest.fixture(scope="module")
def conds(golden):
    return [[[golden.tensors[f"prompt.p{i}"], {}]] for i in range(3)]


def film(model, conds, blocks, *, size=(4, 6), frames_per_block=3, prompts=None, sigmas=SIGMAS, **kwargs):
    shape = (1, 16, blocks * frames_per_block, *size)
    prompts = prompts or [Prompt(0, conds[0])]
    kwargs.setdefault("seed", 7)
    return roll_out(model, prompts, shape, sigmas, frames_per_block=frames_per_block, **kwargs)


def through_disk(memory):
    """A snapshot as a reel stores it."""
    return MemorySnapshot(load(save(dict(memory.tensors))), json.loads(json.dumps(memory.meta)))


MEMORIES = {
    "memflow": MEMFLOW,
    "longlive": LONGLIVE,
    "unbounded": UNBOUNDED,
    "sparse": MemorySettings(record="single", active=3),
    "relative": MemorySettings(positions="relative", active=2),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_saved_in_the_middle_and_continued_is_the_same_film(tiny_wan, conds, name):
    settings = MEMORIES[name]
    switch = [Prompt(0, conds[0]), Prompt(15, conds[1])]
    whole = film(tiny_wan, conds, 14, prompts=switch, settings=settings)
    begun = film(tiny_wan, conds, 6, prompts=switch, settings=settings)
    rest = film(
        tiny_wan,
        conds,
        8,
        prompts=[Prompt(0, conds[1])],
        settings=settings,
        memory=through_disk(begun.memory),
        start="resume",
        first_block=6,
    )
    same(whole.latents, torch.cat([begun.latents, rest.latents], dim=2))
    assert whole.memory.meta == rest.memory.meta
    assert all(torch.equal(tensor, rest.memory.tensors[key]) for key, tensor in whole.memory.tensors.items())


def test_a_continued_shot_equals_a_prompt_switch_inside_one(tiny_wan, conds):
    whole = film(tiny_wan, conds, 8, prompts=[Prompt(0, conds[0]), Prompt(12, conds[1])])
    first = film(tiny_wan, conds, 4)
    prompts = [Prompt(0, conds[1])]
    second = film(tiny_wan, conds, 4, prompts=prompts, memory=first.memory, start="continue", first_block=4)
    same(whole.latents, torch.cat([first.latents, second.latents], dim=2))


def test_a_cut_forgets_the_window_but_not_sink_and_bank(tiny_wan, conds):
    bare = MemorySettings(window=9, sink=0, bank=0)
    before = film(tiny_wan, conds, 5, settings=bare, seed=1)
    alone = film(tiny_wan, conds, 3, settings=bare)
    cut = film(tiny_wan, conds, 3, settings=bare, memory=before.memory)
    # nothing of the past is left, and RoPE only knows distances
    assert (cut.latents - alone.latents).abs().max() < 1e-4
    assert cut.memory.position == 24

    before = film(tiny_wan, conds, 5, settings=MEMFLOW, seed=1)
    cut = film(tiny_wan, conds, 3, settings=MEMFLOW, memory=before.memory)
    assert (cut.latents - alone.latents).abs().max() > 1e-2
    assert cut.memory.meta["sink"] == [0, 1, 2]


def test_relative_positions_equal_absolute_ones_until_the_window_is_full(tiny_wan, conds):
    # sink 3 and window 12: the fifth block is the first to evict
    absolute = film(tiny_wan, conds, 6, settings=LONGLIVE).latents
    relative = film(tiny_wan, conds, 6, settings=MemorySettings(bank=0, positions="relative")).latents
    assert (absolute - relative)[:, :, :12].abs().max() < 1e-4
    assert (absolute - relative)[:, :, 12:15].abs().max() > 1e-3


def test_a_given_first_frame_stays_and_is_seen(tiny_wan, conds):
    image = torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    plain = film(tiny_wan, conds, 2)
    given = film(tiny_wan, conds, 2, first_frame=image)
    assert (given.latents[:, :, :1] - image).abs().max() < 1e-5
    assert (given.latents - plain.latents)[:, :, 1:3].abs().max() > 1e-2
    after = film(tiny_wan, conds, 2, first_frame=image, memory=plain.memory)
    assert (after.latents[:, :, :1] - image).abs().max() < 1e-5


def test_the_given_frame_is_told_timestep_zero(load_tiny, conds):
    model = load_tiny()
    seen = []
    model.model.diffusion_model.time_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    film(model, conds, 1, first_frame=torch.ones(1, 16, 2, 4, 6))
    # at timestep 0 all cosines are one and all sines zero
    still = [[bool((row[:16] == 1).all()) for row in wave] for wave in seen]
    assert still == [[True, True, False]] * 4 + [[True, True, True]]


def test_blocks_and_progress_are_reported(tiny_wan, conds):
    blocks, steps = [], []
    rollout = film(
        tiny_wan,
        conds,
        3,
        on_block=lambda index, latents: blocks.append((index, latents.clone())),
        callback=lambda step, x0, x, total: steps.append((step, x0.shape[2], total)),
    )
    assert [index for index, _ in blocks] == [0, 1, 2]
    assert torch.equal(torch.cat([latents for _, latents in blocks], dim=2).cpu(), rollout.latents)
    assert steps == [(i, 3, 12) for i in range(12)]


def test_a_shots_noise_depends_on_nothing_else(tiny_wan, conds):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = film(tiny_wan, conds, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(film(tiny_wan, conds, 2).latents, one.latents)
    assert not torch.equal(film(tiny_wan, conds, 2, seed=8).latents, one.latents)
    streams = [SeededNoise(seed)(block, step, (4,)) for seed in (0, 1) for block in (0, 1) for step in (0, 1)]
    assert len({tuple(stream.tolist()) for stream in streams}) == 8


def test_euler_with_many_steps_and_other_block_sizes(tiny_wan, conds):
    settings = MemorySettings(window=5, sink=1, bank=2, record_interval=2)
    sigmas = torch.linspace(1, 0, 9)
    rollout = film(tiny_wan, conds, 7, settings=settings, frames_per_block=2, loop="euler", sigmas=sigmas, size=(5, 7))
    assert rollout.latents.shape == (1, 16, 14, 5, 7)
    assert bool(rollout.latents.isfinite().all())


def test_one_euler_step_equals_one_renoise_step(tiny_wan, conds):
    sigmas = torch.tensor([1.0, 0.0])
    euler, renoise = (film(tiny_wan, conds, 3, sigmas=sigmas, loop=loop).latents for loop in ("euler", "renoise"))
    assert torch.equal(euler, renoise)


def test_a_used_model_is_bit_identical_in_cores_sampler(load_tiny, conds):
    def ksample(model):
        noise = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
        zeros = torch.zeros_like(noise)
        return comfy.sample.sample(model, noise, 3, 2.0, "euler", "simple", conds[0], conds[1], zeros, seed=0)

    untouched, used = load_tiny(causal=False), load_tiny(causal=False)
    options = json.dumps(used.model_options, default=str)
    expected = ksample(untouched)
    film(used, conds, 2, prompts=[Prompt(0, conds[0]), Prompt(3, conds[1])])
    assert json.dumps(used.model_options, default=str) == options
    assert not used.wrappers
    assert torch.equal(ksample(used), expected)


def test_plain_and_causal_wan_make_the_same_film(load_tiny, tiny_wan, conds):
    same(film(load_tiny(causal=False), conds, 3).latents, film(tiny_wan, conds, 3).latents)


@pytest.mark.parametrize("when", [0, 6, 17])
def test_an_interrupt_leaves_nothing_behind(tiny_wan, conds, when, monkeypatch):
    expected = film(tiny_wan, conds, 2).latents
    arenas = []
    allocate = RolloutSampler._allocate

    def spy(self, *args):
        allocate(self, *args)
        arenas.append(weakref.ref(self.memory.arena.k[0]))

    monkeypatch.setattr(RolloutSampler, "_allocate", spy)

    def interrupt(step, *_):
        if step == when:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException) as caught:
        film(tiny_wan, conds, 8, callback=interrupt)
    del caught
    gc.collect()
    assert len(arenas) == 1
    assert arenas[0]() is None
    same(film(tiny_wan, conds, 2).latents, expected)
    gc.collect()
    assert arenas[1]() is None


def test_lora_patches_apply(load_tiny, tiny_wan, conds):
    key = "diffusion_model.blocks.1.self_attn.k.weight"
    delta = 0.05 * torch.randn(96, 96, generator=torch.Generator().manual_seed(5))
    patched, merged = load_tiny().clone(), load_tiny()
    patched.add_patches({key: (delta,)})
    merged.model.diffusion_model.blocks[1].self_attn.k.weight.data += delta
    found = film(patched, conds, 2).latents
    assert (found - film(merged, conds, 2).latents).abs().max() < 1e-5
    assert (found - film(tiny_wan, conds, 2).latents).abs().max() > 1e-3


def test_the_cache_keeps_the_compute_dtype_of_an_fp8_model(load_tiny, conds):
    model = load_tiny(dtype=torch.float8_e4m3fn)
    assert model.model.diffusion_model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    rollout = film(model, conds, 6)
    assert rollout.memory.tensors["k"].dtype == model.model.get_dtype_inference() != torch.float8_e4m3fn
    assert bool(rollout.latents.isfinite().all())


def test_block_and_attention_patches_are_honoured(load_tiny, conds):
    model = load_tiny()
    plain = film(model, conds, 2).latents
    clone, called = model.clone(), []

    def note(name, value):
        return lambda args: (called.append(name), args[value])[1]

    def double_block(args):
        called.append("double_block")
        return {"img": args["img"]}

    def replace(args, extra):
        called.append("dit")
        assert args["txt"].shape[-1] == args["img"].shape[-1]
        return extra["original_block"](args)

    def override(function, *args, **kwargs):
        called.append("override")
        return function(*args, **kwargs)

    clone.set_model_attn1_patch(note("attn1", "x"))
    clone.set_model_attn2_patch(note("attn2", "x"))
    clone.set_model_patch(double_block, "double_block")
    clone.set_model_patch_replace(replace, "dit", "double_block", 1)
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    same(film(clone, conds, 2).latents, plain)
    assert set(called) == {"attn1", "attn2", "double_block", "dit", "override"}

    louder = model.clone()
    louder.set_model_attn1_patch(lambda args: args["x"] * 2)
    assert not torch.equal(film(louder, conds, 2).latents, plain)


@pytest.mark.parametrize("name", ["sparse", "relative"])
def test_sparse_activation_in_place_equals_its_copy(tiny_wan, conds, monkeypatch, name):
    copied = film(tiny_wan, conds, 8, settings=MEMORIES[name]).latents
    used = []

    def spy(*tensors):
        used.append(tensors[3].shape)
        return frame_attention(*tensors)

    monkeypatch.setattr(frame_attention_room, "frame_attention", spy)
    monkeypatch.setenv("LONGREEL_ATTENTION", "torch")
    in_place = film(tiny_wan, conds, 8, settings=MEMORIES[name]).latents
    assert used
    assert (in_place - copied).abs().max() < 1e-4
    used.clear()
    dense = film(tiny_wan, conds, 2, settings=MEMFLOW).latents
    assert not used, "dense attention is ComfyUI's"
    same(dense, film(tiny_wan, conds, 2, settings=MEMFLOW).latents)
    clone = tiny_wan.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    film(clone, conds, 8, settings=MEMORIES[name])
    assert not used, "another attention that the user chose stays"


@pytest.mark.parametrize("name", ["sparse", "relative"])
def test_the_kernels_way_of_sparse_activation_is_the_same_film(tiny_wan, conds, monkeypatch, name):
    plain, copies = film(tiny_wan, conds, 8, settings=MEMORIES[name]), []

    def spy(*given):
        copies.append(given)
        return copy_frames(*given)

    monkeypatch.setattr(frame_attention_room, "has_kernel", lambda q: True)
    monkeypatch.setattr(frame_attention_room, "copy_frames", spy)
    other = film(tiny_wan, conds, 8, settings=MEMORIES[name])
    assert copies
    same(other.latents, plain.latents)
    assert other.log == plain.log
    assert any(line["picks"] for line in plain.log)


@pytest.mark.parametrize("name", ["memflow", "sparse", "relative"])
def test_qk_preparation_writes_what_the_layers_would(tiny_wan, conds, monkeypatch, name):
    settings, prompts = MEMORIES[name], [Prompt(0, conds[0]), Prompt(18, conds[1])]
    plain = film(tiny_wan, conds, 9, settings=settings, prompts=prompts)
    calls = []

    def spy(*tensors, **kwargs):
        calls.append(tensors[0].shape)
        return qk_prep(*tensors, **kwargs)

    monkeypatch.setattr(frame_attention_room, "qk_prep", spy)
    monkeypatch.setenv("LONGREEL_ATTENTION", "torch")
    prepared = film(tiny_wan, conds, 9, settings=settings, prompts=prompts)
    assert calls
    assert (prepared.latents - plain.latents).abs().max() < 1e-4
    assert (prepared.memory.tensors["sink.means"] - plain.memory.tensors["sink.means"]).abs().max() < 1e-5
    calls.clear()
    clone = tiny_wan.clone()
    clone.set_model_attn1_patch(lambda args: args["x"])
    film(clone, conds, 2, settings=settings)
    assert not calls, "a patch wants the queries"


def test_the_fused_layer_norm_is_the_same_one(tiny_wan, conds, monkeypatch):
    plain = film(tiny_wan, conds, 3, settings=MEMFLOW).latents
    monkeypatch.setattr(wan, "_has_fused_norm", lambda x: True)
    fused = film(tiny_wan, conds, 3, settings=MEMFLOW).latents
    assert not torch.equal(fused, plain), "it was called"
    assert (fused - plain).abs().max() < 1e-4


def test_cudnn_comes_first_only_where_nobody_chose(tiny_wan, conds, monkeypatch):
    plain, used = film(tiny_wan, conds, 2).latents, []

    def dense(q, k, v):
        used.append(q.shape)
        return dense_attention(q, k, v)

    monkeypatch.setattr(frame_attention_room, "dense_attention", dense)
    same(film(tiny_wan, conds, 2).latents, plain)
    assert not used, "a CPU has no cuDNN"
    monkeypatch.setattr(frame_attention_room, "prefers_cudnn", lambda q: True)
    chosen = comfy.ldm.modules.attention.optimized_attention
    pytorch = comfy.ldm.modules.attention.attention_pytorch
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", pytorch)
    assert (film(tiny_wan, conds, 2).latents - plain).abs().max() < 1e-4
    assert used
    used.clear()
    for setting in ("sdpa", "torch"):
        monkeypatch.setenv("LONGREEL_ATTENTION", setting)
        film(tiny_wan, conds, 1)
    monkeypatch.delenv("LONGREEL_ATTENTION")
    clone = tiny_wan.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    film(clone, conds, 1)
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", lambda *a, **k: chosen(*a, **k))
    film(tiny_wan, conds, 1)
    assert not used, "what the user chose stays"


@pytest.mark.parametrize("position", [0, 255, 1023, 4998])
def test_positions_are_exact_far_beyond_1024_frames(load_tiny, conds, position):
    model = load_tiny()
    begun = film(model, conds, 1, settings=LONGLIVE)
    later = MemorySnapshot(begun.memory.tensors, {**begun.memory.meta, "position": position})
    seen = []

    def replace(args, extra):
        seen.append(args["pe"])
        return extra["original_block"](args)

    clone = model.clone()
    clone.set_model_patch_replace(replace, "dit", "double_block", 0)
    film(clone, conds, 1, settings=LONGLIVE, memory=later)
    rotation = seen[0]
    assert rotation.dtype == torch.float32
    # head 24: 8 temporal, 8 height, 8 width channels; tokens in 3 x 2 x 3
    frames = torch.arange(position, position + 3, dtype=torch.float64)
    angles = torch.outer(frames, 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)).repeat_interleave(6, dim=0)
    found = rotation[0, :, 0, :4]
    assert (found[..., 0, 0] - angles.cos()).abs().max() < 1e-6
    assert (found[..., 1, 0] - angles.sin()).abs().max() < 1e-6


def test_works_in_a_stock_guider_with_one_prompt(load_tiny, conds):
    model = load_tiny()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds[0], conds[1])
    guider.set_cfg(1.0)
    noise = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(noise)
    latents = guider.sample(noise, zeros, RolloutSampler(), SIGMAS, seed=9)
    given = SeededNoise(9, given=noise)
    assert torch.equal(latents, film(model, conds, 2, noise=given).latents)
    guider.set_cfg(3.0)
    with pytest.raises(RolloutError, match="set the guidance"):
        guider.sample(noise, zeros, RolloutSampler(), SIGMAS, seed=9)


def test_a_joint_latent_is_refused(load_tiny, conds):
    """As a model with a motion adapter makes it: a wrapper doubles the channels between guider and sampler."""

    def joint(executor, guider, sigmas, extra_args, callback, noise, latent, *rest):
        return executor(guider, sigmas, extra_args, callback, torch.cat([noise, noise], dim=1), latent, *rest)

    model = load_tiny()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, joint)
    with pytest.raises(RolloutError, match="joint latent"):
        film(model, conds, 1)


def test_the_memory_is_made_outside_the_record_of_allocations(tiny_wan, conds, paused):
    film(tiny_wan, conds, 1)
    assert len(paused) == len(SIGMAS), "each denoising pass, and the clean one"


def foreign(dit):
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=dit))


def test_unsuitable_models_are_refused(load_tiny, golden, conds):
    with pytest.raises(UnsupportedModelError, match="not a Wan model"):
        film(foreign(torch.nn.Identity()), conds, 1)

    import comfy.ldm.wan.model

    variant = load_tiny()
    variant.model.diffusion_model.__class__ = comfy.ldm.wan.model.HumoWanModel
    with pytest.raises(UnsupportedModelError, match="HumoWanModel needs inputs"):
        film(variant, conds, 1)

    image = load_tiny()
    image.model.diffusion_model.patch_embedding = torch.nn.Conv3d(36, 96, (1, 2, 2), (1, 2, 2))
    with pytest.raises(UnsupportedModelError, match="36 input channels"):
        film(image, conds, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance": 3.5}, "set the guidance"),
        ({"sigmas": torch.tensor([1.0, 0.5])}, "to 0"),
        ({"sigmas": torch.tensor([1.0, 1.0, 0.0])}, "step by step"),
        ({"sigmas": torch.tensor([14.6, 1.0, 0.0])}, "start at 1"),
        ({"loop": "dpm"}, "choose 'renoise'"),
        ({"start": "later"}, "choose 'cut'"),
        ({"first_frame": torch.zeros(1, 16, 1, 8, 8)}, "resize it"),
        ({"first_frame": torch.zeros(1, 16, 4, 4, 6)}, "At most 3"),
        ({"frames_per_block": 0}, "at least 1 frame"),
    ],
)
def test_bad_input_gets_one_sentence(tiny_wan, conds, changes, words):
    with pytest.raises(RolloutError, match=words) as caught:
        film(tiny_wan, conds, 1, **changes)
    assert str(caught.value).endswith(".")


def test_bad_prompts_and_lengths_are_refused(tiny_wan, conds):
    with pytest.raises(RolloutError, match="start at frame 0"):
        film(tiny_wan, conds, 2, prompts=[Prompt(3, conds[0])])
    with pytest.raises(RolloutError, match="whole blocks of 3"):
        roll_out(tiny_wan, [Prompt(0, conds[0])], (1, 16, 7, 4, 6), SIGMAS)
    with pytest.raises(RolloutError, match="16 channels"):
        roll_out(tiny_wan, [Prompt(0, conds[0])], (1, 4, 6, 4, 6), SIGMAS)
    with pytest.raises(UnsupportedModelError, match="one prompt"):
        film(tiny_wan, conds, 1, prompts=[Prompt(0, conds[0] + conds[1])])
    late = [[conds[0][0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    with pytest.raises(RolloutError, match="percentages"):
        film(tiny_wan, conds, 1, prompts=[Prompt(0, late)])
    with pytest.raises(MemorySettingsError, match="has no room"):
        film(tiny_wan, conds, 1, settings=MemorySettings(window=5, sink=3, bank=0))


def test_memory_is_fitted_before_the_model_and_does_not_grow_with_the_film(load_tiny, conds, monkeypatch):
    freed, shapes = [], []
    monkeypatch.setattr(comfy.model_management, "free_memory", lambda size, *a, **k: freed.append(size) or [])
    model = load_tiny()
    inner = model.model.memory_required

    def required(shape, **kwargs):
        shapes.append(list(shape))
        return inner(shape, **kwargs)

    monkeypatch.setattr(model.model, "memory_required", required)
    film(model, conds, 2)
    film(model, conds, 20)
    # 16 frames of keys and values (window 12, bank 3, pending 1), 3 layers, 4 heads, 6 tokens, 24 channels, fp32
    assert freed.count(2 * 16 * 3 * 4 * 6 * 24 * 4) == 2
    assert {shape[2] for shape in shapes} == {3}
