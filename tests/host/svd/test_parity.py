"""Our patched SVD against diffusers' UNet of the same random weights, each frame with a context of its own."""

from __future__ import annotations

import re

import pytest
import torch
from longreel.host.svd.adapters import Handlers, Strengths, install, sites_of

from .conftest import FRAMES, SIZE, TOKENS
from .test_adapters import given, noise

_RESIDUAL = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
             "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
_ENDS = {"input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "out.0": "conv_norm_out",
         "time_embed.2": "time_embedding.linear_2", "label_emb.0.0": "add_embedding.linear_1", "out.2": "conv_out",
         "label_emb.0.2": "add_embedding.linear_2"}  # fmt: skip


def renamed(key: str, levels: int, blocks: int) -> str:
    """A key of ComfyUI's UNet as diffusers calls it."""
    module, _, leaf = key.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{leaf}"
    found = re.fullmatch(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.*)", key)
    room, number, rest = found[1], int(found[2]), found[3]
    if room == "middle_block":
        place = "mid_block.attentions.0" if number == 1 else f"mid_block.resnets.{number // 2}"
        return f"{place}.{inner(rest)}"
    layer, _, rest = rest.partition(".")
    if room == "input_blocks":
        level, block = divmod(number - 1, blocks + 1)
        if block == blocks:
            return f"down_blocks.{level}.downsamplers.0.{rest.replace('op.', 'conv.')}"
        return f"down_blocks.{level}.{'attentions' if layer == '1' else 'resnets'}.{block}.{inner(rest)}"
    level, block = divmod(number, blocks + 1)
    if rest.startswith("conv."):
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    return f"up_blocks.{level}.{'attentions' if layer == '1' else 'resnets'}.{block}.{inner(rest)}"


def inner(rest: str) -> str:
    """The part of a key inside a residual block or a transformer."""
    if rest.startswith("time_mixer"):
        return rest
    if found := re.fullmatch(r"(time_stack\.)?((?:in|out|emb)_layers\.\d|skip_connection)\.(\w+)", rest):
        return f"{'temporal' if found[1] else 'spatial'}_res_block.{_RESIDUAL[found[2]]}.{found[3]}"
    rest = rest.replace("time_stack.", "temporal_transformer_blocks.")
    return re.sub(r"time_pos_embed\.([02])", lambda found: f"time_pos_embed.linear_{int(found[1]) // 2 + 1}", rest)


def test_patched_svd_is_diffusers_unet_with_a_context_for_each_frame(svd, make):
    pytest.importorskip("diffusers")
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

    widths = tuple(SIZE.model_channels * mult for mult in SIZE.channel_mult)
    count = len(widths)
    theirs = UNetSpatioTemporalConditionModel(
        block_out_channels=widths, layers_per_block=SIZE.res_blocks, cross_attention_dim=SIZE.context_dim,
        num_attention_heads=tuple(width // SIZE.head_width for width in widths), num_frames=FRAMES,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * count,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * count,
    )  # fmt: skip
    ours = svd.model.diffusion_model
    names = {key: renamed(key, count, SIZE.res_blocks) for key in ours.state_dict()}
    theirs.load_state_dict({names[key]: value for key, value in ours.state_dict().items()})

    context = noise(FRAMES, TOKENS, SIZE.context_dim)
    for module in theirs.modules():  # diffusers repeats one context over the frames; the layers take one each
        if isinstance(module, TransformerSpatioTemporalModel):
            module.register_forward_pre_hook(
                lambda _, args, named: (args, {**named, "encoder_hidden_states": context}), with_kwargs=True
            )
    inputs = given()
    x = torch.cat([inputs["x"], inputs["c_concat"]], dim=1)
    time, ids = torch.tensor(0.25 * torch.tensor(1.5).log().item()), torch.tensor([[6.0, 127.0, 0.02]])
    micro = svd.model.encode_adm(fps=7, motion_bucket_id=127, augmentation_level=0.02)
    model = install(svd, Handlers(make(context_mode="lora"), Strengths()))
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "sigmas": inputs["t"][:1]}
    with torch.no_grad():
        expected = theirs(x[None], time, context[:1], ids, return_dict=False)[0][0]
        found = ours(x, time.expand(FRAMES), context=context, y=micro.expand(FRAMES, -1),
                     transformer_options=options, num_video_frames=FRAMES)  # fmt: skip
    assert expected.abs().mean() > 0.02
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(sites_of(ours)) == sum(isinstance(each, TransformerSpatioTemporalModel) for each in theirs.modules())
