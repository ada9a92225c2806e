"""Commands: `weaver-clip` trains the miniature's CLIP, `weaver-data` encodes scenes of its world, `weaver-lora` trains
a cache-guided LoRA from such scenes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast, get_args

import torch

from ...film.dual_cache import CacheError, LayoutProfile
from ...film.dual_cache.profile import TimeMode
from ..core.lora import WAN_LAYERS, WAN_SELF_ATTENTION, LoraError
from ..miniature.auxiliary import add_auxiliary_arguments, open_auxiliary_losses
from ..miniature.clip import CLIP_FILE, ClipRecipe, train_clip
from ..miniature.export import FILES, read_vae
from ..miniature.pipeline import prepare_device, start_comfyui
from ..miniature.vae import VaeRecipe, build_vae
from .run import train_scenes
from .samples import ALL_MODES, TEMPORAL_ONLY, Curriculum
from .train import WeaverRecipe

_Number = TypeVar("_Number", int, float)


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-clip`'s."""
    usual = ClipRecipe()
    parser.add_argument("--folder", type=Path, default=Path("clip-training"), help="checkpoint and log (resumed)")
    parser.add_argument("--weights", type=Path, help="where the finished model goes; default the miniature's weights")
    parser.add_argument("--scenes", type=int, default=usual.scenes, help="moments of the small world to learn from")
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another model")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_clip(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-clip`. weights: where the miniature's files are."""
    start_comfyui()
    recipe = ClipRecipe(scenes=chosen.scenes, steps=chosen.steps, seed=chosen.seed)
    print(train_clip(recipe, chosen.folder, chosen.weights or weights))


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-data`'s."""
    parser.add_argument("--folder", type=Path, required=True, help="encoded scenes; what is there already is kept")
    parser.add_argument("--scenes", type=int, default=200, help="scenes of three shots")
    parser.add_argument("--clip", type=Path, help="keyframe CLIP; default the miniature's")
    parser.add_argument("--seed", type=int, default=0, help="which scenes")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_data(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-data`."""
    start_comfyui()
    from ...host.media.embedder import load_embedder
    from ...host.miniature_clip import load_miniature_clip
    from .world import WorldModels, encode_world

    vae = build_vae(VaeRecipe().width)
    read_vae(vae, weights)
    embedder = load_embedder(chosen.clip or weights / CLIP_FILE)
    models = WorldModels(vae.to(prepare_device()).eval(), load_miniature_clip(str(weights / FILES["text"])), embedder)
    with torch.inference_mode():
        encode_world(models, chosen.scenes, chosen.folder, seed=chosen.seed)
    print(f"{chosen.scenes} scenes in {chosen.folder}.")


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """`weaver-lora`'s. What is left out is the recipe's for real models, and lighter for the miniature."""
    usual = WeaverRecipe()
    parser.add_argument("--data", type=Path, required=True, help="a folder of encoded scenes")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve, samples, LoRA (resumed)")
    parser.add_argument("--model", type=Path, help="text-to-video Wan; default the miniature's")
    parser.add_argument("--base-dtype", choices=("bf16", "float32", "fp8"), help="default bf16, on a CPU float32")
    parser.add_argument("--time-mode", choices=get_args(TimeMode), help="noise level that cache tokens are told: the "
                        "target's (shared), their own or none; default own, real bases shared")  # fmt: skip
    parser.add_argument("--rank", type=int, help="size of the LoRA: default 128, miniature 16; alpha is the same")
    parser.add_argument("--layers", help="regular expression on layer names; default self-attention, miniature all")
    parser.add_argument("--first-steps", type=int, help="updates with the temporal cache alone: 10000, miniature 400")
    parser.add_argument("--steps", type=int, help="updates with all four modes: 10000, miniature 1600")
    parser.add_argument("--rollout-steps", type=int, default=0, help="updates with histories of the model's own")
    parser.add_argument("--shift", type=float, default=usual.shift, help="more trains higher noise levels more often")
    parser.add_argument("--batch", type=int, help="samples per update: default 16, miniature 8")
    parser.add_argument("--at-once", type=int, help="samples per pass: default 1, miniature 4")
    parser.add_argument("--rate", type=float, help="learning rate: default 1e-4, miniature 1e-3")
    parser.add_argument("--muon-rate", type=float, help="of Muon, for matrices: default 0 (AdamW), miniature 2e-3")
    parser.add_argument("--warmup", type=int, help="updates until the full rate: default 500, miniature 50")
    parser.add_argument("--start-from", type=Path, help="a finished LoRA of the same layers and rank to train on")
    parser.add_argument("--modes", type=float, nargs=4, help="how often stage 2 draws no cache, temporal, shot, both")
    parser.add_argument("--ranked", type=float, default=0.7, help="share of samples with the best keyframes, else any")
    parser.add_argument("--subject", type=float, help="how much more than scenery subjects weigh, where scenes say "
                        "where they are: default 0, miniature 4")  # fmt: skip
    add_auxiliary_arguments(parser)
    parser.add_argument("--no-cache-noise", action="store_true", help="clean caches: the ablation, not for use")
    parser.add_argument("--negative", type=float, default=0.25, help="share of keyframes taken from other scenes")
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto", help="of the forward pass")
    parser.add_argument("--no-checkpointing", action="store_true", help="faster, for much more memory")
    parser.add_argument("--save-every", type=int, default=usual.save_every, help="steps between LoRA files, 0 never")
    parser.add_argument("--sample-every", type=int, default=usual.sample_every, help="steps between samples, 0 never")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another run")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_lora(chosen: argparse.Namespace, weights: Path) -> None:
    """`weaver-lora`. weights: where the miniature's files are."""
    start_comfyui()
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32, "fp8": torch.float8_e4m3fn}
    options = {"dtype": dtypes[chosen.base_dtype or ("float32" if on_cpu else "bf16")]}
    path, vae, critic = chosen.model or weights / FILES["dit"], None, None
    if chosen.model is None:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights / FILES["vae"])), dtype=torch.float32)
        device = comfy.model_management.get_torch_device()
        critic = open_auxiliary_losses(weights, chosen.reading, chosen.sight, device=device)
    try:
        model = comfy.sd.load_diffusion_model(str(path), model_options=options)
        print(train_scenes(model, chosen.data, recipe_of(chosen), chosen.folder, base=path.stem, vae=vae,
                           start_from=chosen.start_from, critic=critic))  # fmt: skip
    except (LoraError, CacheError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop


def recipe_of(chosen: argparse.Namespace) -> WeaverRecipe:
    """The recipe of the options."""
    small = chosen.model is None
    usual = WeaverRecipe()
    rank = chosen.rank or (16 if small else usual.rank)
    modes = cast(tuple[float, float, float, float], tuple(chosen.modes or ALL_MODES))
    both = Curriculum(modes=modes, negative=chosen.negative, ranked=chosen.ranked)
    if chosen.no_cache_noise:
        both = replace(both, shot_sigma=(0.0, 0.0), temporal_sigma=(0.0, 0.0), clean=1.0)
    return WeaverRecipe(
        profile=LayoutProfile(time_mode=chosen.time_mode or ("own" if small else "shared")),
        rank=rank, alpha=float(rank),
        layers=chosen.layers or (WAN_LAYERS if small else WAN_SELF_ATTENTION),
        first=replace(both, modes=TEMPORAL_ONLY), second=both,
        first_steps=_or(chosen.first_steps, 400 if small else usual.first_steps),
        steps=_or(chosen.steps, 1600 if small else usual.steps),
        rollout_steps=chosen.rollout_steps, shift=chosen.shift,
        batch=chosen.batch or (8 if small else usual.batch), at_once=chosen.at_once or (4 if small else 1),
        rate=chosen.rate or (1e-3 if small else usual.rate),
        muon_rate=_or(chosen.muon_rate, 2e-3 if small else usual.muon_rate),
        warmup=_or(chosen.warmup, 50 if small else usual.warmup),
        final_share=0.1 if small else 1.0, average=0.99 if small else usual.average,
        subject=_or(chosen.subject, 4.0 if small else usual.subject),
        checkpointing=not (chosen.no_checkpointing or small), precision=chosen.precision,
        save_every=chosen.save_every, sample_every=chosen.sample_every, seed=chosen.seed,
    )  # fmt: skip


def _or(value: _Number | None, usual: _Number) -> _Number:
    return usual if value is None else value
