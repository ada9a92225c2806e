"""A stream's films are the films that the rollout makes: same noise, same memory, same changes of prompt."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from longreel.film.kv_memory import MEMFLOW, MemorySettings
from longreel.host.wan.noise import SeededNoise
from longreel.host.wan.rollout import Prompt, roll_out
from longreel.miniature.text import pad, tokenize
from longreel.training.__main__ import WEIGHTS
from longreel.training.causal import long_evaluate
from longreel.training.causal.long_data import LongTakes, captions, long_scene
from longreel.training.causal.stream import Stream
from longreel.training.miniature import evaluate
from longreel.training.miniature.dit import DitRecipe, Miniature
from longreel.training.miniature.export import read_dit
from longreel.training.miniature.sequences import FEW_STEPS

PROMPTS = [
    ["A red ball with a crown walks in the middle in the forest.", "A red ball with a crown jumps in the forest."],
    ["At night, a blue box with a top hat sways on the left.", "At night, a blue box with a top hat spins."],
]
CHANGES = ([6, 30], [24, 36])
"""First frames of each film's later prompts: within the sink's reach and beyond it."""
BLOCKS = 14


def tokens(prompts: list[str], again: int) -> torch.Tensor:
    return torch.stack([pad(tokenize(prompts[k % 2])) for k in range(again)])


@pytest.mark.parametrize("settings", [MEMFLOW, replace(MEMFLOW, bank=2, record="single", window=15)])
def test_a_streams_films_are_those_of_the_rollout(settings: MemorySettings):
    models = evaluate.load(WEIGHTS)
    mini = Miniature(DitRecipe())
    read_dit(mini, WEIGHTS)
    mini.requires_grad_(False)
    caption = torch.zeros(2, 3 * BLOCKS, dtype=torch.long)
    for film, changes in enumerate(CHANGES):
        for change in changes:
            caption[film, change:] += 1
    takes = LongTakes(None, None, torch.stack([tokens(prompts, 3) for prompts in PROMPTS]), caption)
    torch.manual_seed(5)
    drawn = [torch.randn(len(FEW_STEPS), 2, 16, 3, 8, 8) for _ in range(BLOCKS)]
    stream = Stream(mini.dit, takes, mini.text, films=2, blocks=BLOCKS, size=(16, 8, 8), settings=settings)
    stream._chosen = lambda: torch.tensor([0, 1])  # type: ignore[method-assign]
    films = []
    with torch.no_grad():
        for block in range(BLOCKS):
            stream._noise = lambda block=block: drawn[block]  # type: ignore[method-assign]
            moment = stream.open()
            # asked again with gradients on, the model says what it said when it filmed
            last = FEW_STEPS[-1] * drawn[block][-1] + (1 - FEW_STEPS[-1]) * moment.guesses[-2]
            asked = last - FEW_STEPS[-1] * stream.flow(last, torch.full((2, 3), 1000 * FEW_STEPS[-1]))
            assert torch.allclose(asked, moment.guesses[-1], atol=1e-4)
            stream.close(moment)
            films.append(moment.guesses[-1])
    whole = torch.cat(films, dim=2)
    sigmas = torch.tensor([*FEW_STEPS, 0.0])
    for film, prompts in enumerate(PROMPTS):
        told = [
            Prompt(at, models.clip.encode_from_tokens_scheduled(models.clip.tokenize(prompts[k % 2])))
            for k, at in enumerate([0, *CHANGES[film]])
        ]
        single = roll_out(
            models.model, told, (1, 16, 3 * BLOCKS, 8, 8), sigmas, settings=settings,
            noise=lambda block, step, shape, film=film: drawn[block][step, film : film + 1],
        )  # fmt: skip
        expected = models.model.model.process_latent_in(single.latents)
        error = (whole[film] - expected[0]).abs().amax(dim=(0, 2, 3))
        assert error.max() < 2e-3, f"film {film}: {error}"


def test_films_that_are_judged_are_the_rollouts_with_cuts_too():
    films = []
    for number in range(2):
        scenes = [
            long_scene(random.Random(10 * number + i), 24, shot, two=0.0) for i, shot in enumerate((1 - number, 0))
        ]
        films.append(long_evaluate.Judged(tuple(scenes), (0, 24), 36))
    mini = Miniature(DitRecipe())
    read_dit(mini, WEIGHTS)
    together = list(long_evaluate.film_all(mini, films, [7, 8]))
    models = evaluate.load(WEIGHTS)
    for number, film in enumerate(films):
        memory = None
        for shot, (start, end) in enumerate(((0, 24), (24, 36))):
            words, caption = captions(film.scenes[shot], end - start)
            told = [
                Prompt(
                    int((caption == index).nonzero()[0]),
                    models.clip.encode_from_tokens_scheduled(models.clip.tokenize(prompt)),
                )
                for index, prompt in enumerate(words)
            ]
            single = roll_out(
                models.model, told, (1, 16, end - start, 8, 8), torch.tensor([*FEW_STEPS, 0.0]), memory=memory,
                noise=SeededNoise(7 + number, start // 3),
            )  # fmt: skip
            memory = single.memory
            expected = models.model.model.process_latent_in(single.latents)
            assert torch.allclose(together[number][:, start:end], expected[0], atol=2e-3)
