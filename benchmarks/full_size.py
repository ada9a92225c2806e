"""A causal Wan 1.3B of random weights, from a released-style `.pt` through the real server on the CPU, at 128x128.

    python benchmarks/full_size.py [--folder DIR] [--out FILE]

Writes the synthetic checkpoint (5.7 GB, fp32, the released names) and a text encoder of its width into a temporary base
directory, films two blocks with Load Causal Checkpoint, Causal Engine and Film Shot, and reports times and the server's
peak memory. Needs 9 GB of disk, 10 GB of memory and some minutes. The pictures mean nothing: it proves that the path of
a released checkpoint works at its true size.

Prediction, written before the first run: the first prompt converts (a minute of disk), loads 2.8 GB and films at some
10 s a pass on two cores; peak memory 8 to 10 GB, most of it the checkpoint mapped while it is converted.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

PACK = Path(__file__).resolve().parents[1]
WIDTH = 4096


def write_checkpoint(path: Path) -> None:
    """Random weights under the names of the released Self-Forcing files."""
    import comfy.ops
    from comfy.ldm.wan.ar_model import CausalWanModel

    model = CausalWanModel(
        dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, freq_dim=256, text_dim=WIDTH, device="meta",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in model.state_dict().items():
        if value.ndim == 1 and "norm" in name:
            weight = torch.ones(value.shape)
        else:
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.02
            weight = torch.empty(value.shape).normal_(generator=generator) * scale
        state[f"model.{name}"] = weight
    torch.save({"generator_ema": state}, path)


def write_text_encoder(path: Path) -> None:
    """The miniature's text encoder at the width that Wan reads."""
    from longreel.miniature.text import TextEncoder

    torch.manual_seed(0)
    save_file({key: value.half() for key, value in TextEncoder(WIDTH, layers=1).state_dict().items()}, path)


def graph() -> dict[str, dict[str, object]]:
    """Two blocks in API form."""
    return {
        "1": {
            "class_type": "LongreelLoadCausalCheckpoint",
            "inputs": {"checkpoint": "self_forcing_dmd.pt", "lora": "none", "lora_use": "merge", "averaged": True},
        },
        "2": {"class_type": "LongreelMiniatureTextEncoder", "inputs": {"file": "longreel-miniature-wide.safetensors"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "longreel-miniature-vae.safetensors"}},
        "4": {
            "class_type": "LongreelCausalEngine",
            "inputs": {
                "model": ["1", 0], "clip": ["2", 0], "vae": ["3", 0], "width": 128, "height": 128, "fps": 16.0,
                "steps": 4, "loop": "renoise", "frames_per_block": 3, "memory": "MemFlow",
            },
        },
        "5": {
            "class_type": "LongreelFilmShot",
            "inputs": {"engine": ["4", 0], "shot": "seconds: 1.3\nA red ball walks at the beach.", "project": ""},
        },
        "6": {
            "class_type": "LongreelReelToVideo",
            "inputs": {
                "reel": ["5", 0], "vae": ["3", 0], "filename_prefix": "full-size", "format": "mp4", "first_shot": 1,
                "last_shot": 0, "fps": 0.0, "first_image": 0, "images": 1,
            },
        },
    }  # fmt: skip


def main() -> None:
    """Write the files, film twice (the second time nothing is converted), print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the temporary base directory goes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args()
    from longreel.training.core.command_line import start_comfyui

    start_comfyui()
    from longreel.tests.server.harness import make_server

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        base = Path(folder)
        server = make_server(base)
        for kind in ("diffusion_models", "text_encoders"):
            (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_checkpoint(base / "models" / "diffusion_models" / "self_forcing_dmd.pt")
        write_text_encoder(base / "models" / "text_encoders" / "longreel-miniature-wide.safetensors")
        figures["writing_s"] = time.perf_counter() - started
        with server:
            prompt = graph()
            for name in ("first_s", "again_s"):
                started = time.perf_counter()
                outcome = server.queue(prompt, quiet=1800)
                assert outcome.succeeded, outcome.error
                figures[name] = time.perf_counter() - started
                prompt["5"]["inputs"]["shot"] = "seconds: 1.3, seed: 2\nA red ball walks at the beach."  # type: ignore[index]
            status = Path(f"/proc/{server.pid}/status").read_text()
            figures["peak_server_gb"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]
        figures["converted_gb"] = sum(f.stat().st_size for f in base.rglob("*.causal.safetensors")) / 1e9
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
