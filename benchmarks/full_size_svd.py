"""Stable Video Diffusion at its full size, random weights, with an AID adapter of full size: one denoising step of 16
frames at 256x256 through the real server on the CPU.

    python benchmarks/full_size_svd.py [--folder DIR] [--out FILE]

Writes a checkpoint as `svd.safetensors` is laid out (UNet 1,524,623,082 parameters, temporal VAE, ViT-H; 4.5 GB in
fp16), an adapter and a text encoder of its width into a temporary base directory, and queues the graph of the workflow
do-this with one step and no guidance beyond the condition, which is one model call. Reports times and the server's peak
memory. Needs 6 GB of disk, 14 GB of memory and some minutes. The pictures mean nothing.

Prediction, written before the first run: the network runs in fp32 on a CPU, so 6.1 GB of it, 2.5 GB of ViT-H before
it, and 0.4 GB each of VAE and adapter: a peak of some 10 to 13 GB; 5.7 TFLOP of one pass are three minutes on two idle
cores.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PACK = Path(__file__).resolve().parents[1]
WIDTH = 1024
WIDE = "longreel-miniature-wide.safetensors"
ASK = "A red ball jumps."


class Filler:
    """Random numbers, drawn once and repeated: a checkpoint of billions is written in seconds."""

    def __init__(self) -> None:
        self.numbers = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))

    def of(self, shapes: Mapping[str, torch.Size], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights of these shapes that keep activations near one."""
        made = {}
        for name, shape in shapes.items():
            count = shape.numel()
            values = self.numbers.repeat(-(-count // len(self.numbers)))[:count].reshape(shape)
            norm = len(shape) == 1 and name.endswith("weight")
            scale = 0.02 if len(shape) < 2 else shape[1:].numel() ** -0.5
            made[prefix + name] = (values * scale + (1.0 if norm else 0.0)).to(dtype)
        return made


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a module's tensors."""
    return {name: value.shape for name, value in module.state_dict().items()}


def full_unet() -> Any:
    """The UNet, its memory reserved and untouched."""
    from longreel.host.svd.model import FULL_SIZE, make_svd

    return make_svd(FULL_SIZE, dtype=torch.float16).model.diffusion_model


def vae_shapes() -> dict[str, torch.Size]:
    """Of the VAE with the temporal decoder."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
             "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    decoder = {**sizes, "video_kernel_size": [3, 1, 1], "alpha": 0.0}
    with torch.device("meta"):
        vae = AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": sizes},
            decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder", "params": decoder},
        )
    return shapes_of(vae)


def vision_shapes(width: int = 1280, layers: int = 32) -> dict[str, torch.Size]:
    """Of ViT-H, by the names of open_clip."""
    plain = {
        "class_embedding": (width,), "positional_embedding": (257, width), "proj": (width, WIDTH),
        "conv1.weight": (width, 3, 14, 14), "ln_pre.weight": (width,), "ln_pre.bias": (width,),
        "ln_post.weight": (width,), "ln_post.bias": (width,),
    }  # fmt: skip
    block = {
        "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    for number in range(layers):
        plain |= {f"transformer.resblocks.{number}.{name}": shape for name, shape in block.items()}
    return {name: torch.Size(shape) for name, shape in plain.items()}


def write_checkpoint(path: Path, filler: Filler) -> None:
    """As svd.safetensors is laid out."""
    half = torch.float16
    everything = filler.of(shapes_of(full_unet()), "model.diffusion_model.", half)
    everything |= filler.of(vae_shapes(), "first_stage_model.", half)
    everything |= filler.of(vision_shapes(), "conditioner.embedders.0.open_clip.model.visual.", half)
    save_file(everything, path)


def write_adapter(path: Path, filler: Filler) -> None:
    """An adapter of full size, none of its layers silent."""
    from longreel.film.instruction.adapters import AidAdapter
    from longreel.film.instruction.settings import AdapterSettings
    from longreel.host.svd.adapters import sites_of
    from longreel.miniature.text import LENGTH

    settings = AdapterSettings(sites=sites_of(full_unet()), num_frames=16, tokens_per_frame=LENGTH)
    shapes = shapes_of(AidAdapter(settings, torch.nn, device="meta"))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(filler.of(shapes, "", torch.bfloat16), path, metadata=settings.to_metadata())


def write_text_encoder(path: Path) -> None:
    """The miniature's text encoder at the width of ViT-H's text tower."""
    from longreel.miniature.text import TextEncoder

    torch.manual_seed(0)
    save_file({key: value.half() for key, value in TextEncoder(WIDTH, layers=1).state_dict().items()}, path)


def graph() -> dict[str, dict[str, dict[str, object] | str]]:
    """The twin of the workflow do-this, with one step, the miniature's words and no language model."""
    prompt: dict[str, dict[str, dict[str, object] | str]] = json.loads(
        (PACK / "tests" / "prompts" / "do-this.json").read_text(encoding="utf-8")
    )
    for key, each in list(prompt.items()):
        kind, inputs = each["class_type"], each["inputs"]
        assert isinstance(inputs, dict)
        if kind == "CLIPLoader":
            prompt[key] = {"class_type": "LongreelMiniatureTextEncoder", "inputs": {"file": WIDE}}
        elif kind == "LongreelLoadInstructionAdapter":
            inputs["file"] = "full-size.safetensors"
        elif kind == "LongreelPlanStates":
            inputs |= {"instruction": ASK, "retries": 0}
        elif kind == "LongreelInstructionConditioning":
            inputs["instruction"] = ASK
        elif kind == "LongreelInstructionGuider":
            inputs |= {"text_scale": 1.0, "frame_scale": 1.0, "first_frame_scale": 1.0}
        elif kind == "BasicScheduler":
            inputs["steps"] = 1
    return prompt


def main() -> None:
    """Write the files, film one step, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the temporary base directory goes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args()
    from longreel.training.core.command_line import start_comfyui

    start_comfyui()
    from longreel.tests.server.harness import make_server
    from PIL import Image

    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        base = Path(folder)
        server = make_server(base)
        for kind in ("checkpoints", "text_encoders"):
            (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        started, filler = time.perf_counter(), Filler()
        write_checkpoint(base / "models" / "checkpoints" / "svd.safetensors", filler)
        write_adapter(base / "models" / "aid" / "full-size.safetensors", filler)
        write_text_encoder(base / "models" / "text_encoders" / WIDE)
        Image.linear_gradient("L").convert("RGB").save(base / "input" / "example.png")
        figures["writing_s"] = time.perf_counter() - started
        with server:
            started = time.perf_counter()
            outcome = server.queue(graph(), quiet=7200)
            assert outcome.succeeded, outcome.error
            figures["film_s"] = time.perf_counter() - started
            status = Path(f"/proc/{server.pid}/status").read_text()
            figures["peak_server_gb"] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
