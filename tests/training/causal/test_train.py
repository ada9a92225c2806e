"""The memory adapter's data and losses, and the judge's story and table."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from longreel.miniature.stories import is_held_out
from longreel.miniature.text import WORDS
from longreel.miniature.world import Beat, Scene, render
from longreel.training.causal import data as memory_data
from longreel.training.causal import evaluate as memory_judge
from longreel.training.causal.train import BANK, draw_sequences, ranking_loss
from longreel.training.miniature import takes as encoding
from longreel.training.miniature.latent_classifier import VISIBLE_WORDS


def takes(number: int, character: bool) -> memory_data.Takes:
    """Takes whose latents say what they are: 1 to n for characters, -1 to -n for places."""
    value = (1 + torch.arange(number)) * (1 if character else -1)
    latents = value[:, None, None, None, None].expand(-1, memory_data.TARGET, 16, 8, 8).float()
    tokens = torch.ones(number, 48, dtype=torch.uint8)
    weights = torch.full((number, memory_data.TARGET, 8, 8), float(character))
    return memory_data.Takes(
        latents[:, : memory_data.VIEWS], tokens, latents, weights, torch.stack([2 * tokens, 3 * tokens], dim=1)
    )


def test_a_sequence_remembers_whom_it_calls_the_same():
    torch.manual_seed(0)
    for step in range(20):
        batch = draw_sequences(takes(50, True), takes(9, False), random.Random(step), 8)
        target = batch.clean[:, 0, -1, 0, 0].round()
        same = batch.tokens[:, -1, 0] == 3
        assert bool((batch.weight[:, :, :-3] == 0).all())
        assert batch.position.diff(dim=1).gt(0).all()
        memory = batch.clean[:, 0, : 3 + BANK, 0, 0]
        for item in same.nonzero().flatten().tolist():
            # context noise is below a half
            assert (memory[item] - target[item]).abs().min() < 0.6 + 0.15 * target[item].abs()
        assert torch.equal(batch.shows, (memory[:, 3:] > 0)) or batch.shows.any()


def test_remembered_frames_see_the_sink_and_themselves_only():
    batch = draw_sequences(takes(9, True), takes(9, False), random.Random(1), 2)
    for attention_mask in batch.attention_mask:
        assert attention_mask[3:6, :6].tolist() == [
            [True] * 3 + [row == column for column in range(3)] for row in range(3)
        ]
        assert bool(attention_mask[-3:].all())
        assert not bool(attention_mask[:-3, -3:].any())


def test_a_few_frames_in_view_are_those_that_show_somebody():
    for step in range(20):
        batch = draw_sequences(takes(50, True), takes(9, False), random.Random(step), 8, few=1.0)
        for attention_mask, clean in zip(batch.attention_mask, batch.clean, strict=True):
            view = attention_mask[-1, : 3 + BANK]
            assert int(view.sum()) == 3
            assert bool((attention_mask[6:, :6] == view).all()), "every frame of the take has the same view"
            person = clean[0, : 3 + BANK, 0, 0] > 0
            assert int((person & view).sum()) == min(3, int(person.sum()))
        assert bool(batch.attention_mask[:, -3:, 6:].all()), "the take itself stays in view"


def test_what_the_last_block_shows_is_named():
    people, places = takes(50, True), takes(9, False)
    people.tokens[:, 0, 4] = WORDS.index("star") + 1
    for step in range(10):
        batch = draw_sequences(people, places, random.Random(step), 8)
        person = batch.weight[:, 0, -1].amax(dim=(1, 2)) > 1
        assert torch.equal(batch.named[:, VISIBLE_WORDS.index("star")] > 0, person)


def test_ranking_prefers_frames_that_show_somebody():
    text = torch.ones(1, 1, 5 * 48, 4)
    keys = torch.zeros(1, 1, 9 * 16, 4)
    keys[:, :, 4 * 16 : 5 * 16] = 1.0
    right, kept = ranking_loss([(keys, text)], torch.tensor([[False, True, False]]))
    wrong, lost = ranking_loss([(keys, text)], torch.tensor([[True, False, True]]))
    assert (kept, lost) == (1.0, pytest.approx(0.0))
    assert right < 0.01 < wrong


def test_places_alone_are_drawn_and_told():
    scene = Scene("beach", (), (Beat(0.0, ()),))
    assert memory_judge.describe(scene) == "At the beach."
    drawn = render(scene, torch.arange(3) / 16)
    assert drawn.masks.shape == (3, 0, 64, 64)
    assert drawn.frames.std() > 0.05


def test_the_story_shows_the_lead_twice_and_names_it_once():
    for number in range(5):
        story = memory_judge.draw_story(number)
        assert [len(scene.actors) for scene in story] == [0, 1, 0, 0, 1, 1]
        lead, back, other = (story[at].actors[0].character for at in (1, 4, 5))
        assert lead == back
        assert not {lead.colour, lead.body, lead.headgear} & {other.colour, other.body, other.headgear}
        assert all(is_held_out(scene.actors[0].character, scene.place) for scene in story if scene.actors)
        told = memory_judge.prompts_of(story)
        assert told[4].startswith("The same character ")
        assert [lead.colour in told[at] for at in (1, 4)] == [True, False]


def test_the_table_averages_stories_and_seeds():
    place = {"place": 1.0}
    named = {"place": 1.0, "colour": 1.0, "body": 1.0, "headgear": 1.0, "action": 0.5, "identity": 1.0, "exact": 1.0}

    def run(recalled: float) -> dict[str, object]:
        back = dict.fromkeys(named, recalled) | {"identity at once": recalled, "exact at once": recalled}
        return {"read": [[place, named, place, place, back, named]], "held": recalled, "block_ms": 10.0}

    row = memory_judge.summary([run(1.0), run(0.0)])
    assert (row["recall"], row["named"], row["place"]) == (0.5, 1.0, pytest.approx(11 / 12))
    shots = memory_judge.by_shot([run(1.0), run(0.0)])
    assert "40-50 s identity" not in shots
    assert shots["50-60 s identity"] == 1.0


def test_takes_are_encoded_once(tmp_path: Path):
    class Vae(torch.nn.Module):
        """Latents of a mean per frame."""

    def encode(vae: object, clip: torch.Tensor) -> torch.Tensor:
        frames = clip.mean(dim=(1, 3, 4))[:, ::4]
        return frames[:, None, :, None, None].expand(-1, 16, -1, 8, 8)

    whole, shard = encoding.encode, memory_data._SHARD
    encoding.encode, memory_data._SHARD = encode, 2
    try:
        one = torch.ones(16, 1, 1, 1)
        memory_data.encode_takes(Vae(), 0 * one, one, 1, tmp_path, 0)
        people = memory_data.load_takes(tmp_path, "characters")
        assert (people.views.shape, people.take.shape) == ((2, 3, 16, 8, 8), (2, 6, 16, 8, 8))
        assert people.weights.float().amax() > 0.9
        assert memory_data.load_takes(tmp_path, "places").weights.float().amax() == 0
        moments = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
        memory_data.encode_takes(Vae(), 0 * one, one, 1, tmp_path, 0)
        assert moments == [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    finally:
        encoding.encode, memory_data._SHARD = whole, shard
