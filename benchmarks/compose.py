"""Seconds to compose a first frame: `python benchmarks/compose.py`.

Five references and a plate, photographs in size and detail (noise on smooth colours), on a canvas of 1280 x 720. Only
Pillow works, on one core; the machine's other load counts in the wall clock and not in the processor's time.
"""

from __future__ import annotations

import argparse
import time
from typing import get_args

import torch
import torch.nn.functional as F
from longreel.film.first_frame import LayoutKind, Reference, compose

FRAME = (768, 1344)


def picture(generator: torch.Generator) -> torch.Tensor:
    """[H, W, 3] with coarse and fine structure."""
    coarse = F.interpolate(torch.rand(1, 3, 12, 20, generator=generator), size=FRAME, mode="bilinear")[0].movedim(0, -1)
    return 0.5 * coarse + 0.5 * torch.rand(*FRAME, 3, generator=generator)


def main() -> None:
    """Print the best of some runs for every layout that arranges by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    generator = torch.Generator().manual_seed(chosen.seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, FRAME[0]), torch.linspace(-1, 1, FRAME[1]), indexing="ij")
    masks = [((x * scale) ** 2 + y**2 < 0.6).float() for scale in torch.linspace(1, 3, chosen.references).tolist()]
    cast = [Reference.from_image(picture(generator), mask, f"thing {number}") for number, mask in enumerate(masks)]
    plate = picture(generator)
    print(f"{chosen.references} references and a plate on 1280 x 720, best of {chosen.repeats}, seed {chosen.seed}\n")
    print("| layout | s, wall clock | s, processor |\n| --- | --- | --- |")
    for layout in get_args(LayoutKind):
        if layout == "manual":
            continue
        wall, processor = [], []
        for _ in range(chosen.repeats):
            start = time.perf_counter(), time.process_time()
            compose(cast, plate, layout, (1280, 720))
            wall.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
        print(f"| {layout} | {min(wall):.2f} | {min(processor):.2f} |")


if __name__ == "__main__":
    main()
