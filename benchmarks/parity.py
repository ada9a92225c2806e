"""Released weights filmed by the original code and by ours, with the same prompt and noise, compared block by block.

    python benchmarks/parity.py ORIGINAL --method memflow --weights base.pt [--lora lora.pt]
        --text-encoder umt5_xxl.safetensors [--prompt TEXT] [--blocks 7] [--seed 0]
        [--dtype bfloat16] [--report parity.md]

ORIGINAL is a checkout of your own of MemFlow or LongLive, with what it requires installed; nothing of it is copied, it
is imported from there (benchmarks/upstream.py). Files are the released ones and lie where you put them; nothing is
downloaded. Both films get one encoding of the prompt (ComfyUI's), the same first noise, and for later steps what the
original drew. The original gets the weights as its file has them, or, with a LoRA, as ours merges them.

The report is Markdown to send in as an issue: it holds names, sizes and hashes of the files, versions, and a line for
each block; no path and no name of yours. Ends with 1 where a block differs by more than the bound, which is 1e-4 in
float32 and, in bfloat16, a tenth of what the latents spread over.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

METHODS = ("memflow", "longlive")
PROMPT = "A red fox walks through a snowy forest at dawn, then stops and looks back at the camera."
FRAMES = 3
"""Latent frames of a block."""


@dataclass(frozen=True)
class Block:
    """How far the two films are apart in a block. largest, mean: absolute difference; spread: of the original's."""

    number: int
    largest: float
    mean: float
    spread: float

    def agrees(self, dtype: torch.dtype) -> bool:
        """Within the bound of this dtype."""
        return self.largest < 1e-4 if dtype == torch.float32 else self.mean < 0.1 * self.spread


def main(arguments: Sequence[str] | None = None) -> int:
    """Film twice, compare, write the report; 1 where a block differs."""
    chosen = _parser().parse_args(arguments)
    from longreel.training.core.command_line import start_comfyui

    if "comfy.cli_args" not in sys.modules:
        start_comfyui()
    dtype = getattr(torch, chosen.dtype)
    with tempfile.TemporaryDirectory() as folder:
        model, weights = _models(chosen, dtype, Path(folder))
        context = _encode(chosen.text_encoder, chosen.prompt)
        width, height = (int(side) // 8 for side in chosen.size.split("x"))
        generator = torch.Generator().manual_seed(chosen.seed)
        noise = torch.randn(1, FRAMES * chosen.blocks, 16, height, width, generator=generator)
        original, draws, sigmas, replaced = _film_original(chosen, weights, context, noise, dtype)
        ours = _film_ours(chosen.method, model, context, noise, draws, sigmas)
    blocks = compare(original, ours)
    text = report(chosen, dtype, blocks, replaced)
    chosen.report.write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(block.agrees(dtype) for block in blocks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the released .pt or .safetensors")
    parser.add_argument("--lora", type=Path, help="the LoRA that belongs to it")
    parser.add_argument("--text-encoder", type=Path, required=True, help="umt5-xxl as ComfyUI reads it")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--blocks", type=int, default=7, help="of 3 latent frames; 7 are 5 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="832x480", help="pixels; the originals are written for 832x480")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--head-dim", type=int, default=128, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=Path("parity.md"))
    return parser


def _models(chosen: argparse.Namespace, dtype: torch.dtype, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Ours as its loader reads the files, and the weights of the original."""
    import comfy.sd
    from longreel.host.files.checkpoints import convert
    from safetensors.torch import load_file

    made = convert(
        chosen.weights, folder / "converted.safetensors", lora=chosen.lora, dtype=dtype, head_dim=chosen.head_dim
    )
    model = comfy.sd.load_diffusion_model(str(made), model_options={"dtype": dtype})
    if chosen.lora is not None:
        return model, load_file(made)
    if chosen.weights.suffix == ".safetensors":
        raw = load_file(chosen.weights)
    else:
        raw = torch.load(chosen.weights, map_location="cpu", weights_only=True)
    raw = next((raw[name] for name in ("generator", "generator_ema") if name in raw), raw)
    return model, {name.removeprefix("model."): value for name, value in raw.items()}


def _encode(text_encoder: Path, prompt: str) -> torch.Tensor:
    """The prompt as [1, 512, C], zeros behind its words, as the originals pad it."""
    import comfy.sd
    from longreel.host.miniature_clip import load_miniature_clip

    if text_encoder.name.startswith("longreel-miniature"):
        clip = load_miniature_clip(str(text_encoder))
    else:
        clip = comfy.sd.load_clip([str(text_encoder)], clip_type=comfy.sd.CLIPType.WAN)
    found: torch.Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0].float()
    return torch.nn.functional.pad(found, (0, 0, 0, max(0, 512 - found.shape[1])))


@contextmanager
def _recorded(draws: list[torch.Tensor], seed: int) -> Iterator[None]:
    """Inside, what torch.randn_like draws comes of a seed and is kept."""
    generator, own = torch.Generator().manual_seed(seed + 1), torch.randn_like

    def draw(like: torch.Tensor, **_: Any) -> torch.Tensor:
        draws.append(torch.randn(like.shape, generator=generator))
        return draws[-1].to(like)

    torch.randn_like = draw
    try:
        yield
    finally:
        torch.randn_like = own


def _film_original(
    chosen: argparse.Namespace,
    weights: dict[str, torch.Tensor],
    context: torch.Tensor,
    noise: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, list[str]]:
    """Latents [1, T, 16, h, w], the noise of later steps in its order, the sigmas, what was replaced to run it."""
    from longreel.benchmarks.upstream import MEMORY, film_upstream, open_upstream

    dim = weights["patch_embedding.weight"].shape[0]
    shape = {
        "dim": dim, "ffn_dim": weights["blocks.0.ffn.0.weight"].shape[0], "num_heads": dim // chosen.head_dim,
        "num_layers": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}), "text_len": 512,
        "freq_dim": weights["time_embedding.0.weight"].shape[1],
    }  # fmt: skip
    kept = ("local_attn_size", "sink_size") if chosen.method == "longlive" else tuple(MEMORY)
    memory = {name: MEMORY[name] for name in kept}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline, replaced = open_upstream(chosen.original, weights, context, device, dtype, shape, memory)
    draws: list[torch.Tensor] = []
    with _recorded(draws, chosen.seed):
        latents = film_upstream(pipeline, noise.to(device, dtype), lambda: None)
    steps = torch.as_tensor(pipeline.denoising_step_list, dtype=torch.float32).cpu() / 1000
    return latents.float().cpu(), draws, torch.cat([steps, torch.zeros(1)]), replaced


def _film_ours(
    method: str,
    model: Any,
    context: torch.Tensor,
    noise: torch.Tensor,
    draws: Sequence[torch.Tensor],
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """Latents [1, T, 16, h, w] in the model's space, of the same noise."""
    from longreel.film.kv_memory import LONGLIVE, MEMFLOW
    from longreel.host.wan.rollout import Prompt, roll_out

    first, later = noise.transpose(1, 2), len(sigmas) - 2

    def same(block: int, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        if step == 0:
            return first[:, :, block * shape[2] : (block + 1) * shape[2]].clone()
        return draws[block * later + step - 1].reshape(shape[2], shape[1], *shape[3:]).transpose(0, 1)[None].float()

    settings = MEMFLOW if method == "memflow" else LONGLIVE
    shape = (1, 16, noise.shape[1], *noise.shape[3:])
    rollout = roll_out(model, [Prompt(0, [[context, {}]])], shape, sigmas, settings=settings, noise=same)
    latents: torch.Tensor = model.model.process_latent_in(rollout.latents).transpose(1, 2)
    return latents.float().cpu()


def compare(original: torch.Tensor, ours: torch.Tensor) -> list[Block]:
    """Two films [1, T, C, h, w], block by block."""
    found = []
    for number, at in enumerate(range(0, original.shape[1], FRAMES), start=1):
        one, other = original[:, at : at + FRAMES], ours[:, at : at + FRAMES]
        apart = (one - other).abs()
        found.append(Block(number, float(apart.max()), float(apart.mean()), float(one.std())))
    return found


def report(chosen: argparse.Namespace, dtype: torch.dtype, blocks: Sequence[Block], replaced: Sequence[str]) -> str:
    """The report, Markdown."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    commit = subprocess.run(["git", "-C", str(chosen.original), "rev-parse", "HEAD"], capture_output=True, text=True)
    lines = [
        f"# Parity with {chosen.method}: {'agrees' if all(each.agrees(dtype) for each in blocks) else 'DIFFERS'}",
        "",
        f"- {len(blocks)} blocks of {FRAMES} latent frames, {chosen.size}, {chosen.dtype}, seed {chosen.seed}",
        f"- on {device}",
        f"- torch {torch.__version__}, Python {platform.python_version()}",
        f"- original at {commit.stdout.strip() or 'no git checkout'}, without {', '.join(replaced) or 'nothing'}",
        f"- prompt: {chosen.prompt}",
    ]
    for name in ("weights", "lora", "text_encoder"):
        path = getattr(chosen, name)
        if path is not None:
            lines.append(f"- {name}: {path.name}, {path.stat().st_size} bytes, sha256 {_sha256(path)}")
    lines += ["", "| block | largest difference | mean | spread of the original | |", "| --- | --- | --- | --- | --- |"]
    for each in blocks:
        verdict = "agrees" if each.agrees(dtype) else "DIFFERS"
        lines.append(f"| {each.number} | {each.largest:.2e} | {each.mean:.2e} | {each.spread:.2e} | {verdict} |")
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
