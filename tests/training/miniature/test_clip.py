"""The miniature's CLIP: its tokenizer, what it finds, and its recipe."""

from __future__ import annotations

import pytest
import torch
from longreel.host.files.paths import MINIATURE_WEIGHTS
from longreel.host.media.embedder import load_embedder
from longreel.miniature.text import WORDS
from longreel.training.dual_cache.evaluate import evaluate_retrieval
from longreel.training.miniature.clip import CLIP_FILE, ClipRecipe, encode_sentences, train_clip

SENTENCES = ["A red ball with a crown walks on the left in the forest.", "At night, the same character spins."]


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(MINIATURE_WEIGHTS / CLIP_FILE)


def test_shipped_tokenizer_reads_as_the_trainer_does(embedder):
    every = [*SENTENCES, *(f"{word}." for word in WORDS if word.isalpha())]
    assert torch.equal(embedder._tokenizer(every), encode_sentences(every))


def test_who_was_away_for_two_shots_is_found_again(embedder):
    assert evaluate_retrieval(embedder, 12) >= 0.9


def test_trained_model_is_one_that_open_clip_opens(tmp_path):
    path = train_clip(ClipRecipe(scenes=8, steps=2, batch=4), tmp_path / "run", tmp_path / "weights")
    opened = load_embedder(path)
    assert opened.text(SENTENCES[0]).shape == (1, 128)
    assert opened.images(torch.rand(2, 64, 64, 3)).norm(dim=1).allclose(torch.ones(2), atol=1e-4)
