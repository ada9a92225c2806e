"""What a causal film takes of a card's memory, by arithmetic: weights, KV memory, one pass, for cards of 12 to 80 GB.

    python benchmarks/memory_table.py [--memory bank|window|sparse] [--switches]

Prints Markdown. Nothing is allocated and no GPU is used. The counts are checked at the points that were measured on an
H100 (MEASURED, docs/kernels.md), which the last lines print beside them. --switches: with a change of prompt inside a
take, whose recache passes the whole window at once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from longreel.film.kv_memory import LONGLIVE, MEMFLOW, FrameArena, KVLayout, MemorySettings

GIB = 2**30
TEXT_ROWS, TEXT_WIDTH, TIME_WIDTH = 512, 4096, 256
BLOCK = 3
"""Latent frames of a pass."""
ROW_COPIES = 10
"""Activations of a block's width that live at once: the stream, its norm, q, k, v, attention and their projections."""
FIXED = 0.05 * GIB
"""Workspaces of the matrix libraries and small tensors: what is left over of the measured peaks."""
CONTEXT = 0.9 * GIB
"""CUDA's context and what ComfyUI leaves free for others: not in PyTorch's count, but on the card."""
CARDS = (12, 16, 24, 48, 80)
MEMORIES = {"window": LONGLIVE, "bank": MEMFLOW, "sparse": replace(MEMFLOW, active=3)}
MEASURED = {"window": 6407, "bank": 7568, "sparse": 8327}
"""Peak MiB of PyTorch on an H100: Wan 1.3B, 832x480, benchmarks/rollout.py --suite full."""


@dataclass(frozen=True)
class Model:
    """A Wan network and the size it films at. tokens: of a latent frame; channels: of a latent."""

    name: str
    dim: int
    ffn: int
    layers: int
    heads: int
    channels: int
    tokens: int

    @property
    def block_weights(self) -> int:
        """Of the transformer blocks: two attentions and a feed-forward network each."""
        return self.layers * (8 * self.dim**2 + 2 * self.dim * self.ffn)

    @property
    def other_weights(self) -> int:
        """Embeddings of patches, text and time, modulation and head."""
        text, time = (TEXT_WIDTH + self.dim) * self.dim, (TIME_WIDTH + 7 * self.dim) * self.dim
        return text + time + 8 * self.channels * self.dim + 6 * self.layers * self.dim

    def weights(self, size: int) -> int:
        """Bytes with `size` bytes for each weight of the blocks; the others stay at two."""
        return size * self.block_weights + 2 * self.other_weights

    def arena(self, memory: MemorySettings) -> int:
        """Bytes of the KV memory, in bf16."""
        layout = KVLayout(self.layers, self.heads, self.dim // self.heads, self.tokens, 44)
        ring = memory.window - memory.sink if memory.window is not None else 0
        return FrameArena.bytes_needed(layout, memory, ring, torch.bfloat16)

    def working(self, frames: int) -> float:
        """Bytes of one pass over `frames` latent frames, with the prompt's keys and values of all layers."""
        rows = frames * self.tokens
        text = 2 * self.layers * TEXT_ROWS * self.dim
        return 2 * (rows * (ROW_COPIES * self.dim + 2 * self.ffn) + text) + FIXED


MODELS = (
    Model("1.3B, 832x480", 1536, 8960, 30, 12, 16, 52 * 30),
    Model("TI2V 5B, 1280x704", 3072, 14336, 30, 24, 48, 40 * 22),
    Model("14B, 832x480", 5120, 13824, 40, 40, 16, 52 * 30),
)


def table(memory: MemorySettings, switches: bool) -> list[str]:
    """A row for each model and weight type, a column for each card."""
    lines = [
        f"| model | weights | KV memory | a pass | peak | {' | '.join(f'{card} GB' for card in CARDS)} |",
        f"| --- | --- | --- | --- | --- |{' --- |' * len(CARDS)}",
    ]
    frames = memory.window if switches and memory.window is not None else BLOCK
    for model in MODELS:
        for dtype, size in (("bf16", 2), ("fp8", 1)):
            weights, arena, working = model.weights(size), model.arena(memory), model.working(frames)
            peak = weights + arena + working
            parts = " | ".join(f"{part / GIB:.1f}" for part in (arena, working, peak))
            cards = " | ".join(verdict(card * GIB - CONTEXT, weights, arena + working) for card in CARDS)
            lines.append(f"| {model.name} | {dtype}, {weights / GIB:.1f} | {parts} | {cards} |")
    return lines


def verdict(room: float, weights: float, rest: float) -> str:
    """Whether all fits, how much of the weights ComfyUI must keep in main memory, or that the film itself does not."""
    if weights + rest <= room:
        return "fits"
    return f"{(weights + rest - room) / GIB:.0f} off" if rest <= 0.9 * room else "no"


def main() -> None:
    """Print the table and the points it was checked at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=MEMORIES, default="bank")
    parser.add_argument("--switches", action="store_true")
    chosen = parser.parse_args()
    print("\n".join(table(MEMORIES[chosen.memory], chosen.switches)))
    print("\nGiB. `N off`: so much of the weights stays in main memory; `no`: KV memory and a pass leave no room.\n")
    for name, measured in MEASURED.items():
        counted = (MODELS[0].weights(2) + MODELS[0].arena(MEMORIES[name]) + MODELS[0].working(BLOCK)) / 2**20
        print(f"{name}: counted {counted:,.0f} MiB, measured {measured:,} ({counted / measured - 1:+.1%})")


if __name__ == "__main__":
    main()
