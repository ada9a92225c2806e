"""The miniature's Stable Video Diffusion and its AID adapter, trained from nothing on the small world.

Four stages, each kept in the run's folder, so that a run that was killed goes on: an autoencoder of images, the clips
encoded by it, the UNet without words on all clips, an adapter on a part of them. The vision encoder stays as it is
initialised: a fixed random projection of the picture tells the 768 characters in their places apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...film.instruction.settings import AdapterSettings
from ...miniature.batch import World
from ..core.loop import Metrics, Schedule, train
from ..core.lora import differentiable
from ..core.trainable import write_tensors
from ..miniature.export import FILES as MINIATURE_FILES
from ..miniature.pipeline import once
from ..miniature.vae import LATENT_NOISE, psnr
from .base import UNET_ZERO, initialise, train_unet
from .data import Encoders, Example, architecture_of, encode_clips, encoders_of
from .small_world import FRAMES, RATE, STATES, Pool, draw_pool, scenes
from .train import MINIATURE, InstructionSettings, train_adapter

__all__ = ["ADAPTER_FILE", "BASE_FILE", "AutoencoderRecipe", "SmallRecipe", "train_small"]

BASE_FILE = "diffusion_models/longreel-miniature-svd.safetensors"
ADAPTER_FILE = "aid/longreel-miniature-aid.safetensors"
_ENDS = ("conv2.weight", "proj_out.weight")
_CHARACTER = 3.0
"""Pixels of a character weigh 1 + this."""


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Of the image autoencoder. rate, muon_rate: learning rates. seconds: a budget."""

    batch: int = 16
    rate: float = 3e-3
    muon_rate: float = 5e-3
    seconds: float = 420.0
    seed: int = 0


@dataclass(frozen=True)
class SmallRecipe:
    """pictures: first frames, six clips of each; taught: how many of them the adapter learns with."""

    pictures: int = 100
    taught: int = 84
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    base: InstructionSettings = field(
        default_factory=lambda: replace(
            MINIATURE, steps=10**6, seconds=1260.0, batch=4, micro_batch=4, lr=3e-3, muon_lr=5e-3, warmup=20,
            ema_decay=0.99, final_lr_ratio=0.05, p_mean=0.3, p_std=1.5, text_dropout=0.0, both_dropout=0.0,
            sample_every=0, save_every=0,
        )
    )  # fmt: skip
    adapter: InstructionSettings = field(
        default_factory=lambda: replace(
            MINIATURE, steps=10**6, seconds=900.0, batch=4, micro_batch=4, lr=3e-3, muon_lr=4e-3, warmup=20,
            ema_decay=0.99, final_lr_ratio=0.05, ratio=1, p_mean=1.2, p_std=1.4, sample_every=0, save_every=0,
        )
    )  # fmt: skip
    seed: int = 0


def train_small(recipe: SmallRecipe, folder: Path, weights: Path, say: Callable[[str], None] = print) -> None:
    """Run all stages in `folder` and write base and adapter under `weights`. ComfyUI has been started."""
    from ...host.files.paths import MINIATURE_WEIGHTS
    from ...host.miniature_clip import load_miniature_clip
    from ...host.svd.model import make_svd
    from ...host.svd.small import MINIATURE_SIZE, make_vae, make_vision

    folder.mkdir(parents=True, exist_ok=True)
    pool = _pool(recipe, folder / "pool.pt")
    say(f"{len(pool.scenes)} pictures, six clips of each")
    vae = make_vae(_autoencoder(recipe.autoencoder, pool, folder, say))
    vision = make_vision()
    initialise(vision.model, recipe.seed)
    model = make_svd(MINIATURE_SIZE)
    unet = model.model.diffusion_model
    initialise(unet, recipe.seed, zero=UNET_ZERO)
    clip: Any = load_miniature_clip(str(MINIATURE_WEIGHTS / MINIATURE_FILES["text"]))
    encoders = encoders_of(model, clip, vision, vae)
    examples = encode_clips(
        pool.clips(recipe.pictures), small_architecture(model, encoders, recipe.adapter), encoders, folder / "examples",
        say,
    )  # fmt: skip
    spread = torch.stack([one.latents for one in examples]).std()
    say(f"{len(examples)} clips encoded, standard deviation of latents {float(spread):.3f}")
    once(
        folder / "unet.pt",
        unet,
        lambda: train_unet(
            model, small_architecture(model, encoders, recipe.adapter), examples, recipe.base, folder / "base", say=say
        ),
    )
    write_base(weights / BASE_FILE, unet, vae.first_stage_model, vision.model, {"clips": str(len(examples))})
    # what the adapter is trained on is what its file names as its base: the weights as the file has them
    unet.load_state_dict({key: value.half().float() for key, value in unet.state_dict().items()})
    taught: list[Example] = examples[: 6 * recipe.taught]
    made = train_adapter(
        model, small_architecture(model, encoders, recipe.adapter), taught, recipe.adapter, folder / "adapter", say=say
    )
    target = weights / ADAPTER_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(made.read_bytes())
    say(f"{target}: {target.stat().st_size / 2**20:.1f} MB")


def small_architecture(model: Any, encoders: Encoders, settings: InstructionSettings) -> AdapterSettings:
    """The miniature adapter's: 16 frames of 64 x 64, two states."""
    return architecture_of(
        model, encoders, num_frames=FRAMES, width=64, height=64, num_states=STATES, dq_heads=4, lt_head_width=32,
        ff_mult=2, ratio=settings.ratio, fps=RATE, context_mode=settings.context_mode, augmentation=0.0,
    )  # fmt: skip


def write_base(
    path: Path, unet: nn.Module, autoencoder: nn.Module, vision: nn.Module, notes: Mapping[str, str]
) -> None:
    """One file in fp16, see host/svd/small.py."""
    from ...host.svd.small import MINIATURE_SIZE, metadata

    parts = {"unet": unet, "vae": autoencoder, "vision": vision}
    tensors = {
        f"{name}.{key}": value.detach().half()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    write_tensors(path, tensors, metadata(MINIATURE_SIZE, notes))


def _pool(recipe: SmallRecipe, path: Path) -> Pool:
    chosen = scenes(recipe.pictures, recipe.seed, held_out=False)
    if path.exists():
        kept = torch.load(path, weights_only=True)
        return Pool(chosen, kept["frames"], kept["masks"])
    pool = draw_pool(chosen, World("cpu"))
    torch.save({"frames": pool.frames, "masks": pool.masks}, path)
    return pool


def _autoencoder(recipe: AutoencoderRecipe, pool: Pool, folder: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    """State of the trained autoencoder with SVD's temporal decoder, its latents of SVD's scale."""
    from ...host.svd.small import make_autoencoder, with_temporal_decoder

    network: Any = make_autoencoder()
    initialise(network, recipe.seed, zero=_ENDS)
    frames, masks = pool.frames.flatten(0, 2), pool.masks.flatten(0, 2)

    def loss_at(step: int) -> tuple[Tensor, Metrics]:
        rows = torch.randint(len(frames), (recipe.batch,))
        pictures = frames[rows].float() / 127.5 - 1
        weight = 1 + _CHARACTER * masks[rows, None].float() / 255
        latents = _latents(network, pictures)
        error = network.decoder(network.post_quant_conv(latents + LATENT_NOISE * torch.randn_like(latents))) - pictures
        fit = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
        moment = latents.square().mean(dim=(0, 2, 3))
        return fit + 0.02 * (moment - 1).square().mean(), {"psnr": psnr((error.detach() / 2).square().mean())}

    def learn() -> None:
        schedule = Schedule(
            10**6, recipe.rate, warmup=20, muon_lr=recipe.muon_rate, ema_decay=0.99, seconds=recipe.seconds
        )
        with differentiable():
            network.load_state_dict(train("autoencoder", network, loss_at, schedule, folder, seed=recipe.seed, say=say))

    once(folder / "autoencoder.pt", network, learn)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(recipe.seed)
        some = torch.randint(len(frames), (256,), generator=generator)
        latents = _latents(network, frames[some].float() / 127.5 - 1).transpose(0, 1).flatten(1)
    return with_temporal_decoder(network, latents.mean(1), latents.std(1))


def _latents(network: Any, pictures: Tensor) -> Tensor:
    """[B, 4, 8, 8], without the noise of a posterior."""
    latents: Tensor = network.quant_conv(network.encoder(pictures))[:, :4]
    return latents
