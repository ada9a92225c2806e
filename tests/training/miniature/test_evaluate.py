"""The judge of the miniature reads what its films show, on the shipped weights."""

from __future__ import annotations

import pytest
import torch
from longreel.training.miniature import evaluate

from ...server.harness import REPOSITORY


@pytest.fixture(scope="module")
def models():
    return evaluate.load(REPOSITORY / "miniature" / "weights")


@pytest.mark.parametrize("steps", [4, None])
def test_openings_are_read_by_action(models, steps):
    table = evaluate.evaluate_openings(models, 3, steps=steps)
    assert set(table) <= {"all", *evaluate.ACTIONS}
    assert set(table["all"]) == {"colour", "body", "headgear", "place"}
    assert table["all"]["place"] == 1.0
    assert table["all"]["colour"] > 0.9


def test_reconstructions_are_read_like_their_originals(models, tmp_path):
    table = evaluate.evaluate_vae(models, 1, seconds=3.0, strip=tmp_path / "strip.png")
    whole = table["whole"]
    assert whole["psnr"] > 20
    for name in ("colour", "headgear", "place", "action"):
        assert whole[f"decoded {name}"] >= 0.9 * whole[f"original {name}"] > 0.8
    assert (tmp_path / "strip.png").exists()


def test_a_film_does_what_it_is_told(models):
    row = evaluate.evaluate_prompts(models, 1, latent_frames=9, say=lambda _: None)
    assert row["place"] == row["colour"] == 1.0


def test_four_steps_are_the_released_ones():
    assert torch.allclose(evaluate.schedule(4), torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]))
