"""Identities T4 to T6 and T8, T1 through the sampler, and what the clip is conditioned with."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from longreel.film.instruction import InstructionError, parse_states
from longreel.host.guidance import SpatioTemporalGuidance
from longreel.host.guider import Guider
from longreel.host.svd.adapters import AdapterFile, Handlers, Strengths, apply_adapter, install
from longreel.host.svd.conditioning import condition, encode_text

from .conftest import FRAMES, SIZE, TOKENS
from .test_adapters import noise

WIDTH = SIZE.context_dim


class Clip:
    """A text encoder: a word is a token, its numbers follow from the word."""

    def tokenize(self, text: str, disable_weights: bool = False) -> dict:
        assert disable_weights
        words = text.split() or [""]
        chunks = [words[first : first + TOKENS] for first in range(0, len(words), TOKENS)]
        return {"h": chunks}

    def encode_from_tokens(self, tokens: dict) -> torch.Tensor:
        rows = torch.zeros(1, TOKENS, WIDTH)
        for place, word in enumerate(tokens["h"][0]):
            seed = int.from_bytes(word.encode()[:6].ljust(6, b"\0"), "big")
            rows[0, place] = noise(WIDTH, seed=seed)
        return rows


class Vision:
    def encode_image(self, picture: torch.Tensor) -> dict:
        mean = picture.mean((1, 2))
        return {
            "image_embeds": mean @ noise(3, WIDTH, seed=1),
            "penultimate_hidden_states": (mean @ noise(3, 20, seed=2))[:, None] + noise(1, 7, 20, seed=3),
        }


class Vae:
    latent_dim = 2

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1) * 2 - 1


GREY = torch.full((1, 64, 64, 3), 0.25)


def conditioned(adapter, frames=GREY, instruction="lift the lid", **options):
    return condition(AdapterFile.of(adapter), Clip(), Vision(), Vae(), frames, instruction, **options)


def sampled(guider, given, steps: int = 2) -> torch.Tensor:
    sigmas = torch.tensor([20.0, 4.0, 0.5, 0.0])[-steps - 1 :]
    samples = given.latent["samples"]
    return guider.sample(
        noise(*samples.shape), samples, comfy.samplers.sampler_object("euler"), sigmas,
        denoise_mask=given.latent.get("noise_mask"), disable_pbar=True, seed=1,
    )  # fmt: skip


def guided(model, given, first: float = 1.0, last: float = 2.0, text: float = 3.0):
    return Guider(model, [SpatioTemporalGuidance((first, last), text)], given.conds)


def test_t1_fresh_adapters_change_no_bit_of_two_steps_with_guidance(svd, make):
    given = conditioned(make())
    alone = {name: [[rows[0][0][:, :1], rows[0][1]]] for name, rows in given.conds.items()}
    plain = sampled(Guider(svd, [SpatioTemporalGuidance()], alone), given)
    assert torch.equal(sampled(guided(install(svd, Handlers(make(), Strengths())), given), given), plain)


@pytest.fixture
def filming(svd, make):
    adapter = make(random=True)
    return apply_adapter(svd, AdapterFile.of(adapter)), conditioned(adapter)


def ours(filming, *strengths) -> torch.Tensor:
    return sampled(guided(*filming, *strengths), filming[1])


def plain_cfg(filming, positive: str, scale: float) -> torch.Tensor:
    model, given = filming
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(given.conds[positive], given.negative)
    guider.set_cfg(scale)
    return sampled(guider, given)


def test_t4_strengths_of_1_are_the_full_condition_alone(filming):
    assert torch.equal(ours(filming, 1.0, 1.0, 1.0), plain_cfg(filming, "positive", 1.0))


def test_t5_equal_strengths_are_ordinary_guidance(filming):
    expected = plain_cfg(filming, "positive", 2.5)
    torch.testing.assert_close(ours(filming, 2.5, 2.5, 2.5), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours(filming, 2.5, 2.5, 2.5001), expected, atol=1e-2, rtol=1e-2)


def test_t6_no_strength_of_words_is_guidance_towards_the_frames(filming):
    expected = plain_cfg(filming, "no_text", 2.5)
    torch.testing.assert_close(ours(filming, 2.5, 2.5, 0.0), expected, atol=1e-3, rtol=1e-3)


def test_cores_dual_guider_gives_the_same(filming):
    model, given = filming
    dual = Guider_DualCFG(model)
    dual.set_conds(given.positive, given.no_text, given.negative)
    dual.set_cfg(3.0, 2.0)
    torch.testing.assert_close(ours(filming, 2.0, 2.0, 3.0), sampled(dual, given), atol=1e-3, rtol=1e-3)


def test_frames_are_guided_more_the_later_they_are(filming):
    weak, strong = (ours(filming, 1.0, last, 1.0) for last in (1.0, 3.0))
    moved = (strong - weak).abs().mean(dim=(1, 2, 3))
    assert moved[0] < moved[-1] / 2


# What the clip is conditioned with


def test_t8_there_is_a_row_for_every_frame(make):
    given = conditioned(make())
    for rows in given.conds.values():
        assert rows[0][0].shape == (FRAMES, 1 + TOKENS, WIDTH)
        assert rows[0][1]["concat_latent_image"].shape == (FRAMES, 4, 8, 8)
        assert rows[0][1]["time_conditioning"].shape == (1, 1, WIDTH)
    assert given.latent["samples"].shape == (FRAMES, 4, 8, 8)
    assert not given.negative[0][0].any()
    assert not given.negative[0][1]["concat_latent_image"].any()
    assert not given.negative[0][1]["time_conditioning"].any()


@pytest.mark.parametrize(("fill", "value"), [("repeat", -0.5), ("grey", 0.0), ("zero", 0.0)])
def test_unknown_frames_are_filled(make, fill: str, value: float):
    rows = conditioned(make(fill=fill), augmentation=0.0).positive[0][1]["concat_latent_image"]
    assert (rows[0] == -0.5).all()
    assert (rows[1:] == value).all()


def test_a_mask_channel_marks_the_known_frames(make):
    given = conditioned(make(mask_channel=True, k_max=2), torch.cat([GREY, GREY]))
    rows = given.positive[0][1]["concat_latent_image"]
    assert rows.shape[1] == 5
    assert [bool(row.any()) for row in rows[:, 4]] == [True, True, False, False]
    assert not given.negative[0][1]["concat_latent_image"].any()


def test_noise_on_known_frames_has_its_own_seed_and_half_the_range(make):
    adapter = make()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (
        conditioned(adapter, augmentation=0.5, seed=seed).positive[0][1]["concat_latent_image"] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one[0, :3] + 0.5).std() == pytest.approx(0.5 / 8, rel=0.2), "averages of 64 pixels, in [-1, 1]"
    assert GREY.unique() == 0.25, "the frames given stay as they are"


def test_words_and_states_reach_every_frame_and_an_empty_text_is_the_no_text(make):
    adapter = make(random=True)
    states = parse_states("the lid is shut\nthe lid is up\nthe lid is off", "lift the lid", 3)
    given, other = conditioned(adapter, states=states), conditioned(adapter, instruction="shut the lid", states=states)
    assert (given.positive[0][0] - other.positive[0][0])[:, 1:].abs().amax(dim=(1, 2)).min() > 0
    assert torch.equal(given.no_text[0][0], other.no_text[0][0])
    assert not torch.equal(given.positive[0][0], given.no_text[0][0])
    plain = conditioned(adapter)
    assert not torch.equal(plain.positive[0][0], given.positive[0][0])


def test_hard_kept_frames_come_out_as_they_went_in(svd, make):
    adapter = make(random=True)
    frames = torch.cat([GREY, GREY * 2])
    given = conditioned(adapter, frames, keep_known=True)
    model = apply_adapter(svd, AdapterFile.of(adapter))
    made = sampled(guided(model, given), given)
    torch.testing.assert_close(made[:2], given.latent["samples"][:2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made[2:], given.latent["samples"][2:], atol=0.1)


def test_no_text_at_all_is_the_picture_alone(make):
    given = conditioned(make(branches="none"))
    assert given.positive[0][0].shape == (FRAMES, 1, WIDTH)
    assert torch.equal(given.positive[0][0], given.no_text[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": GREY.expand(4, -1, -1, -1)}, "4 of 4 frames are given"),
        ({"frames": GREY[:0]}, "0 of 4 frames are given"),
        ({"video_frames": 6}, "films 4 frames and 6 are asked for"),
        ({"frames": GREY.expand(2, -1, -1, -1)}, "at most 1 known frames and 2 are given"),
        ({"size": (100, 64)}, "A width of 100 does not fit: set a multiple of 64 such as 128"),
        ({"instruction": "word " * 500}, "longer than the 75 tokens"),
        ({"states": parse_states("a b c\nd e f", "a b", 2)}, "There are 2 states and the adapter was trained with 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(make, options: dict, message: str):
    with pytest.raises(InstructionError, match=message):
        conditioned(make(), **options)


def test_another_number_of_frames_can_be_asked_for(make):
    assert conditioned(make(), video_frames=6, resample=True).positive[0][0].shape[0] == 6


def test_encoders_of_another_width_are_refused(make):
    with pytest.raises(InstructionError, match="gives 24 numbers a word and the adapter reads 16"):
        conditioned(make(text_dim=16))
    file = AdapterFile.of(make())
    with pytest.raises(InstructionError, match="no vision encoder"):
        condition(file, Clip(), None, Vae(), GREY, "lift the lid")


def test_only_the_first_chunk_of_a_long_state_is_read():
    assert torch.equal(encode_text(Clip(), "a b c d e f g"), encode_text(Clip(), "a b c d e"))


def test_a_video_vae_is_given_a_frame_at_a_time():
    from longreel.host.svd.conditioning import encode_frames

    seen = []
    video = SimpleNamespace(latent_dim=3, encode=lambda x: (seen.append(x.shape), torch.zeros(1, 16, 1, 8, 8))[1])
    assert encode_frames(video, GREY.expand(3, -1, -1, -1)).shape == (3, 16, 8, 8)
    assert seen == [(1, 64, 64, 3)] * 3
