"""AID's adapters: small residual layers beside those of a video UNet, and its cross-attention to text.

S-Adapter: Wup(GELU(Wdown x)), beside spatial self-attention. ST-Adapter: Wup(DWConv3D(Wdown x)), after the residual
block. LT-Adapter: Wup(TemporalSelfAttn(Wdown x)), beside temporal self-attention (arXiv 2406.06465, section 3.4). The
paper's formulas add x as well; here the identity is the residual of the layer that is adapted, so these modules
return what is added and nothing else. Every up-projection begins at zero: a fresh adapter changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .dqformer import DQFormer, attend
from .settings import AdapterSettings, Part, Site

__all__ = ["AidAdapter", "CrossFull", "CrossLora", "LongTermAdapter", "ShortTermAdapter", "SpatialAdapter", "TextCross"]


class SpatialAdapter(nn.Module):
    """Of tokens of a frame, each for itself: [B, n, width] to [B, n, width]."""

    def __init__(self, width: int, inner: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.down = operations.Linear(width, inner, **factory)
        self.up = operations.Linear(inner, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n, width], normalised as attention sees it. Returns what is added."""
        result: Tensor = self.up(F.gelu(self.down(x)))
        return result


class ShortTermAdapter(nn.Module):
    """A depth-wise convolution over time, rows and columns of the output of a residual block."""

    def __init__(self, width: int, inner: int, kernel: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.down = operations.Linear(width, inner, **factory)
        self.dwconv = operations.Conv3d(inner, inner, kernel, padding=kernel // 2, groups=inner, **factory)
        self.up = operations.Linear(inner, width, **factory)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x: [B * frames, width, h, w]. Returns what is added, of the same shape."""
        rows = self.down(rearrange(x, "(b t) c h w -> b t h w c", t=frames))
        mixed = rearrange(self.dwconv(rearrange(rows, "b t h w c -> b c t h w")), "b c t h w -> b t h w c")
        return rearrange(self.up(mixed), "b t h w c -> (b t) c h w")


class LongTermAdapter(nn.Module):
    """Self-attention over the frames of a place: [B, t, width] to [B, t, width].

    It has no positions of its own: SVD adds a frame embedding before the layer whose tokens it is given.
    """

    def __init__(self, width: int, inner: int, heads: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.down = operations.Linear(width, inner, **factory)
        self.to_q = operations.Linear(inner, inner, bias=False, **factory)
        self.to_k = operations.Linear(inner, inner, bias=False, **factory)
        self.to_v = operations.Linear(inner, inner, bias=False, **factory)
        self.to_out = operations.Linear(inner, inner, **factory)
        self.up = operations.Linear(inner, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, t, width], normalised as attention sees it. Returns what is added."""
        x = self.down(x)
        mixed = self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))
        result: Tensor = self.up(mixed)
        return result


class TextCross(nn.Module):
    """Cross-attention to the text beside the UNet's own: keys, values and an output without bias, so no text adds 0."""

    def __init__(self, site: Site, context: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = site.heads
        self.to_k = operations.Linear(context, site.width, bias=False, **factory)
        self.to_v = operations.Linear(context, site.width, bias=False, **factory)
        self.to_out = operations.Linear(site.width, site.width, bias=False, **factory)

    def forward(self, query: Tensor, text: Tensor) -> Tensor:
        """query: [B, n, width] by the UNet's own to_q; text: [B, m, context]. Returns what is added."""
        result: Tensor = self.to_out(attend(query, self.to_k(text), self.to_v(text), self.heads))
        return result


class CrossFull(nn.Module):
    """The UNet's cross-attention with weights of its own."""

    def __init__(self, site: Site, context: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = site.heads
        self.to_q = operations.Linear(site.width, site.width, bias=False, **factory)
        self.to_k = operations.Linear(context, site.width, bias=False, **factory)
        self.to_v = operations.Linear(context, site.width, bias=False, **factory)
        self.to_out = operations.Linear(site.width, site.width, **factory)

    def forward(self, frozen: nn.Module, tokens: Tensor, context: Tensor) -> Tensor:
        """frozen: the UNet's own cross-attention. Returns what stands in place of its output."""
        mixed = attend(self.to_q(tokens), self.to_k(context), self.to_v(context), self.heads)
        result: Tensor = self.to_out(mixed)
        return result

    @torch.no_grad()
    def begin_as(self, frozen: Any) -> None:
        """Take over the UNet's weights."""
        for name in ("to_q", "to_k", "to_v"):
            getattr(self, name).weight.copy_(getattr(frozen, name).weight)
        self.to_out.weight.copy_(frozen.to_out[0].weight)
        self.to_out.bias.copy_(frozen.to_out[0].bias)


class _Low(nn.Module):
    def __init__(self, inputs: int, outputs: int, rank: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.lora_down = operations.Linear(inputs, rank, bias=False, **factory)
        self.lora_up = operations.Linear(rank, outputs, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lora_up(self.lora_down(x))
        return result


class CrossLora(nn.Module):
    """The UNet's cross-attention with low-rank changes of its weights, scaled by 1 (alpha = rank)."""

    def __init__(self, site: Site, context: int, rank: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = site.heads
        self.to_q = _Low(site.width, site.width, rank, operations, **factory)
        self.to_k = _Low(context, site.width, rank, operations, **factory)
        self.to_v = _Low(context, site.width, rank, operations, **factory)
        self.to_out = _Low(site.width, site.width, rank, operations, **factory)

    def forward(self, frozen: Any, tokens: Tensor, context: Tensor) -> Tensor:
        """frozen: the UNet's own cross-attention. Returns what stands in place of its output."""
        q = frozen.to_q(tokens) + self.to_q(tokens)
        k = frozen.to_k(context) + self.to_k(context)
        v = frozen.to_v(context) + self.to_v(context)
        mixed = attend(q, k, v, self.heads)
        result: Tensor = frozen.to_out(mixed) + self.to_out(mixed)
        return result


class AidAdapter(nn.Module):
    """Everything that AID adds to a UNet; the keys of its file are the names here.

    `spatial`, `short`, `long`, `text` (decoupled) and `cross` (tuned) hold a module for each site, by its name;
    `mask_in` is added to the UNet's first convolution. settings: see AdapterSettings. operations: library of layers.
    factory: dtype and device.
    """

    def __init__(self, settings: AdapterSettings, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.settings = settings
        self.dqformer = DQFormer(settings, operations, **factory) if settings.has_text else None
        for part in settings.adapters:
            self.add_module(part, _Sites())
        self.text = _Sites() if settings.has_text and settings.context_mode == "decoupled" else None
        self.cross = _Sites() if settings.has_text and settings.context_mode != "decoupled" else None
        for site in settings.sites:
            self._add_site(site, operations, **factory)
        self.mask_in = None
        if settings.mask_channel:
            first = settings.sites[0].width
            self.mask_in = operations.Conv2d(1, first, 3, padding=1, bias=False, **factory)

    def _add_site(self, site: Site, operations: Any, **factory: Any) -> None:
        settings, inner = self.settings, self.settings.inner(site)
        for part in settings.adapters:
            sites: _Sites = self.get_submodule(part)  # type: ignore[assignment]
            if part == "spatial":
                sites.put(site.name, SpatialAdapter(site.width, inner, operations, **factory))
            elif part == "short":
                sites.put(site.name, ShortTermAdapter(site.width, inner, settings.st_kernel, operations, **factory))
            else:
                heads = max(1, inner // settings.lt_head_width)
                while inner % heads:
                    heads -= 1
                sites.put(site.name, LongTermAdapter(site.width, inner, heads, operations, **factory))
        context = settings.context_dim
        if self.text is not None:
            self.text.put(site.name, TextCross(site, context, operations, **factory))
        elif self.cross is not None:
            tuned = (
                CrossFull(site, context, operations, **factory)
                if settings.context_mode == "full"
                else CrossLora(site, context, settings.cross_rank, operations, **factory)
            )
            self.cross.put(site.name, tuned)

    def at(self, part: Part | str, site: str) -> Any:
        """The module of a part ("spatial", "short", "long", "text", "cross") at a site, None if there is none."""
        sites = getattr(self, part, None)
        return None if sites is None else sites.get_submodule(site)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, empty_text: Tensor | None = None) -> None:
        """Set all weights for training, such that nothing is changed at first. empty_text: see DQFormer.initialise.

        With context mode "full" call CrossFull.begin_as for each site too.
        """
        for name, module in self.named_modules():
            if name.startswith("dqformer") or not hasattr(module, "weight"):
                continue
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
            text_out = name.startswith("text.") and name.endswith("to_out")
            if text_out or name.endswith((".up", ".lora_up", "mask_in")):
                module.weight.zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        if self.dqformer is not None:
            self.dqformer.initialise(generator, empty_text)


class _Sites(nn.Module):
    """Modules by dotted names."""

    def put(self, name: str, module: nn.Module) -> None:
        """Add a module under a name such as "input_blocks.1"."""
        room, _, number = name.partition(".")
        if not number:
            self.add_module(room, module)
            return
        if not hasattr(self, room):
            self.add_module(room, nn.Module())
        self.get_submodule(room).add_module(number, module)
