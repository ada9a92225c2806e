"""Films made together are the films that the rollout makes one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from longreel.film.kv_memory import LONGLIVE, MEMFLOW, MemorySettings
from longreel.host.wan.causal_models import kv_layout
from longreel.host.wan.rollout import Prompt, roll_out
from longreel.training.miniature.films import film_together

SIGMAS = torch.tensor([1.0, 0.8333333, 0.0])
LENGTHS = [15, 21]


@pytest.mark.parametrize("settings", [LONGLIVE, MEMFLOW, replace(MEMFLOW, active=2, record_interval=2)])
def test_films_made_together_equal_single_ones(tiny_wan, golden, settings):
    texts = [[golden.tensors[f"prompt.p{(film + shot) % 3}"] for film in range(2)] for shot in range(2)]
    seeds = [[3, 4], [5, 6]]
    layout = kv_layout(tiny_wan, 4, 4)
    prompts = [torch.cat(of_shot) for of_shot in texts]
    together = film_together(tiny_wan.model, layout, prompts, LENGTHS, SIGMAS, seeds, settings=settings)
    for film in range(2):
        memory = None
        for shot, length in enumerate(LENGTHS):
            prompt = [Prompt(0, [[texts[shot][film], {}]])]
            size = (1, 16, length, 4, 4)
            single = roll_out(
                tiny_wan, prompt, size, SIGMAS, settings=settings, memory=memory, seed=seeds[shot][film]
            )  # fmt: skip
            memory = single.memory
            expected = tiny_wan.model.process_latent_in(single.latents)
            assert (together[shot][film : film + 1] - expected).abs().max() < 1e-4


def test_relative_positions_are_refused(tiny_wan):
    settings = MemorySettings(positions="relative")
    with pytest.raises(ValueError, match="absolute"):
        film_together(tiny_wan.model, kv_layout(tiny_wan, 4, 4), [torch.zeros(1, 4, 24)], [3], SIGMAS, [[0]],
                      settings=settings)  # fmt: skip
