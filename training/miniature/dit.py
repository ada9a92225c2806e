"""The miniature's Wan DiT and its text encoder, trained together once in mixed modes.

One network serves text-to-video, causal rollout and a given first frame, because Wan takes a noise level per frame;
`training.miniature.sequences` says what a training sequence is. A tenth of the sequences reads no prompt, which gives
core's sampler a negative to guide with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...miniature.text import TextEncoder
from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from .latent_classifier import VISIBLE_WORDS, latent_bce, multi_hot_labels
from .latents import Stories
from .param_groups import split_matrices
from .pixel_losses import DecodedProbeLoss
from .sequences import FEW_STEPS, Batch, draw_batch

_WORDLESS = 0.1


@dataclass(frozen=True)
class DitRecipe:
    """Sizes and schedule of the DiT and the text encoder.

    `reading` weighs the reader's loss on the predicted clean latents (see reader.py). `own_context` is the share of
    sequences that go on from what the model itself makes of the frames before, `own_steps` the share of batches that go
    on denoising what it has denoised itself.
    """

    dim: int = 192
    ffn_dim: int = 576
    layers: int = 8
    heads: int = 3
    freq_dim: int = 128
    text_dim: int = 128
    steps: int = 6000
    batch: int = 8
    rate: float = 1e-3
    muon_rate: float = 2e-3
    reading: float = 0.3
    own_context: float = 0.5
    own_steps: float = 0.25
    seed: int = 0


class Miniature(nn.Module):
    """The DiT and the text encoder as one trainable module."""

    def __init__(self, recipe: DitRecipe):
        super().__init__()
        self.dit = build_dit(recipe)
        self.text = TextEncoder(recipe.text_dim)
        for parameter in self.text.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05)


def build_dit(recipe: DitRecipe) -> Any:
    """ComfyUI's `CausalWanModel` in float32, initialised as in the Wan paper's code: Xavier matrices, zero head."""
    import comfy.ops
    from comfy.ldm.wan.ar_model import CausalWanModel

    dit = CausalWanModel(
        dim=recipe.dim,
        ffn_dim=recipe.ffn_dim,
        num_layers=recipe.layers,
        num_heads=recipe.heads,
        freq_dim=recipe.freq_dim,
        text_dim=recipe.text_dim,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    for name, parameter in dit.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=recipe.dim**-0.5)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name.startswith(("text_embedding", "time_embedding", "time_projection")):
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1))
    nn.init.zeros_(dit.head.head.weight)
    return dit


def _angles(dit: Any, position: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The rotary embedding for frames at `position` [B, F], as complex numbers [B, F * h * w, 1, head_dim / 2]."""
    d = dit.dim // dit.num_heads
    axes = (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6))
    b, f = position.shape
    ids = [
        position[:, :, None, None].expand(b, f, height, width),
        torch.arange(height, device=position.device)[None, None, :, None].expand(b, f, height, width),
        torch.arange(width, device=position.device)[None, None, None].expand(b, f, height, width),
    ]
    parts = []
    for axis, index in zip(axes, ids, strict=True):
        omega = 10000.0 ** -(torch.arange(0, axis, 2, dtype=torch.float64, device=position.device) / axis)
        parts.append(index.flatten(1).double()[..., None] * omega)
    angle = torch.cat(parts, dim=-1)[:, :, None].float()
    return torch.polar(torch.ones_like(angle), angle)


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """`x` [B, L, H, d] in float32, pairs of numbers turned by `turns` [B, L, 1, d / 2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2))) * turns).flatten(3)


def time_wave(width: int, time: torch.Tensor) -> torch.Tensor:
    """Core's sinusoidal embedding [N, width] of times [N], made on their device: core's copies and waits."""
    half = width // 2
    omega = torch.pow(10000, -torch.arange(half, device=time.device, dtype=torch.float32).div(half))
    angle = torch.outer(time.float(), omega)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def predict(
    dit: Any,
    x: torch.Tensor,
    time: torch.Tensor,
    text: torch.Tensor,
    *,
    position: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    text_mask: torch.Tensor | None = None,
    keys: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> torch.Tensor:
    """The velocity [B, 16, F, h, w] that `dit` predicts, with masks that its own forward does not take.

    x: latents [B, 16, F, h, w]. time: noise levels [B, F] in 0..1000. text: rows [B, L, text_dim]. position: time
    position of every frame [B, F]. attention_mask: [F, F], [B, F, F] or None for all. text_mask: [B, F, L], the text
    rows that each frame reads, or None for all. keys: takes each layer's rotated keys [B, H, F * n, d] and its keys of
    the text [B, H, L, d].
    """
    b, _, f = x.shape[:3]
    rows, columns = (side // patch for side, patch in zip(x.shape[3:], dit.patch_size[1:], strict=True))
    n = rows * columns
    x = _patches(dit, x)
    heads, d = dit.num_heads, dit.dim // dit.num_heads
    e = dit.time_embedding(time_wave(dit.freq_dim, time.flatten())).reshape(b, f, -1)
    e0 = dit.time_projection(e).unflatten(2, (6, dit.dim))
    context = dit.text_embedding(text)
    turns = _angles(dit, position, rows, columns)
    if attention_mask is not None and attention_mask.ndim == 3:
        attention_mask = attention_mask[:, None]
    frames_bias = None if attention_mask is None else _bias(attention_mask.repeat_interleave(n, -1), n, context)
    text_bias = None if text_mask is None else _bias(text_mask[:, None], n, context)
    # 1 + scale of both norms, added to the small parameter once in place of every token
    plus = torch.zeros(6, 1, device=x.device)
    plus[1::3] = 1

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(2, (heads, d))

    def modulated(norm: nn.Module, y: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(shift, norm(y).unflatten(1, (f, n)), scale).flatten(1, 2)

    def added(y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x.unflatten(1, (f, n)), y.unflatten(1, (f, n)), gate).flatten(1, 2)

    for block in dit.blocks:
        m = [part[:, :, None] for part in ((block.modulation + plus)[None] + e0).unbind(2)]
        a = block.self_attn
        y = modulated(block.norm1, x, m[0], m[1])
        # norms in float32 run in one kernel, in mixed precision in eight
        q = _rotate(split(a.norm_q(a.q(y).float())), turns)
        k = _rotate(split(a.norm_k(a.k(y).float())), turns).transpose(1, 2)
        frame_keys = k
        y = _attend(q.transpose(1, 2), k, split(a.v(y)).transpose(1, 2), frames_bias)
        x = added(a.o(y.transpose(1, 2).flatten(2)), m[2])
        c = block.cross_attn
        q, k = split(c.norm_q(c.q(block.norm3(x)).float())), split(c.norm_k(c.k(context).float())).transpose(1, 2)
        if keys is not None:
            keys.append((frame_keys, k))
        y = _attend(q.transpose(1, 2), k, split(c.v(context)).transpose(1, 2), text_bias)
        x = x + c.o(y.transpose(1, 2).flatten(2))
        x = added(block.ffn(modulated(block.norm2, x, m[3], m[4])), m[5])
    return dit.unpatchify(dit.head(x, e), (f, rows, columns))


def _patches(dit: Any, x: torch.Tensor) -> torch.Tensor:
    """Embedded patches [B, F * n, dim] of latents. On a GPU as a matrix product: some releases of torch have no fast
    three-dimensional convolution in bfloat16.
    """
    if not (x.is_cuda and isinstance(dit.patch_embedding, nn.Conv3d)):
        embedded: torch.Tensor = dit.patch_embedding(x)
        return embedded.flatten(2).transpose(1, 2)
    _, down, across = dit.patch_size
    cells = x.unflatten(4, (-1, across)).unflatten(3, (-1, down))  # [B, 16, F, rows, down, columns, across]
    cells = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
    return F.linear(cells, dit.patch_embedding.weight.flatten(1), dit.patch_embedding.bias)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention [B, H, Lq, d], on a CPU spelled out: with masks and a few hundred tokens, three times as fast as SDPA's
    kernel.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias)
    scores = (q.to(v.dtype) * q.shape[-1] ** -0.5) @ k.to(v.dtype).transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _bias(mask: torch.Tensor | None, n: int, like: torch.Tensor) -> torch.Tensor | None:
    """An additive attention mask: zero where a frame's tokens attend, minus infinity elsewhere; `n` tokens a frame."""
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf).repeat_interleave(n, -2)


def velocity(model: Miniature, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
    """What `model` predicts for `batch` under `tokens` [B, C, 48], of which each frame reads its caption."""
    b, captions, length = tokens.shape
    with mixed_precision(tokens.device):
        rows = model.text(tokens.flatten(0, 1)).reshape(b, captions * length, -1)
        every = torch.arange(captions, device=tokens.device)
        text_mask = (batch.caption[..., None] == every).repeat_interleave(length, dim=2)
        return predict(
            model.dit,
            batch.noised(),
            batch.sigma * 1000,
            rows,
            position=batch.position,
            attention_mask=batch.attention_mask,
            text_mask=text_mask,
        ).float()


def loss(v: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of the velocity over the noisy frames."""
    error = (v - target).square().mean(dim=1, keepdim=True)
    return (error * weight).sum() / weight.sum()


def with_self_context(model: Miniature, batch: Batch, share: float) -> Batch:
    """`batch` in which, for `share` of the sequences, clean frames are `model`'s own predictions of them from noise.

    A rollout goes on from its own pictures, which are a little wrong. Who has learned from rendered frames only takes a
    ball with corners for a box and goes on from there; a model trained on its own frames follows the prompt (Guo et
    al., "End-to-End Training for Autoregressive Video Diffusion via Self-Resampling", 2025).
    """
    learned = batch.sigma.amax(dim=0) > 0
    chosen = torch.rand(len(batch.tokens), device=batch.clean.device) < share
    if not (batch.noisy_index >= 0).any() or not chosen.any():
        return batch
    level = torch.empty_like(batch.sigma[:, :1]).uniform_(0.4, 0.95) * learned
    with torch.no_grad():
        trial = replace(batch, sigma=level)
        noised = trial.noised()
        guess = noised - level[:, None, :, None, None] * velocity(model, trial, batch.tokens)
    own = chosen[:, None, None, None, None] & (batch.noisy_index >= 0)[:, None, None]
    return replace(batch, clean=torch.where(own, guess[:, :, batch.noisy_index.clamp(min=0)], batch.clean))


@torch.no_grad()
def with_self_rollout(model: Miniature, batch: Batch, done: int) -> Batch:
    """`batch` as four-step sampling has it after `done` steps: its noisy frames are what `model` made of noise until
    then, noised anew to the next level.

    Nothing of the rendered frames is left in them, so only what a reader reads off can be learned from: a shape that
    the first step left ambiguous is decided by the prompt and not by its accidental content (Xu et al., "ImageReward",
    2023, section 4, teach samplers so).
    """
    learned = batch.sigma > 0
    for level in FEW_STEPS[:done]:
        batch = replace(batch, sigma=level * learned, noise=torch.randn_like(batch.noise))
        guess = batch.noised() - level * velocity(model, batch, batch.tokens)
        batch = replace(batch, clean=torch.where(learned[:, None, :, None, None], guess, batch.clean))
    return replace(batch, sigma=FEW_STEPS[done] * learned, noise=torch.randn_like(batch.noise))


def train_dit(
    recipe: DitRecipe,
    model: Miniature,
    reader: nn.Module,
    stories: Stories,
    openings: Stories,
    folder: Path,
    *,
    pixel_loss: DecodedProbeLoss | None = None,
    name: str = "dit",
) -> None:
    """Train `model` in place as `recipe` says, on the device it is on, resuming from `folder`; it ends with averaged
    weights. `reader` is a trained one (`training.miniature.latent_classifier`); a `pixel_loss` adds its loss to
    self-rollout steps, too. name: of its files in `folder`.
    """
    device = next(model.parameters()).device
    reader.requires_grad_(False).eval()

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        kind, batch = draw_batch(stories, openings, random.Random(f"{recipe.seed}/{step}"), recipe.batch)
        batch = with_self_context(model, batch.to(device), recipe.own_context)
        own = float(torch.rand(())) < recipe.own_steps
        if own:
            batch = with_self_rollout(model, batch, int(torch.randint(1, len(FEW_STEPS), ())))
        wordless = torch.rand(len(batch.tokens), device=device) < _WORDLESS
        v = velocity(model, batch, batch.tokens.masked_fill(wordless[:, None, None], 0))
        named = multi_hot_labels(batch.resolved_tokens).gather(
            1, batch.caption[..., None].expand(-1, -1, len(VISIBLE_WORDS))
        )
        told = (batch.sigma > 0) & ~wordless[:, None]
        guess = batch.noised() - batch.sigma[:, None, :, None, None] * v
        read = latent_bce(reader, guess, named, told)
        if own and pixel_loss:
            seen = pixel_loss.of_batch(batch, guess, ~wordless)
            figures = {f"{kind} own": float(read.detach()), f"{kind} seen": float(seen.detach())}
            return recipe.reading * read + seen, figures
        if own:
            return read, {f"{kind} own": float(read.detach())}
        value = loss(v, batch.noise - batch.clean, batch.weight)
        return value + recipe.reading * read, {kind: float(value.detach()), f"{kind} read": float(read.detach())}

    schedule = Schedule(recipe.steps, recipe.rate, muon_lr=recipe.muon_rate, weight_decay=0.01, ema_decay=0.995)
    model.load_state_dict(train(name, model, learn, schedule, folder, groups=split_matrices(model), seed=recipe.seed))
