"""Identities of AID's adapters (T1 to T3, T7, T10 to T16) on a scaled-down SVD of ComfyUI's real classes."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from longreel.film.instruction import InstructionError
from longreel.film.instruction.settings import FORMAT_VERSION
from longreel.host.svd.adapters import (
    AdapterFile,
    Handlers,
    Strengths,
    apply_adapter,
    begin_cross,
    install,
    load_adapter,
    save_adapter,
    sites_of,
)
from longreel.host.svd.model import make_svd
from safetensors.torch import load_file, save_file

from .conftest import FRAMES, SIZE, TOKENS

WIDTH = SIZE.context_dim


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def given(tokens: int = 1 + TOKENS, videos: int = 1, seed: int = 9) -> dict:
    rows = videos * FRAMES
    return {
        "x": noise(rows, 4, 8, 8, seed=seed),
        "t": torch.full((rows,), 1.5),
        "c_concat": noise(rows, 4, 8, 8, seed=seed + 1),
        "c_crossattn": noise(rows, tokens, WIDTH, seed=seed + 2),
        "y": noise(rows, 768, seed=seed + 3),
        "time_context": noise(rows, 1, WIDTH, seed=seed + 4),
        "num_video_frames": FRAMES,
    }


def run(model, **inputs) -> torch.Tensor:
    """One call as ComfyUI's sampler and our trainer make it."""
    inputs = {**given(), **inputs}
    if inputs["time_context"] is None:
        del inputs["time_context"]
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "sigmas": inputs["t"][:1]}
    return model.model.apply_model(transformer_options=options, **inputs)


def loud(model, adapter, strengths=None):
    """With nothing left out, even what is zero."""
    return install(model, Handlers(adapter, strengths or Strengths()))


def test_the_sites_are_those_with_transformers_in_their_order(svd):
    sites = sites_of(svd.model.diffusion_model)
    assert [site.name for site in sites] == [
        "input_blocks.1", "input_blocks.3", "middle_block",
        "output_blocks.0", "output_blocks.1", "output_blocks.2", "output_blocks.3",
    ]  # fmt: skip
    assert [site.width for site in sites] == [32, 64, 64, 64, 64, 32, 32]
    assert [site.heads for site in sites] == [2, 4, 4, 4, 4, 2, 2]
    assert sites[2].block == ("middle", 0)


def test_t1_a_fresh_adapter_changes_no_bit(svd, make):
    context = noise(FRAMES, 1, WIDTH)
    fresh = make(branches="none")
    assert torch.equal(run(loud(svd, fresh), c_crossattn=context), run(svd, c_crossattn=context))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_t1_fresh_tuned_attention_is_the_models_own(svd, make, mode: str):
    """Up to the order in which ComfyUI's attention and torch's sum."""
    adapter = make(context_mode=mode)
    begin_cross(adapter, svd.model.diffusion_model)
    plain = run(svd, c_crossattn=noise(FRAMES, TOKENS, WIDTH))
    patched = run(loud(svd, adapter), c_crossattn=noise(FRAMES, TOKENS, WIDTH))
    torch.testing.assert_close(patched, plain, atol=2e-5, rtol=1e-5)


def test_t12_copies_of_one_token_weigh_as_one(svd):
    one = noise(FRAMES, 1, WIDTH)
    many = run(svd, c_crossattn=one.expand(-1, TOKENS, -1))
    torch.testing.assert_close(many, run(svd, c_crossattn=one), atol=1e-3, rtol=0)


def test_t15_at_no_noise_the_input_is_the_result(svd):
    clean = noise(FRAMES, 4, 8, 8)
    denoised = run(svd, x=clean, t=torch.full((FRAMES,), 0.002), c_crossattn=noise(FRAMES, 1, WIDTH))
    torch.testing.assert_close(denoised, clean, atol=0.02, rtol=0)


def test_t3_decoupled_with_a_zero_output_is_svd_with_the_picture_alone(svd, make):
    picture = given()["c_crossattn"][:, :1].contiguous()
    for options in ({}, {"time_context": None}):
        _same(run(loud(svd, make()), **options), run(svd, c_crossattn=picture, **options))


def test_a_text_of_zeros_adds_nothing(svd, make):
    silent = given()["c_crossattn"].clone()
    silent[:, 1:] = 0
    adapter = make(random=True, adapters=())
    _same(run(loud(svd, adapter), c_crossattn=silent), run(svd, c_crossattn=silent[:, :1].contiguous()))


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal but for the last bits: a slice of the context and a tensor of its own take other kernels on some CPUs."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["decoupled", "lora", "full"])
def test_t2_strength_0_is_unpatched_also_from_a_file(svd, make, tmp_path, mode: str):
    save_adapter(make(random=True, context_mode=mode), tmp_path / "a.safetensors")
    file = load_adapter(tmp_path / "a.safetensors")
    context = given()["c_crossattn"]
    off = apply_adapter(svd, file, Strengths(0, 0, 0, 0))
    plain = run(svd, c_crossattn=context[:, :1].contiguous() if mode == "decoupled" else context)
    if mode == "decoupled":
        _same(run(off), plain)
    else:
        assert torch.equal(run(off), plain)
    assert not torch.allclose(run(apply_adapter(svd, file)), plain, atol=1e-3)
    assert torch.equal(run(svd), run(svd)), "the model itself is as before"


@pytest.mark.parametrize("part", ["spatial", "short", "long"])
def test_each_part_is_heard_at_each_site(svd, make, part: str):
    """An adapter at one site alone changes the picture."""
    adapter = make(random=True, adapters=(part,), branches="none")
    context = noise(FRAMES, 1, WIDTH)
    plain = run(svd, c_crossattn=context)
    for site in adapter.settings.sites:
        others = frozenset((part, other.name) for other in adapter.settings.sites if other is not site)
        assert not torch.equal(run(install(svd, Handlers(adapter, Strengths(), others)), c_crossattn=context), plain)


def test_the_spatial_adapter_keeps_frames_apart_and_the_temporal_ones_join_them(svd, make):
    """With time's own layers silent a change in frame 2 stays in frame 2, unless an adapter over time carries it."""
    unet = svd.model.diffusion_model

    def moved(parts: tuple[str, ...]) -> torch.Tensor:
        adapter = make(random=True, adapters=parts, branches="none")
        tensor = noise(FRAMES, 32, 8, 8)
        other = tensor.clone()
        other[2] += 1
        handlers = Handlers(adapter, Strengths())
        options = {"transformer_index": 0, "block": ("input", 1)}
        layers = unet.input_blocks[1]
        outs = []
        for x in (tensor, other):
            now = dict(options)
            x = handlers.residual(_still(layers[0]), x, None, None, now, None, None, FRAMES, None)
            words = noise(FRAMES, 1, WIDTH)
            x = handlers.transformer(_no_time(layers[1]), x, None, words, now, None, None, FRAMES, None)
            assert now["transformer_index"] == 1
            outs.append(x)
        return (outs[0] - outs[1]).abs().amax(dim=(1, 2, 3))

    assert (moved(("spatial",))[[0, 1, 3]] == 0).all()
    short = moved(("short",))
    assert short[0] == 0, "a kernel of three frames reaches one frame to each side"
    assert (short[1:] > 0).all()


class _still(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()

    def forward(self, x, *_):
        return x


class _no_time(SpatialVideoTransformer):
    """The spatial half of a layer: what its block makes of the tokens."""

    def __init__(self, layer):
        torch.nn.Module.__init__(self)
        self.block = layer.transformer_blocks[0]
        self.transformer_blocks = layer.transformer_blocks

    def forward(self, x, context, _time_context, _frames, _only, options):
        rows = self.block(x.flatten(2).movedim(1, 2), context=context, transformer_options=options)
        return rows.movedim(1, 2).reshape(x.shape)


def test_t7_a_context_of_another_number_of_rows_is_refused(svd, make):
    model = loud(svd, make())
    with pytest.raises(InstructionError, match="condition for 3 frames and the clip has 4"):
        run(model, c_crossattn=noise(3, 1 + TOKENS, WIDTH))


@pytest.mark.parametrize("mode", ["decoupled", "full"])
def test_t10_the_words_of_a_frame_move_that_frame_most(svd, make, mode: str):
    model = loud(svd, make(random=True, context_mode=mode, adapters=()))
    context = given()["c_crossattn"]
    changed = context.clone()
    changed[2, 1:] += 2 * noise(TOKENS, WIDTH, seed=77)
    moved = (run(model, c_crossattn=changed) - run(model, c_crossattn=context)).abs().mean(dim=(1, 2, 3))
    assert moved.argmax() == 2
    assert moved[2] > 1.5 * moved[[0, 1, 3]].max()


def test_t11_without_a_time_context_the_first_frames_tokens_stand_in(svd, make):
    model = loud(svd, make(context_mode="lora"))
    context = given()["c_crossattn"]
    first = context[:1].expand(FRAMES, -1, -1)
    assert torch.equal(run(model, time_context=None), run(model, time_context=first))


def test_t13_a_zero_mask_layer_is_the_path_without_one_and_another_is_nine_channels(svd, make):
    mask = (noise(FRAMES, 1, 8, 8) > 0).float()
    with_mask = torch.cat([given()["c_concat"], mask], dim=1)
    fresh = make(mask_channel=True)
    assert torch.equal(run(loud(svd, fresh), c_concat=with_mask), run(loud(svd, make())))
    adapter = make(random=True, mask_channel=True, adapters=(), branches="none")
    patched = run(loud(svd, adapter), c_concat=with_mask, c_crossattn=noise(FRAMES, 1, WIDTH))
    expected = run(_widened(svd, adapter.mask_in.weight), c_concat=with_mask, c_crossattn=noise(FRAMES, 1, WIDTH))
    torch.testing.assert_close(patched, expected, atol=2e-5, rtol=1e-5)


def _widened(svd, weight: torch.Tensor):
    """The same model with a ninth input channel."""
    model = make_svd(SIZE)
    unet = model.model.diffusion_model
    unet.load_state_dict(svd.model.diffusion_model.state_dict())
    first = unet.input_blocks[0][0]
    first.weight = torch.nn.Parameter(torch.cat([first.weight, weight], dim=1))
    return model


@pytest.mark.parametrize("mode", ["decoupled", "lora", "full"])
def test_t14_first_steps_move_what_they_should_and_nothing_frozen(svd, make, mode: str):
    adapter = make(context_mode=mode).requires_grad_(True)
    begin_cross(adapter, svd.model.diffusion_model)
    before = {key: value.clone() for key, value in svd.model.diffusion_model.state_dict().items()}
    text, vision, states = noise(1, TOKENS, WIDTH), noise(1, 7, 20), noise(1, 3, TOKENS, WIDTH)
    condition = adapter.dqformer(text, vision, states)[0]
    if mode == "decoupled":
        condition = torch.cat([noise(1, 1, WIDTH).expand(FRAMES, -1, -1), condition], dim=1)
    run(loud(svd, adapter), c_crossattn=condition).square().mean().backward()

    def moved(name: str) -> bool:
        grad = adapter.get_parameter(name).grad
        return grad is not None and bool(grad.any())

    for part in ("spatial", "short", "long"):
        assert moved(f"{part}.middle_block.up.weight")
        assert not moved(f"{part}.middle_block.down.weight")
    assert moved("dqformer.fuse.weight") is (mode != "decoupled"), "there only the output projections move at first"
    if mode == "decoupled":
        assert moved("text.middle_block.to_out.weight")
    after = svd.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(value.requires_grad for value in svd.model.diffusion_model.parameters())


def test_handlers_keep_nothing_after_a_call(svd, make):
    handlers = Handlers(make(random=True), Strengths())
    run(install(svd, handlers))
    assert not any(isinstance(value, torch.Tensor) for value in vars(handlers).values())


def test_other_patches_still_run(svd, make):
    seen = []
    model = loud(svd, make())
    model.set_model_attn1_patch(lambda n, context, value, extra: (seen.append(extra["block"]), (n, context, value))[1])
    run(model)
    assert len(seen) == 2 * 7


@pytest.mark.parametrize("changes", [{}, {"context_mode": "lora", "mask_channel": True, "concat": "token"}])
def test_t16_a_file_reads_back_bit_for_bit(make, tmp_path, changes: dict):
    adapter = make(random=True, **changes)
    save_adapter(adapter, tmp_path / "a.safetensors", {"license": "CC0", "steps": "7"})
    file = load_adapter(tmp_path / "a.safetensors")
    assert file.settings == adapter.settings
    assert file.notes == {"license": "CC0", "steps": "7"}
    weights = file.adapter.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in adapter.state_dict().items())


def test_files_that_do_not_fit_are_refused_with_a_sentence(svd, make, settings, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InstructionError, match="no AID adapter"):
        load_adapter(path)
    save_adapter(make(), path)
    weights, metadata = load_file(path), settings.to_metadata()
    save_file(weights, path, metadata={**metadata, "format_version": str(FORMAT_VERSION + 1)})
    with pytest.raises(InstructionError, match="update Longreel"):
        load_adapter(path)
    save_file({**weights, "other": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(InstructionError, match="unknown one called other"):
        load_adapter(path)
    save_file(weights, path, metadata={**metadata, "num_frames": "many"})
    with pytest.raises(InstructionError, match="damaged"):
        load_adapter(path)
    save_file({**weights, "dqformer.query_token": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(InstructionError, match="another shape"):
        load_adapter(path)
    with pytest.raises(InstructionError, match="another Stable Video Diffusion"):
        apply_adapter(svd, AdapterFile.of(make(sites=settings.sites[:2])))
