"""A joint latent through a stock Wan model."""

from __future__ import annotations

from dataclasses import replace

import comfy.context_windows
import comfy.patcher_extension
import comfy.sd
import pytest
import torch
from longreel.film.motion import MotionError
from longreel.host.adapters.motion import attach, read_adapter, write_adapter, zero_adapter
from longreel.host.wan.joint_latent import check_model, joint_of

from ... import tiny_models
from ...device import same
from ..joint_models import SIZE, info, load, network_inputs, random_adapter, sample

SAMPLERS = ("euler", "heun", "dpmpp_2m", "uni_pc", "res_multistep")
KIND = comfy.patcher_extension.WrappersMP


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def zero(model):
    return attach(model, zero_adapter(model, info()))


@pytest.mark.parametrize(("sampler", "head"), [*((each, "single") for each in SAMPLERS), ("euler", "separate")])
def test_zero_adapter_is_the_base(model, sampler, head):
    with_adapter = attach(model, zero_adapter(model, info(head=head)))
    same(sample(with_adapter, sampler=sampler), sample(model, sampler=sampler))


@pytest.mark.parametrize(("size", "batch"), [((3, 5, 7), 1), ((1, 4, 4), 2)])
def test_zero_adapter_is_the_base_at_odd_sizes_and_in_batches(model, zero, size, batch):
    same(sample(zero, size=size, batch=batch), sample(model, size=size, batch=batch))


def test_zero_adapter_is_the_base_for_image_to_video():
    model = load(tiny_models.image_to_video_weights())
    picture = {"concat_latent_image": torch.randn(1, 16, *SIZE), "concat_mask": torch.ones(1, 1, *SIZE)}
    with_adapter = attach(model, zero_adapter(model, info()))
    same(sample(with_adapter, extra=picture), sample(model, extra=picture))
    moved = attach(model, random_adapter(model))
    assert not torch.equal(sample(moved, extra=picture), sample(model, extra=picture))


def test_zero_adapter_is_the_base_with_a_given_first_frame():
    """Wan 2.2 TI2V 5B: the mask keeps the appearance's first frame and tells it noise level 0."""
    model = load(tiny_models.wan_weights(channels=48))
    mask = torch.ones(1, 1, *SIZE)
    mask[:, :, 0] = 0
    latent = torch.randn(1, 48, *SIZE, generator=torch.Generator().manual_seed(1))
    with_adapter = attach(model, zero_adapter(model, info(48)))
    expected = sample(model, mask=mask, latent=latent)
    same(sample(with_adapter, mask=mask, latent=latent), expected)
    assert torch.allclose(expected[:, :, 0], latent[:, :, 0], atol=1e-5)
    moved = sample(attach(model, random_adapter(model)), mask=mask, latent=latent)
    assert torch.allclose(moved[:, :, 0], latent[:, :, 0], atol=1e-5)


def with_windows(model):
    windowed = model.clone()
    windowed.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=3,
        context_overlap=1,
        dim=2,
    )
    comfy.context_windows.create_prepare_sampling_wrapper(windowed)
    comfy.context_windows.create_sampler_sample_wrapper(windowed)
    return windowed


def test_zero_adapter_is_the_base_in_context_windows(model):
    windowed, size = with_windows(model), (6, 4, 6)
    expected = sample(windowed, size=size)
    same(sample(attach(windowed, zero_adapter(model, info())), size=size), expected)
    first = next(iter(attach(windowed, zero_adapter(model, info())).wrappers[KIND.SAMPLER_SAMPLE]))
    assert first == "longreel_motion", "the noise of both halves is shuffled together"


def test_zero_adapter_is_the_base_under_an_attention_of_another_pack(model):
    calls = []

    def override(function, *args, **kwargs):
        calls.append(args[0].shape)
        return function(*args, **kwargs) * 0.5

    other = model.clone()
    other.model_options["transformer_options"] = {"optimized_attention_override": override}
    expected = sample(other)
    assert calls
    assert not torch.equal(expected, sample(model))
    same(sample(attach(other, zero_adapter(model, info()))), expected)


def test_the_base_is_unchanged_after_a_run(model):
    before, weights = sample(model), {k: v.clone() for k, v in model.model.state_dict().items()}
    assert not torch.equal(sample(attach(model, random_adapter(model))), before)
    assert not torch.equal(sample(attach(model, random_adapter(model, trunk=False))), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.model.state_dict().items())
    same(sample(model), before)
    assert joint_of(model) is None


def test_strengths_of_zero_are_the_base(model):
    adapter = random_adapter(model)
    same(sample(attach(model, adapter, lora_strength=0, motion_strength=0)), sample(model))
    trunk = sample(attach(model, adapter, motion_strength=0))
    plain, _ = comfy.sd.load_lora_for_models(model, None, dict(adapter.trunk), 1.0, 0.0)
    assert torch.equal(trunk, sample(plain)), "without motion the trunk is an ordinary LoRA"


def test_appearance_noise_is_the_bases_and_motion_noise_follows_the_seed(model):
    adapter = random_adapter(model)
    runs = []
    for patched in (model, attach(model, adapter), attach(model, adapter), attach(model, adapter, seed_offset=1)):
        looked, seen = network_inputs(patched)
        sample(looked, cfg=1.0)
        runs.append(seen[0][0])
    base, first, again, other = runs
    assert (base.shape[1], first.shape[1]) == (16, 32)
    assert all(torch.equal(run[:, :16], base) for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first[:, 16:], other[:, 16:])
    assert first[:, 16:].std() == pytest.approx(1.0, abs=0.15)


def test_guidance_of_one_is_a_single_evaluation(model):
    looked, seen = network_inputs(attach(model, random_adapter(model)))
    sample(looked, cfg=1.0)
    assert [len(x) for x, _ in seen] == [1, 1, 1, 1]


def test_previews_and_results_have_the_bases_channels(model):
    shapes = []
    adapter = random_adapter(model)
    result = sample(attach(model, adapter), callback=lambda step, x0, x, total: shapes.append((x0.shape, x.shape)))
    assert result.shape == (1, 16, *SIZE)
    assert shapes == [((1, 16, *SIZE),) * 2] * 4


def test_motion_is_returned_beside_the_appearance(model):
    adapter = random_adapter(model, motion_latent_scale=2.0)
    kept = []
    nested = sample(attach(model, adapter, return_motion=True), callback=lambda step, x0, *rest: kept.append(x0))
    assert nested.is_nested
    appearance, motion = nested.unbind()
    same(appearance, sample(attach(model, adapter)))
    assert motion.shape == appearance.shape
    assert not torch.equal(motion, appearance)
    assert all(x0.is_nested for x0 in kept)
    assert torch.allclose(model.model.process_latent_out(kept[-1]).unbind()[1], motion, atol=1e-5)


def test_a_second_stage_continues_the_motion_it_is_given(model):
    """Two KSampler (Advanced) nodes, motion handed over, are one."""
    adapter = random_adapter(model, motion_latent_scale=2.0)
    whole = sample(attach(model, adapter))
    first = sample(attach(model, adapter, return_motion=True), start_step=0, last_step=2)
    appearance, motion = first.unbind()
    still = {"noise": torch.zeros_like(appearance), "latent": appearance, "start_step": 2, "last_step": 4}
    second = sample(attach(model, adapter, start=motion), **still)
    assert torch.allclose(second, whole, atol=2e-4)
    # Without it the trunk alone goes on, as on the low-noise expert of A14B.
    trunk, _ = comfy.sd.load_lora_for_models(model, None, dict(adapter.trunk), 1.0, 0.0)
    same(sample(attach(model, adapter), **still), sample(trunk, **still))


def test_handing_over_to_the_untouched_low_noise_expert(model, zero):
    whole = sample(model)
    high = sample(zero, start_step=0, last_step=2)
    low = sample(model, noise=torch.zeros_like(high), latent=high, start_step=2, last_step=4)
    assert torch.allclose(low, whole, atol=2e-4)


def test_blocks_that_others_replace_or_patch_act_too(model):
    adapter = random_adapter(model)
    ours = sample(attach(model, adapter))
    other = model.clone()
    other.set_model_patch_replace(
        lambda args, extra: {"img": extra["original_block"](args)["img"] * 1.5}, "dit", "double_block", 0
    )
    both = sample(attach(other, adapter))
    assert not torch.allclose(both, ours)
    assert not torch.allclose(both, sample(other))


def test_a_file_round_trip(model, tmp_path):
    for head in ("single", "separate"):
        adapter = random_adapter(model, head=head)
        path = tmp_path / f"{head}.safetensors"
        write_adapter(path, adapter)
        read = read_adapter(path)
        assert read.info == adapter.info
        same(sample(attach(model, read)), sample(attach(model, adapter)))
    assert not list(tmp_path.glob("*.part"))


def test_the_plain_lora_loader_loads_the_trunk(model, tmp_path):
    adapter = random_adapter(model)
    write_adapter(tmp_path / "a.safetensors", adapter)
    weights = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    plain, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    same(sample(plain), sample(attach(model, adapter, motion_strength=0)))


def test_a_fully_trained_trunk_is_a_patch_of_whole_weights(model):
    name = "diffusion_model.blocks.0.ffn.0.weight"
    difference = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)) * 0.1
    made = zero_adapter(model, info(full=True))
    full = replace(made, trunk={name.removesuffix("weight") + "diff": difference})
    weights = tiny_models.wan_weights()
    weights[name.removeprefix("diffusion_model.")] += difference
    assert torch.allclose(sample(attach(model, full)), sample(load(weights)), atol=1e-5)


def test_files_that_are_not_whole_are_refused(model, tmp_path):
    path = tmp_path / "a.safetensors"
    write_adapter(path, random_adapter(model, head="separate"))
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    del weights["videojam.head.motion.modulation"]
    from safetensors.torch import save_file

    save_file(weights, path, metadata)
    with pytest.raises(MotionError, match=r"a\.safetensors lacks videojam\.head\.motion\.modulation"):
        read_adapter(path)
    save_file(weights, path)
    with pytest.raises(MotionError, match="no motion adapter"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": 1536}, r"Wan2\.1-T2V-1\.3B \(1536 wide, 16 latent channels.*WAN21 \(64 wide"),
        ({"latent_channels": 48}, "48 latent channels"),
        ({"patch": (1, 4, 4)}, r"patches \[1, 4, 4\]"),
    ],
)
def test_another_base_is_refused_with_both_names(model, change, said):
    with pytest.raises(MotionError, match=said):
        check_model(model, replace(info(), base_model="Wan2.1-T2V-1.3B", **change))


def test_models_that_cannot_carry_motion_are_refused():
    with pytest.raises(MotionError, match="VaceWanModel"):
        check_model(load(tiny_models.wan_weights(vace=True)), info())


def test_a_trunk_of_another_model_is_refused(model):
    adapter = random_adapter(model)
    foreign = {name.replace("blocks.0", "blocks.70"): value for name, value in adapter.trunk.items()}
    with pytest.raises(MotionError, match="Nothing of the trunk"):
        attach(model, replace(adapter, trunk=foreign))


def test_motion_of_another_size_is_refused(model):
    with pytest.raises(MotionError, match="video of this size"):
        sample(attach(model, random_adapter(model), start=torch.zeros(1, 16, 3, 8, 8)))


def test_step_caches_are_refused(model, zero):
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(zero, 0.2, 0.15, 0.95, False).args[0]
    with pytest.raises(MotionError, match="EasyCache"):
        sample(cached)


def test_other_wrappers_of_the_network_see_the_base_input(model, zero):
    """A node behind ours, as the engines' own: it gets C channels and the base's shape."""
    seen = []

    def look(executor, x, *args, **kwargs):
        seen.append(x.shape[1])
        return executor(x, *args, **kwargs)

    after, before = zero.clone(), model.clone()
    after.add_wrapper_with_key(KIND.DIFFUSION_MODEL, "look", look)
    sample(after, cfg=1.0, steps=1)
    before.add_wrapper_with_key(KIND.DIFFUSION_MODEL, "look", look)
    sample(attach(before, zero_adapter(model, info())), cfg=1.0, steps=1)
    assert seen == [16, 32]
