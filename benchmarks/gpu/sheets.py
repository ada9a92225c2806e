"""Contact sheets of the shipped workflows' films, two frames a second, one shot after the other with the film's memory:
what to look at after a training on the GPU machine, where no server runs.

usage: sheets.py WEIGHTS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

weights, folder = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = sys.argv[:1]

import torch  # noqa: E402
from longreel.training.core.command_line import start_comfyui  # noqa: E402

start_comfyui()
from longreel.host.families.wan import StreamingDecoder  # noqa: E402
from longreel.host.wan.rollout import Prompt, roll_out  # noqa: E402
from longreel.training.miniature import evaluate  # noqa: E402

LONG_TAKE = [
    "A yellow cone with a beanie walks in the middle in the desert.",
    "A yellow cone with a beanie jumps in the desert.",
    "A yellow cone with a beanie stretches in the desert. The camera zooms in.",
    "A yellow cone with a beanie spins in the desert. The camera zooms out.",
    "A yellow cone with a beanie sways in the desert. The camera pans left.",
    "A yellow cone with a beanie stands in the desert.",
]
FILMS = {
    # each shot: prompts and the latent frames that each lasts (40 is ten seconds, made whole blocks)
    "long-take": [[(prompt, 39 if index % 2 else 42) for index, prompt in enumerate(LONG_TAKE)]],
    "continue-a-reel": [
        [("A green cone with a beanie walks on the left at the beach.", 21),
         ("A green cone with a beanie spins at the beach. The camera zooms in.", 81)],
    ],
    "quickstart": [
        [("A red ball with a crown walks in the middle in the forest.", 21),
         ("A red ball with a crown jumps in the forest.", 21)],
        [("A blue star with a top hat spins on the left at the beach.", 21),
         ("A blue star with a top hat sways at the beach. The camera zooms in.", 21)],
        [("A red ball with a crown stands on the right in the city.", 21),
         ("A red ball with a crown walks in the city. The camera pans right.", 21)],
    ],
}  # fmt: skip


@torch.inference_mode()
def film(models: evaluate.Models, shots: list[list[tuple[str, int]]], seed: int) -> torch.Tensor:
    """Frames [T, H, W, 3] of shots, each begun by a cut."""
    memory, pictures = None, []
    for number, shot in enumerate(shots):
        prompts, at = [], 0
        for words, frames in shot:
            prompts.append(Prompt(at, models.clip.encode_from_tokens_scheduled(models.clip.tokenize(words))))
            at += frames
        made = roll_out(
            models.model, prompts, (1, 16, at, 8, 8), evaluate.schedule(4), memory=memory, seed=seed + number
        )
        memory = made.memory
        pictures += [part.cpu() for part in StreamingDecoder(models.vae).decode(made.latents)]
    return torch.cat(pictures)


def main() -> None:
    """Draw them all, two seeds of each."""
    models = evaluate.load(weights)
    for name, shots in FILMS.items():
        for seed in (0, 7):
            frames = film(models, shots, seed)[::8]
            rows = [frames[i : i + 20] for i in range(0, len(frames), 20)]
            rows[-1] = torch.cat([rows[-1], torch.ones(20 - len(rows[-1]), *frames.shape[1:])])
            evaluate.write_strip(rows, folder / f"{name}-{seed}.png")
            print(name, seed, len(frames), flush=True)


main()
