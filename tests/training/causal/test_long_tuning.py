"""Long tuning: each objective's loss falls, runs resume to the bit, prompts alone suffice for matching."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from longreel.miniature.text import WORDS
from longreel.training.causal import long_data as data
from longreel.training.causal.long_tuning import CausalRecipe, LongTuning, tune
from longreel.training.causal.objectives import DistributionMatching, Window
from longreel.training.causal.stream import Stream
from longreel.training.core import loop
from longreel.training.core.lora import WAN_LAYERS, adapt, choose_layers
from longreel.training.miniature.dit import DitRecipe, Miniature
from longreel.training.miniature.latent_classifier import LatentClassifier
from longreel.training.miniature.sequences import BLOCK

SIZES = DitRecipe(dim=32, ffn_dim=48, layers=1, heads=1, freq_dim=16, text_dim=16)
RECIPE = CausalRecipe(steps=8, films=3, blocks=6, rate=5e-3, warmup=1, scored=2, fake_rank=4, farthest=30)


@pytest.fixture
def model() -> Miniature:
    torch.manual_seed(3)
    made = Miniature(SIZES)
    torch.nn.init.normal_(made.dit.head.head.weight, std=0.05)
    return made


def takes(latents: int = 24) -> data.LongTakes:
    """Takes of a slowly changing picture, two prompts each."""
    torch.manual_seed(4)
    still = torch.randn(5, 16, 1, 8, 8)
    moved = still + 0.3 * torch.linspace(-1, 1, latents)[None, None, :, None, None]
    caption = (torch.arange(latents) >= 12).long().expand(5, -1)
    tokens = torch.randint(1, len(WORDS), (5, 2, 48))
    return data.LongTakes(moved.bfloat16(), torch.ones(5, latents, 8, 8).bfloat16(), tokens, caption)


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "causal.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("weights", [{"truth": 1.0, "replay": 0.3}, {"reading": 1.0}])
def test_each_objective_is_learned(model, tmp_path, weights, monkeypatch):
    figures: list[float] = []
    name = "truth" if "truth" in weights else "read"

    chosen = replace(RECIPE, steps=30, **({"truth": 0.0, "reading": 0.0, "replay": 0.0} | weights))
    torch.manual_seed(0)
    reader = LatentClassifier(16)
    seen = []

    def replay(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(step)
        return model.dit.head.head.weight.square().mean(), {}

    learn = loop.train

    def spied(run, learner, loss_at, *args, **kwargs):
        def told(step):
            value, metrics = loss_at(step)
            if name in metrics:
                figures.append(float(metrics[name]))
            return value, metrics

        return learn(run, learner, told, *args, **kwargs)

    monkeypatch.setattr("longreel.training.causal.long_tuning.train", spied)
    tune(model, takes(), chosen, tmp_path, reader=reader, replay=replay)
    third = len(figures) // 3
    assert sum(figures[-third:]) < 0.98 * sum(figures[:third]), figures
    assert bool(seen) == bool(chosen.replay)


def test_matching_moves_a_guess_from_what_is_filmed_to_what_the_base_would_film(model):
    torch.manual_seed(1)
    fake, adapter = adapt(model.dit, choose_layers(model.dit, WAN_LAYERS), 4)
    matching = DistributionMatching(model.dit, fake, torch.zeros(1, 4, 16))
    guess = torch.zeros(2, 16, BLOCK, 8, 8, requires_grad=True)
    past = torch.randn(2, 16, 2 * BLOCK, 8, 8)
    text_mask = torch.ones(2, 3 * BLOCK, 4, dtype=torch.bool)
    position = torch.arange(3 * BLOCK).expand(2, -1)
    seen = Window(torch.cat([past, guess], dim=2), torch.randn(2, 4, 16), text_mask, position)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        torch.manual_seed(2)
        own = matching.losses(seen, torch.ones(2))[1]
        own.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(own.detach()))
    assert errors[-1] < 0.97 * errors[0]
    # the base would film 1 everywhere and films are 0: the guess rises, of the film that counts alone
    matching._clean = lambda dit, noised, *_, **__: torch.full_like(noised, float(dit is model.dit))  # type: ignore
    matching.losses(seen, torch.tensor([1.0, 0.0]))[0].backward()
    assert guess.grad is not None
    assert bool((guess.grad[0] < 0).all())
    assert not guess.grad[1].any()


def test_a_run_resumes_to_the_bit(model, tmp_path, monkeypatch):
    start = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = replace(RECIPE, matching=0.5)
    reader = LatentClassifier(16)
    tune(model, takes(), recipe, tmp_path / "whole", reader=reader)
    whole = {key: value.clone() for key, value in model.state_dict().items()}
    opened = Stream.open

    def dies(self: Stream):
        if self.block == 4 and not hasattr(dies, "done"):
            dies.done = True  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return opened(self)

    model.load_state_dict(start)
    monkeypatch.setattr(Stream, "open", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(model, takes(), recipe, tmp_path / "parts", reader=reader)
    model.load_state_dict(start)
    tune(model, takes(), recipe, tmp_path / "parts", reader=reader)
    for key, value in model.state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_long_scenes_change_at_blocks_with_room_between():
    for seed in range(30):
        rng = random.Random(seed)
        scene = data.long_scene(rng, 81, 4)
        prompts, caption = data.captions(scene, 81)
        assert len(prompts) == 5
        assert (int(caption[0]), int(caption[-1])) == (0, 4)
        starts = (caption.diff() > 0).nonzero().flatten() + 1
        assert bool((starts % 3 == 0).all())
        assert bool((torch.cat([torch.tensor([0]), starts, torch.tensor([81])]).diff() >= 12).all())
    with pytest.raises(ValueError, match="no room"):
        data.long_scene(random.Random(0), 21, 4)


def test_takes_of_prompts_alone(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat sits | the cat runs\n\na dog\n", encoding="utf-8")
    made, table = data.prompt_takes(path, 8, lambda prompt: torch.full((1, 4, 2), float(len(prompt))), 0)
    assert made.latents is None
    assert (made.blocks, len(made)) == (8, 2)
    assert table[made.tokens[0, :, 0], 0, 0].tolist() == [len("a cat sits"), len("the cat runs")]
    assert made.caption[1].max() == 0
    assert (int(made.caption[0, 0]), int(made.caption[0, -1])) == (0, 1)


def test_a_copy_in_half_precision_gives_the_model_its_gradients(model):
    reader = LatentClassifier(16).requires_grad_(False)
    found = []
    for shadow in (False, True):
        torch.manual_seed(6)
        stream = Stream(
            model.dit, takes(), lambda rows: model.text(rows), films=3, blocks=8, size=(16, 8, 8),
            settings=RECIPE.settings, shadow=shadow,
        )  # fmt: skip
        tuning = LongTuning(RECIPE, stream, reader=reader)
        for step in range(3):
            torch.manual_seed(step)
            loss, figures = tuning.loss_at(step)
        model.dit.zero_grad()
        loss.backward()
        found.append((float(loss.detach()), [p.grad.clone() for p in model.dit.parameters()], set(figures)))
    (whole, wanted, names), (half, given, same) = found
    assert names == same
    assert abs(whole - half) < 0.02 * whole
    for p, q in zip(wanted, given, strict=True):
        assert (p - q).norm() <= 0.15 * p.norm() + 1e-4
