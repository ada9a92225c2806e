"""Turn the released causal checkpoints into one safetensors file that ComfyUI's own loader opens as a causal Wan.

Reads Self-Forcing, LongLive 1.0, MemFlow (base and LoRA), ShotStream, plain Wan and diffusers layouts, `.pt` and
`.safetensors`, one file or a sharded folder. A `.pt` is a pickle: it is read weights-only, so code in it is refused and
never run. Names and facts: docs/methods/memflow.md, released files. On the command line: `python -m
longreel.host.files.checkpoints --help`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...film.console import print_anything
from .safetensors_io import CheckpointError, StoredTensor, few, open_tensors, write_tensors

__all__ = ["MADE_FROM", "CheckpointError", "convert", "convert_lora", "main"]

# wrappers that training puts into names, wherever they occur, and prefixes of containers, outermost first
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("generator.", "model.diffusion_model.", "diffusion_model.", "base_model.model.", "model.")
_MODEL_ENTRIES = ("generator", "generator_ema", "model", "state_dict")
_LORA_ENTRIES = ("generator_lora", "lora")

# diffusers' names of Wan's layers; norm2 is Wan's norm3 because diffusers counts the norms in order of use
_DIFFUSERS = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"^(blocks\.\d+\.)scale_shift_table$", r"\1modulation"),
    (r"^(blocks\.\d+\.)norm2\.", r"\1norm3."),
    (r"^(blocks\.\d+\.)attn1\.", r"\1self_attn."),
    (r"^(blocks\.\d+\.)attn2\.", r"\1cross_attn."),
    (r"^(blocks\.\d+\.\w+_attn\.)to_([qkv])\.", r"\1\2."),
    (r"^(blocks\.\d+\.\w+_attn\.)to_out\.0\.", r"\1o."),
    (r"^(blocks\.\d+\.ffn\.)net\.0\.proj\.", r"\g<1>0."),
    (r"^(blocks\.\d+\.ffn\.)net\.2\.", r"\g<1>2."),
)

_FP8_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
_TENSORS_A_BLOCK = 20
_MOST_LAYERS = 200
"""Five times as many as the deepest Wan."""

Report = Callable[[str], None]
MADE_FROM = "longreel_made_from"
"""Metadata key: what identifies the files that an output was made from."""


def convert(
    source: str | Path,
    output: str | Path,
    *,
    lora: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    ema: bool = False,
    head_dim: int = 128,
    overwrite: bool = False,
    made_from: str = "",
    report: Report = lambda _: None,
) -> Path:
    """Write `source`, with `lora` merged in fp32 if given, to the safetensors file `output`; returns its path.

    source: a .pt or .safetensors file, or a folder in diffusers layout. ema: take the averaged weights where a file has
    both. head_dim: channels per attention head, which no tensor's shape determines (128 in every released Wan).
    made_from: kept in the metadata, see causal_checkpoints.py. The output appears whole or not at all, and its metadata
    make ComfyUI load it as a causal model. Memory needed is that
    of the largest tensors, for an old-style pickle that of the file. Raises CheckpointError.
    """
    tensors = _plain_names(open_tensors(Path(source), _MODEL_ENTRIES, prefer=1 if ema else 0), source)
    config = _check_model(tensors, head_dim, source)
    deltas = {} if lora is None else _lora_pairs(Path(lora))
    unknown = sorted(name for name in deltas if f"{name}.weight" not in tensors)
    if unknown:
        raise CheckpointError(f"The LoRA {Path(lora or '').name} is made for another model: no {few(unknown)} here.")

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name, stored in tensors.items():
            value = stored.read().float()
            delta = deltas.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            yield name, (value if delta is None else value + delta.product(value.shape, name)).to(dtype)

    shapes = {name: stored.shape for name, stored in tensors.items()}
    metadata = {"config": json.dumps({"transformer": config}), MADE_FROM: made_from}
    report(f"{len(tensors)} tensors" + (f", {len(deltas)} of them with LoRA" if deltas else ""))
    return write_tensors(Path(output), shapes, values(), dtype, metadata, overwrite)


def convert_lora(
    source: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    overwrite: bool = False,
    made_from: str = "",
) -> Path:
    """Write a training LoRA as a LoRA file that ComfyUI's LoRA loaders apply to the converted base; returns its path.

    made_from: kept in the metadata. Raises CheckpointError.
    """
    parts = {}
    for name, pair in _lora_pairs(Path(source)).items():
        parts[f"diffusion_model.{name}.lora_A.weight"] = pair.down
        parts[f"diffusion_model.{name}.lora_B.weight"] = pair.up
        if pair.alpha is not None:
            parts[f"diffusion_model.{name}.alpha"] = pair.alpha
    shapes = {name: stored.shape for name, stored in parts.items()}
    values = ((name, stored.read().to(dtype)) for name, stored in parts.items())
    return write_tensors(Path(output), shapes, values, dtype, {MADE_FROM: made_from}, overwrite)


# Names


def _plain_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def _plain_names(tensors: dict[str, StoredTensor], source: str | Path) -> dict[str, StoredTensor]:
    """Tensors under Wan's own names. Raises CheckpointError when two would share one."""
    plain: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        new = _plain_name(name)
        if new in plain:
            raise CheckpointError(f"{Path(source).name} holds {new} twice; give a file with one set of weights.")
        plain[new] = stored
    return plain


def _check_model(tensors: dict[str, StoredTensor], head_dim: int, source: str | Path) -> dict[str, Any]:
    """Match every name and shape against the model they describe; returns the config for the metadata."""
    name = Path(source).name
    if scaled := [key for key in tensors if key.endswith(_FP8_SCALES)]:
        raise CheckpointError(
            f"{name} holds scaled fp8 weights ({scaled[0]}), which cannot be converted: load it with Load Diffusion "
            "Model, or give the bf16, fp16 or fp32 file."
        )
    try:
        dim = tensors["head.modulation"].shape[-1]
        text_dim = tensors["text_embedding.0.weight"].shape[1]
        freq_dim = tensors["time_embedding.0.weight"].shape[1]
        ffn_dim = tensors["blocks.0.ffn.0.weight"].shape[0]
        in_dim = tensors["patch_embedding.weight"].shape[1]
        out_dim = tensors["head.head.weight"].shape[0] // 4
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{name} is no Wan model, it has no {error}; give a causal or plain Wan file.") from error
    if head_dim < 1 or dim % head_dim:
        raise CheckpointError(f"{name} is {dim} wide, which heads of {head_dim} do not divide; set another head size.")
    if in_dim != out_dim:
        raise CheckpointError(f"{name} takes {in_dim} channels to make {out_dim} (image-to-video); give text-to-video.")
    layers = 1 + max(int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key)))
    heads = dim // head_dim
    # imported late: on the command line the device is chosen in main(), before ComfyUI looks for one
    import comfy.ldm.wan.ar_model
    import comfy.ops

    model = comfy.ldm.wan.ar_model.CausalWanModel(
        in_dim=in_dim,
        dim=dim,
        ffn_dim=ffn_dim,
        freq_dim=freq_dim,
        text_dim=text_dim,
        out_dim=out_dim,
        num_heads=heads,
        # stray block numbers must not make a giant of the model
        num_layers=min(layers, len(tensors) // _TENSORS_A_BLOCK + 1, _MOST_LAYERS),
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing, foreign = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or foreign:
        parts = [f"lacks {few(missing)}"] if missing else []
        parts += [f"holds foreign {few(foreign)}"] if foreign else []
        raise CheckpointError(
            f"{name} is not a whole text-to-video Wan model of {len(expected)} tensors: it {' and '.join(parts)}."
        )
    wrong = sorted(key for key, shape in expected.items() if tensors[key].shape != shape)
    if wrong:
        raise CheckpointError(f"{name} holds {few(wrong)} in another shape than the rest of the model; it is damaged.")
    # only what differs from ComfyUI's own guess
    usual = {"num_heads": dim // 128, "text_dim": 4096, "freq_dim": 256}
    sizes = {"num_heads": heads, "text_dim": text_dim, "freq_dim": freq_dim}
    return {"causal_ar": True} | {key: size for key, size in sizes.items() if size != usual[key]}


# LoRA


@dataclass(frozen=True)
class _Pair:
    """One module's LoRA: down [rank, in], up [out, rank], alpha (scale = alpha / rank; 1 without)."""

    down: StoredTensor
    up: StoredTensor
    alpha: StoredTensor | None

    def product(self, shape: torch.Size, name: str) -> torch.Tensor:
        """The change of the weight `name`, fp32."""
        scale = 1.0 if self.alpha is None else float(self.alpha.read()) / self.down.shape[0]
        if (self.up.shape[0], self.down.shape[1]) != tuple(shape):
            raise CheckpointError(f"The LoRA does not fit {name}; it is made for a model of another size.")
        return scale * (self.up.read().float() @ self.down.read().float())


def _lora_pairs(path: Path) -> dict[str, _Pair]:
    """LoRA pairs by module name (PEFT's names, with or without the adapter's)."""
    sides: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in _plain_names(open_tensors(path, _LORA_ENTRIES), path).items():
        match = re.fullmatch(r"(.+)\.(?:lora_(A|B)(?:\.\w+)?\.weight|(alpha))", name)
        if match is None:
            raise CheckpointError(f"{path.name} is not a LoRA: it holds {name}; give the LoRA file of the checkpoint.")
        sides.setdefault(match[1], {})[match[2] or match[3]] = stored
    halves = sorted(name for name, side in sides.items() if not side.keys() >= {"A", "B"})
    if halves:
        raise CheckpointError(f"{path.name} lacks one half of the LoRA of {few(halves)}; download it again.")
    for name, side in sides.items():
        if len(side["A"].shape) != 2 or len(side["B"].shape) != 2 or side["A"].shape[0] != side["B"].shape[1]:
            raise CheckpointError(f"{path.name} holds halves of different rank for {name}; download it again.")
    return {name: _Pair(side["A"], side["B"], side.get("alpha")) for name, side in sides.items()}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m longreel.host.files.checkpoints", description=__doc__)
    parser.add_argument("source", type=Path, help=".pt or .safetensors file, or diffusers folder")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--lora", type=Path, help="LoRA to merge into the weights")
    parser.add_argument("--only-lora", action="store_true", help="source is a LoRA: write it as a stock ComfyUI LoRA")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights where a file has both")
    parser.add_argument("--head-dim", type=int, default=128, help="channels per attention head (128 in all releases)")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args(arguments)
    import comfy.cli_args

    # nothing is computed on a GPU here, and a machine without one must do
    comfy.cli_args.args.cpu = True
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[options.dtype]
    try:
        if options.only_lora:
            written = convert_lora(options.source, options.output, dtype=dtype, overwrite=options.overwrite)
        else:
            written = convert(
                options.source,
                options.output,
                lora=options.lora,
                dtype=dtype,
                ema=options.ema,
                head_dim=options.head_dim,
                overwrite=options.overwrite,
                report=_say,
            )
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _say(str(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
