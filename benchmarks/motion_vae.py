"""What the miniature's VAE leaves of pictures of flow: `python benchmarks/motion_vae.py`.

Exact flow of the small world as pictures, encoded and decoded, against the flow: endpoint error in pixels, that of no
motion, direction in degrees, and the spread of the latents, by encoding and saturation.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from itertools import product

import torch
from longreel.film.motion import ENCODINGS, FlowCodec, flow_errors, pad_flow
from longreel.training.core.command_line import start_comfyui
from longreel.training.miniature.evaluate import load, print_table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--saturations", type=float, nargs="*", default=[0.15, 0.045])
    parser.add_argument("--seed", type=int, default=77)
    chosen = parser.parse_args()
    start_comfyui()
    logging.disable(logging.WARNING)
    from longreel.host.files.paths import MINIATURE_WEIGHTS
    from longreel.training.motion.data import MINIATURE, world_clips

    vae = load(MINIATURE_WEIGHTS).vae
    sources = world_clips(chosen.clips, replace(MINIATURE, frames=chosen.frames), seed=chosen.seed)
    flows = [source.make().flow for source in sources]
    rows: dict[str, dict[str, float]] = {}
    for encoding, saturation in product(ENCODINGS, chosen.saturations):
        codec, found = FlowCodec(encoding, saturation), []
        for flow in flows:
            latents = vae.encode(codec.encode(pad_flow(flow)))
            errors = flow_errors(codec.decode(vae.decode(latents)[0][1:, ..., :3].float().cpu()), flow)
            found.append([errors.endpoint, errors.trivial, errors.direction, float(latents.std())])
        names = ("endpoint, pixels", "no motion, pixels", "direction, degrees", "std of latents")
        rows[f"{encoding} {saturation:g}"] = dict(zip(names, torch.tensor(found).nanmean(dim=0).tolist()))
    print_table(f"{chosen.clips} clips of {chosen.frames} frames through the miniature's VAE", rows)


if __name__ == "__main__":
    main()
