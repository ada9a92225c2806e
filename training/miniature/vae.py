"""The miniature's Wan 2.1 VAE, trained from scratch on rendered clips.

ComfyUI's `WanVAE` runs a clip in chunks of two frames with a cache per convolution. `reconstruct` computes the same
numbers for a whole clip at once (every convolution is causal in time), several times faster and with bfloat16
convolutions in channels-last order, which is what makes training on two CPU cores possible; `tests/training` hold the
two equal.

Order of training: single images first, then clips with single images mixed in. The temporal convolutions start from the
spatial ones (the taps on earlier frames start at zero, the resampling ones copy and average frames), so that the first
clip is already reconstructed as a sequence of its key pictures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ...miniature.stories import random_scene
from ...miniature.world import FPS, Rendering, render
from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from .param_groups import split_matrices

LATENT_NOISE = 0.1
"""Standard deviation of the noise added to (unit variance) latents in training: the decoder learns to forgive a
sampler's errors.
"""


@dataclass(frozen=True)
class VaeRecipe:
    """Sizes and schedule. `image_steps` of single images, then `clip_steps` of clips of `frames` pixel frames (1 + 4
    n). seconds: a time budget in place of steps, of which the first `images` are the images'. likeness: weight of a
    perceptual loss (`feature_matching_loss`), where one is given.
    """

    width: int = 16
    image_steps: int = 1500
    image_batch: int = 48
    clip_steps: int = 2500
    clip_batch: int = 1
    frames: int = 21
    rate: float = 2e-3
    muon_rate: float = 3e-3
    likeness: float = 0.0
    seconds: float = 0.0
    images: float = 0.2
    seed: int = 0


def build_vae(width: int) -> Any:
    """A `WanVAE` of the given width with initialised weights (ComfyUI's layers come uninitialised)."""
    from comfy.ldm.wan.vae import Resample, WanVAE

    vae = WanVAE(dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)
            fan_in = module.in_channels * module.kernel_size[1] * module.kernel_size[2]
            nn.init.normal_(module.weight[:, :, -1], std=fan_in**-0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(
                module.weight, std=(module.in_channels * module.kernel_size[0] * module.kernel_size[1]) ** -0.5
            )
    for module in vae.modules():
        if isinstance(module, Resample) and module.mode in ("downsample3d", "upsample3d"):
            weight = module.time_conv.weight
            copies = torch.eye(module.dim).repeat(weight.shape[0] // module.dim, 1)
            with torch.no_grad():
                weight.normal_(std=0.002)
                if module.mode == "downsample3d":
                    weight[:, :, :, 0, 0] += copies[:, :, None] / 3
                else:
                    weight[:, :, -1, 0, 0] += copies
    for block in [*vae.encoder.modules(), *vae.decoder.modules()]:
        if hasattr(block, "residual"):  # residual branches start small, as a deep network without warm-up needs
            with torch.no_grad():
                block.residual[6].weight.mul_(0.3)
        if hasattr(block, "to_qkv"):
            nn.init.zeros_(block.proj.weight)
    return vae


def _conv(x: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    taps, weight = conv.weight.shape[2], conv.weight
    if taps > 1 and x.shape[2] == 1:  # one frame: every tap on an earlier frame would get zeros
        weight = weight[:, :, -1:]
    elif taps > 1:
        x = F.pad(x, (0, 0, 0, 0, taps - 1, 0))
    return _convolved(x, weight, conv.bias, conv.stride[0], int(conv.padding[1]))


def _convolved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    if x.is_cuda:
        return by_planes(x, weight, bias, stride, padding)
    return F.conv3d(x, weight, bias, (stride, 1, 1), (0, padding, padding))


def by_planes(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """A convolution [B, C, T, h, w] with a kernel [O, C, taps, k, k], strides in time, padding in space, as one of
    planes whose channels are the frames under the taps. GPUs have fast kernels for these in channels-last order and
    bfloat16; for three dimensions some releases of torch fall back to a slow one.
    """
    taps = weight.shape[2]
    count = (x.shape[2] - taps) // stride + 1
    if taps > 1 or stride > 1:
        x = torch.cat([x[:, :, i : i + stride * (count - 1) + 1 : stride] for i in range(taps)], dim=1)
    y = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight.transpose(1, 2).flatten(1, 2), bias, padding=padding)
    return y.unflatten(0, (-1, count)).transpose(1, 2)


def _norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """RMS norm over channels: `F.normalize` of the original, without its slow vector norm."""
    return x * (torch.rsqrt(x.square().sum(dim=1, keepdim=True) + 1e-6) * norm.scale) * norm.gamma


def _residual(x: torch.Tensor, block: Any) -> torch.Tensor:
    r = block.residual
    y = _conv(F.silu(_norm(x, r[0])), r[2])
    y = _conv(F.silu(_norm(y, r[3])), r[6])
    return y + (x if isinstance(block.shortcut, nn.Identity) else _conv(x, block.shortcut))


def _spatial(x: torch.Tensor, layers: Any) -> torch.Tensor:
    b, c, t, h, w = x.shape
    y = layers(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)


def _resample(x: torch.Tensor, block: Any) -> torch.Tensor:
    if block.mode == "upsample3d" and x.shape[2] > 1:
        # The first latent frame is one picture and is not doubled; it does not pass the temporal convolution.
        y = _conv(x[:, :, 1:], block.time_conv)
        b, c, t, h, w = y.shape
        y = y.reshape(b, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c // 2, t * 2, h, w)
        x = torch.cat([x[:, :, :1], y], dim=2)
    x = _spatial(x, block.resample)
    if block.mode == "downsample3d" and x.shape[2] > 1:
        y = _convolved(x, block.time_conv.weight, block.time_conv.bias, stride=2)
        x = torch.cat([x[:, :, :1], y], dim=2)
    return x


def _attended(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """What self-attention within each frame adds. ComfyUI's asks the device for its free memory before it."""
    b, c, t, h, w = x.shape
    planes = x.transpose(1, 2).reshape(b * t, c, h, w)
    q, k, v = layer.to_qkv(layer.norm(planes)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
    y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (h, w))
    added: torch.Tensor = layer.proj(y).unflatten(0, (b, t)).transpose(1, 2)
    return added


def _run(x: torch.Tensor, layers: Any) -> torch.Tensor:
    for layer in layers:
        if hasattr(layer, "residual"):
            x = _residual(x, layer)
        elif hasattr(layer, "to_qkv"):
            x = x + _attended(x, layer)
        elif hasattr(layer, "resample"):
            x = _resample(x, layer)
        elif hasattr(layer, "gamma"):
            x = _norm(x, layer)
        elif isinstance(layer, nn.Conv3d):
            x = _conv(x, layer)
        else:
            x = layer(x)
    return x


def encode(vae: Any, clip: torch.Tensor) -> torch.Tensor:
    """Latents [B, 16, 1 + n, h/8, w/8] of a clip [B, 3, 1 + 4 n, h, w] in -1..1; equal to `vae.encode`."""
    x = _conv(clip, vae.encoder.conv1)
    x = _run(_run(_run(x, vae.encoder.downsamples), vae.encoder.middle), vae.encoder.head)
    return _conv(x, vae.conv1)[:, :16]


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Clip [B, 3, 1 + 4 n, h, w] in about -1..1 of latents [B, 16, 1 + n, h/8, w/8]; equal to `vae.decode`."""
    x = _conv(_conv(latents, vae.conv2), vae.decoder.conv1)
    return _run(_run(_run(x, vae.decoder.middle), vae.decoder.upsamples), vae.decoder.head)


def draw(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """`decode` as training does it, on the latents' device in bfloat16 and channels-last; float32."""
    with mixed_precision(latents.device):
        clip: torch.Tensor = decode(vae, latents.contiguous(memory_format=torch.channels_last_3d)).float()
    return clip


class ClipSource:
    """Rendered clips with their character masks, endless, different at every step, the same for the same seed and
    step.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def clips(self, step: int, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [B, 3, frames, 64, 64] in -1..1 and weights [B, 1, frames, 64, 64]: 1, and 4 on characters."""
        rng = random.Random(f"{self.seed}/{step}")
        pictures, weights = [], []
        for _ in range(batch):
            drawn = self._draw(rng, rng.uniform(0, 6.0) + torch.arange(frames) / FPS)
            pictures.append(drawn.frames.transpose(0, 1) * 2 - 1)
            weights.append(1 + 3 * drawn.masks.amax(dim=1)[None])
        return torch.stack(pictures), torch.stack(weights)

    def images(self, step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for single pictures, four moments of each of `batch` / 4 scenes: [B, 3, 1, 64, 64] and weights."""
        rng = random.Random(f"{self.seed}/image/{step}")
        drawn = [self._draw(rng, torch.tensor([rng.uniform(0, 8.0) for _ in range(4)])) for _ in range(batch // 4)]
        pictures = torch.cat([d.frames for d in drawn]) * 2 - 1
        weights = 1 + 3 * torch.cat([d.masks.amax(dim=1, keepdim=True) for d in drawn])
        return pictures[:, :, None], weights[:, :, None]

    @staticmethod
    def _draw(rng: random.Random, times: torch.Tensor) -> Rendering:
        return render(random_scene(rng, 8.0, held_out=rng.random() < 0.2), times)


def loss(vae: Any, clip: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The training loss of a batch, its plain mean squared error (of pictures in 0..1) and what was decoded."""
    clip = clip.contiguous(memory_format=torch.channels_last_3d)
    with mixed_precision(clip.device):
        latents = encode(vae, clip).float()
        noisy = latents + LATENT_NOISE * torch.randn_like(latents)
        out = decode(vae, noisy).float()
    error = out - clip
    reconstruction = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    # Unit second moment, so that the noise above has a meaning and the sampler a well-scaled space.
    moment = latents.square().mean(dim=(0, 2, 3, 4))
    return reconstruction + 0.02 * (moment - 1).square().mean(), (error.detach() / 2).square().mean(), out


def decibels(mse: torch.Tensor) -> torch.Tensor:
    """Decibels of a mean squared error of pictures in 0..1, where it is."""
    return -10 * torch.log10(mse)


def psnr(mse: torch.Tensor) -> float:
    """`decibels` as a number."""
    return float(decibels(mse))


class Clips(Protocol):
    """Where pictures to learn from come from."""

    def clips(self, step: int, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [B, 3, frames, h, w] in -1..1 and weights [B, 1, frames, h, w]."""
        ...

    def images(self, step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Single pictures [B, 3, 1, h, w] and weights."""
        ...


def train_vae(
    recipe: VaeRecipe,
    vae: Any,
    folder: Path,
    *,
    source: Clips | None = None,
    unlike: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Train `vae` in place as `recipe` says, on the device it is on, resuming from `folder`; it ends with
    averaged weights. unlike: a further loss of decoded and true clips [B, 3, T, h, w] in -1..1, weighing
    `recipe.likeness`.
    """
    device = next(vae.parameters()).device
    source = source or ClipSource(recipe.seed)
    began = time.monotonic()

    def only_images(step: int) -> bool:
        if recipe.seconds:
            return time.monotonic() - began < recipe.images * recipe.seconds
        return step < recipe.image_steps

    def loss_at(step: int) -> tuple[torch.Tensor, Metrics]:
        image = step % 5 == 0 or only_images(step)
        if image:
            clip, weight = source.images(step, recipe.image_batch)
        else:
            clip, weight = source.clips(step, recipe.clip_batch, recipe.frames)
        clip = clip.to(device)
        value, mse, out = loss(vae, clip, weight.to(device))
        kind = "image" if image else "clip"
        figures = {f"psnr_{kind}": decibels(mse)}
        if unlike and recipe.likeness:
            seen = unlike(out, clip)
            value, figures = value + recipe.likeness * seen, {**figures, f"unlike_{kind}": seen.detach()}
        return value, figures

    steps = 10**9 if recipe.seconds else recipe.image_steps + recipe.clip_steps
    schedule = Schedule(steps, recipe.rate, muon_lr=recipe.muon_rate, seconds=recipe.seconds)
    vae.load_state_dict(train("vae", vae, loss_at, schedule, folder, groups=split_matrices(vae), seed=recipe.seed))
