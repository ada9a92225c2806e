"""DQFormer: parameter counts, identity T9, and what its parts read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from longreel.film.instruction import InstructionError
from longreel.film.instruction.adapters import AidAdapter
from longreel.film.instruction.dqformer import DQFormer
from longreel.film.instruction.settings import AdapterSettings, Site

SMALL = AdapterSettings(
    sites=(Site("input_blocks.1", 32, 2), Site("middle_block", 64, 4)), num_frames=6, context_dim=24, text_dim=24,
    vision_dim=20, tokens_per_frame=5, num_states=3, dq_heads=4, ff_mult=2, lt_head_width=8,
)  # fmt: skip
SVD_SITES = tuple(
    Site(name, width, width // 64)
    for name, width in [
        *((f"input_blocks.{i}", w) for i, w in zip((1, 2, 4, 5, 7, 8), (320, 320, 640, 640, 1280, 1280))),
        ("middle_block", 1280),
        *((f"output_blocks.{i}", w) for i, w in zip(range(3, 12), [1280] * 3 + [640] * 3 + [320] * 3)),
    ]
)


def made(seed: int = 1, **changes) -> DQFormer:
    former = DQFormer(replace(SMALL, **changes), torch.nn)
    generator = torch.Generator().manual_seed(seed)
    former.initialise(generator)
    for value in former.parameters():  # no layer silent
        value.data += torch.randn(value.shape, generator=generator) * 0.1
    return former.eval().requires_grad_(False)


def inputs(videos: int = 2, states: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(videos, 5, 24, generator=generator),
        torch.randn(videos, 9, 20, generator=generator),
        torch.randn(videos, states, 5, 24, generator=generator),
    )


def count(module: torch.nn.Module | None) -> int:
    return sum(value.numel() for value in module.parameters()) if module is not None else 0


def test_sizes_are_those_computed_for_stable_video_diffusion():
    """docs/methods/aid.md, sizes."""
    full = AdapterSettings(sites=SVD_SITES)
    with torch.device("meta"):
        adapter = AidAdapter(full, torch.nn)
        eighth = AidAdapter(replace(full, ratio=8, context_mode="lora"), torch.nn)
        tuned = AidAdapter(replace(full, context_mode="full"), torch.nn)
    former = adapter.dqformer
    assert count(former.upper) + count(former.norm_v) == 17_317_376
    assert count(former.lower) == 16_790_528
    assert count(former.fuse) == 2_098_176
    assert count(adapter.spatial) == 6_210_800
    assert count(adapter.short) == 6_298_160
    assert count(adapter.long) == 9_311_520
    assert count(eighth.spatial) == 3_111_640
    assert count(eighth.short) == 3_155_320
    assert count(eighth.long) == 3_887_600
    assert count(eighth.cross) == 3_444_736
    assert count(tuned.cross) == 50_352_320
    assert count(adapter.text) == 37_949_440


def test_keys_are_those_of_the_format():
    with torch.device("meta"):
        keys = AidAdapter(replace(AdapterSettings(sites=SVD_SITES), mask_channel=True), torch.nn).state_dict()
    for key, shape in {
        "dqformer.query_token": (77, 1024), "dqformer.query_frame": (16, 1, 1024), "dqformer.state_embed": (4, 1024),
        "dqformer.upper.0.cross.to_k.weight": (1024, 1280), "dqformer.lower.0.cross_state.to_out.bias": (1024,),
        "dqformer.upper.0.ff.in.weight": (4096, 1024), "dqformer.fuse.weight": (1024, 2048),
        "spatial.input_blocks.1.down.weight": (80, 320), "short.middle_block.dwconv.weight": (320, 1, 3, 3, 3),
        "long.output_blocks.11.to_q.weight": (80, 80), "text.input_blocks.4.to_k.weight": (640, 1024),
        "mask_in.weight": (320, 1, 3, 3),
    }.items():  # fmt: skip
        assert tuple(keys[key].shape) == shape, key


def test_t9_a_frame_does_not_depend_on_the_others():
    former = made()
    whole = former(*inputs())
    some = former(*inputs(), only=torch.tensor([4, 1]))
    assert torch.equal(some, whole[:, [4, 1]])


def test_each_video_of_a_batch_is_its_own():
    former = made()
    text, vision, states = inputs()
    alone = former(text[1:], vision[1:], states[1:])
    torch.testing.assert_close(alone, former(text, vision, states)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 5), ({"concat": "token"}, 10), ({"branches": "upper"}, 5), ({"branches": "lower"}, 5), ({"dq_layers": 2}, 5)],
)
def test_every_frame_has_its_tokens(changes: dict, tokens: int):
    assert made(**changes)(*inputs()).shape == (2, 6, tokens, 24)


def test_what_each_branch_reads():
    text, vision, states = inputs(1)

    def moved(former: DQFormer, which: int) -> bool:
        changed = [text, vision, states]
        changed[which] = changed[which].flip(-1)  # adding a number would not outlive the norms
        return not torch.allclose(former(text, vision, states), former(*changed))

    assert [moved(made(branches="upper"), which) for which in range(3)] == [True, True, False]
    assert [moved(made(branches="lower"), which) for which in range(3)] == [True, False, True]
    assert [moved(made(), which) for which in range(3)] == [True, True, True]


def test_the_order_of_states_is_told_by_their_embedding_alone():
    text, vision, states = inputs(1)
    former = made(branches="lower")
    former.state_embed.zero_()
    torch.testing.assert_close(former(text, vision, states), former(text, vision, states.flip(1)))
    former.state_embed += torch.randn(3, 24)
    assert not torch.allclose(former(text, vision, states), former(text, vision, states.flip(1)))


def test_a_fresh_upper_branch_gives_the_words_normalised():
    former = DQFormer(replace(SMALL, branches="upper"), torch.nn)
    former.initialise(torch.Generator().manual_seed(0))
    text, vision, states = inputs(1)
    expected = torch.nn.functional.layer_norm(text, (24,))
    assert torch.equal(former(text, vision, states)[0], expected.expand(6, -1, -1))


def test_other_numbers_of_frames_take_queries_in_between():
    former = made()
    queries = former._queries(11, torch.zeros(1))
    own = former._queries(6, torch.zeros(1))
    torch.testing.assert_close(queries[::2], own)
    torch.testing.assert_close(queries[1], (own[0] + own[1]) / 2)
    assert former(*inputs(), frames=11).shape[1] == 11


def test_words_of_another_width_are_projected():
    former = made(text_dim=10)
    text, vision, states = inputs(1)
    assert former(text[..., :10], vision, states[..., :10]).shape == (1, 6, 5, 24)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda x: x[..., :8], "gives 8 numbers a word and the adapter reads 24"),
        (0, lambda x: x[:, :4], "gives 4 tokens and the adapter has 5 of each frame"),
        (1, lambda x: x[..., :8], "gives 8 numbers a patch and the adapter reads 20"),
        (2, lambda x: x[:, :2], "There are 2 states and the adapter was trained with 3"),
    ],
)
def test_other_widths_and_numbers_are_refused_with_a_sentence(which: int, change, message: str):
    given = list(inputs())
    given[which] = change(given[which])
    with pytest.raises(InstructionError, match=message):
        made()(*given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_max": 6}, "6 known of 6 frames"),
        ({"sites": ()}, "no sites"),
        ({"dq_heads": 5}, "do not divide"),
        ({"adapters": ("sideways",)}, "unknown parts"),
        ({"concat": "stack"}, "choose channel or token"),
        ({"num_states": 0}, "from 1 to 32"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_sentence(changes: dict, message: str):
    with pytest.raises(InstructionError, match=message):
        replace(SMALL, **changes)


def test_settings_read_back_from_metadata():
    settings = replace(SMALL, adapters=("long",), augmentation=0.1, base="abc", mask_channel=True)
    metadata = settings.to_metadata({"license": "CC0", "num_frames": "999"})
    assert AdapterSettings.from_metadata(metadata) == settings
    assert metadata["license"] == "CC0"
    assert all(isinstance(value, str) for value in metadata.values())
