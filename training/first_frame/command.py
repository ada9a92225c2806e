"""Two commands: `cast-data` builds a first-frame dataset, `cast-lora` trains a LoRA from one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ...film.first_frame import FirstFrameError
from ..core.lora import WAN_LAYERS, LoraError
from ..core.processes import ProcessError, processes
from ..miniature.auxiliary import add_auxiliary_arguments, open_auxiliary_losses
from ..miniature.export import FILES
from ..miniature.pipeline import start_comfyui
from .dataset import CastDataError, CastSettings, build_dataset, load_dataset
from .distill import casts_of, recast
from .encode import RECOLOURED, Encoders, Transition, variants
from .run import train_cast
from .sources import list_clips
from .train import LoraRecipe
from .world import MINIATURE_TRIGGER, CastScene, ordinary_prompts, world_clips

_KEPT = 512


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """`cast-data`'s."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="JSON list of own clips (see training/first_frame/sources.py)")
    source.add_argument("--world", type=int, metavar="N", help="N clips of the miniature's small world")
    parser.add_argument("--folder", type=Path, required=True, help="the dataset; what is there already is kept")
    parser.add_argument("--width", type=int, help="of the canvas; default 1280, small world 64")
    parser.add_argument("--height", type=int, help="of the canvas; default 720, small world 64")
    parser.add_argument("--frames", type=int, default=81, help="frames taken of each clip, 1 more than a multiple of 4")
    parser.add_argument("--trigger", help="sentence that starts every caption; default the published one")
    parser.add_argument("--seed", type=int, default=0, help="small world: which clips")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--held-out", action="store_true", help="small world: combinations that training never shows")


def run_data(chosen: argparse.Namespace) -> None:
    """`cast-data`."""
    start_comfyui()
    small = chosen.clips is None
    usual = CastSettings()
    with _one_sentence():
        settings = CastSettings(
            chosen.width or (64 if small else usual.width),
            chosen.height or (64 if small else usual.height),
            chosen.frames,
            chosen.trigger or (MINIATURE_TRIGGER if small else usual.trigger),
        )
        if small:
            sources = world_clips(chosen.world, settings, seed=chosen.seed, held_out=chosen.held_out)
        else:
            sources = list_clips(chosen.clips, settings)
        items = build_dataset(sources, settings, chosen.folder)
        print(f"{len(items)} clips in {chosen.folder}; look at {chosen.folder / 'contact_sheet.png'} before you train.")


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """`cast-lora`'s. What is left out is FFGo's for real models, and lighter for the miniature."""
    usual = LoraRecipe()
    parser.add_argument("--data", type=Path, required=True, help="a dataset made by cast-data, or a published one")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, curve, samples and the LoRA (resumed)")
    parser.add_argument("--model", type=Path, help="diffusion model; default the miniature's")
    parser.add_argument("--text", type=Path, help="text encoder of --model")
    parser.add_argument("--vae", type=Path, help="VAE of --model")
    parser.add_argument("--base-dtype", choices=("bf16", "float32", "fp8"), help="default bf16, on a CPU float32")
    parser.add_argument("--expert", choices=("both", "high", "low"), default="both", help="of a high/low-noise pair")
    parser.add_argument("--boundary", type=float, default=usual.boundary, help="noise level at which experts change")
    parser.add_argument("--shift", type=float, default=usual.shift, help="more trains higher noise levels more often")
    parser.add_argument("--rank", type=int, help="size of the LoRA: default 128, miniature 16; alpha is the same")
    parser.add_argument("--layers", default=WAN_LAYERS, help="regular expression on layer names: what is adapted")
    parser.add_argument("--dropout", type=float, default=0.0, help="share of a LoRA layer's inputs left out")
    parser.add_argument("--steps", type=int, default=usual.steps, help="updates")
    parser.add_argument("--batch", type=int, default=usual.batch, help="clips per update")
    parser.add_argument("--at-once", type=int, help="clips per pass: more is faster and takes more memory; default 1")
    parser.add_argument("--rate", type=float, help="learning rate: default 1e-4, miniature 1e-3")
    parser.add_argument("--muon-rate", type=float, help="of Muon, for matrices: default 0 (AdamW), miniature 2e-3")
    parser.add_argument("--subject", type=float, help="how much more than scenery the cast weighs, where the dataset "
                        "says where it is: default 0 as published, miniature 9")  # fmt: skip
    add_auxiliary_arguments(parser)
    parser.add_argument("--clip", type=float, help="largest gradient norm: default 0.05, miniature 1")
    parser.add_argument("--weight-decay", type=float, default=usual.weight_decay, help="more keeps the LoRA smaller")
    parser.add_argument("--frames", type=int, help="of each clip: default 21 as published, miniature 81")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="default the canvases' own")
    parser.add_argument("--cut", choices=("frames", "latents"), help="how the canvas becomes the clip: within a latent "
                        "frame as published (default), or between two (miniature)")  # fmt: skip
    parser.add_argument("--few", type=float, help="share of examples at the noise levels of four-step sampling: "
                        "default 0, miniature 0.5")  # fmt: skip
    parser.add_argument("--own-steps", type=float, help="share of updates that go on from own steps of four-step "
                        "sampling: default 0, miniature 0.25")  # fmt: skip
    parser.add_argument("--keep", type=float, default=None, help="miniature only: share of updates that hold ordinary "
                        "prompts where the base has them, default 0.25")  # fmt: skip
    parser.add_argument("--recoloured", type=int, nargs="?", const=RECOLOURED, default=0, metavar="N", help="learn "
                        "clips N times more, their cast in other colours, where the dataset says where it is, else "
                        "those whose place is pictured: for captions that name no colours; default of N: "
                        f"{RECOLOURED}")  # fmt: skip
    parser.add_argument("--recast", type=int, default=0, metavar="N", help="miniature only: the base films N scenes of "
                        "its clips' casts put together anew, told how they look, to be learned as clips "
                        "are")  # fmt: skip
    parser.add_argument("--mirrored", action="store_true", help="learn clips whose place is only named left to right, "
                        "too, captions exchanged")  # fmt: skip
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto", help="of the forward pass")
    parser.add_argument("--no-checkpointing", action="store_true", help="faster, for much more memory")
    parser.add_argument("--save-every", type=int, default=usual.save_every, help="steps between LoRA files, 0 never")
    parser.add_argument("--sample-every", type=int, default=usual.sample_every, help="steps between samples, 0 never")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another run")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")


def run_lora(chosen: argparse.Namespace, weights: Path) -> None:
    """`cast-lora`. weights: where the miniature's files are."""
    small = chosen.model is None
    with _one_sentence():
        processes()  # ComfyUI takes the GPU that is this process's own
        start_comfyui()
        import comfy.model_management

        if not small and not (chosen.text and chosen.vae):
            raise LoraError("Your own --model needs its --text encoder and its --vae too.")
        usual = LoraRecipe()
        recipe = LoraRecipe(
            rank=chosen.rank or (16 if small else 128), alpha=float(chosen.rank or (16 if small else 128)),
            dropout=chosen.dropout, layers=chosen.layers, expert=chosen.expert, boundary=chosen.boundary,
            shift=chosen.shift, steps=chosen.steps, batch=chosen.batch,
            at_once=chosen.at_once or (chosen.batch if small else 1), rate=chosen.rate or (1e-3 if small else 1e-4),
            muon_rate=(2e-3 if small else usual.muon_rate) if chosen.muon_rate is None else chosen.muon_rate,
            final_share=0.05 if small else usual.final_share, clip=chosen.clip or (1.0 if small else 0.05),
            weight_decay=chosen.weight_decay,
            checkpointing=not (chosen.no_checkpointing or small), precision=chosen.precision,
            save_every=chosen.save_every, sample_every=chosen.sample_every, seed=chosen.seed,
            subject=(9.0 if small else usual.subject) if chosen.subject is None else chosen.subject,
            few=(0.5 if small else usual.few) if chosen.few is None else chosen.few,
            keep=(0.25 if chosen.keep is None else chosen.keep) if small else 0.0,
            own_steps=(0.25 if small else usual.own_steps) if chosen.own_steps is None else chosen.own_steps,
        )  # fmt: skip
        items = load_dataset(chosen.data)
        casts: Sequence[CastScene] = ()
        if chosen.recast:
            if not small or chosen.cut == "frames":
                raise LoraError("Casts are put together anew for the miniature, cut between latents: "
                                "leave --recast out.")  # fmt: skip
            casts = recast(casts_of(items), chosen.recast)
        encoders = _open(chosen, weights)
        frames = chosen.frames or (81 if small else 21)
        size = tuple(chosen.size) if chosen.size else None
        shown = variants(chosen.recoloured, chosen.mirrored)
        device = comfy.model_management.get_torch_device()
        critic = open_auxiliary_losses(weights, chosen.reading, chosen.sight, device=device) if small else None
        cut: Transition = chosen.cut or ("latents" if small else "frames")
        made = train_cast(
            items, encoders, recipe, chosen.folder, frames, size=size, cut=cut, shown=shown, critic=critic,
            kept=ordinary_prompts(_KEPT) if recipe.keep else (), recast=casts,
        )  # fmt: skip
        print(made)


def _open(chosen: argparse.Namespace, weights: Path) -> Encoders:
    """The models, by core's loaders."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    from ...host.miniature_clip import load_miniature_clip

    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32, "fp8": torch.float8_e4m3fn}
    options = {"dtype": dtypes[chosen.base_dtype or ("float32" if on_cpu else "bf16")]}
    path = chosen.model or weights / FILES["dit"]
    model = comfy.sd.load_diffusion_model(str(path), model_options=options, disable_dynamic=True)
    if chosen.model is None:
        clip = load_miniature_clip(str(weights / FILES["text"]))
    else:
        clip = comfy.sd.load_clip([str(chosen.text)], clip_type=comfy.sd.CLIPType.WAN)
    vae_path = chosen.vae or weights / FILES["vae"]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae_path)), dtype=torch.float32 if on_cpu else None)
    return Encoders(model, clip, vae, path.stem)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Errors that a user can correct are printed as one sentence, without a traceback; so is a stop by hand."""
    try:
        yield
    except (CastDataError, LoraError, FirstFrameError, ProcessError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
