"""DQFormer: instruction, states and first frame to a condition for every frame (AID, arXiv 2406.06465, section 3.3).

The upper branch lets the words of the instruction attend to the picture ("multimodal embedding"). The lower branch has
learnable queries for every frame, which attend to the instruction and then to the states ("decomposed embedding").
Together they are the MCondition, which the UNet's spatial cross-attention reads frame by frame. Depth, norms and
residuals are ours, as the paper does not give them: pre-norm residual blocks.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .planner import InstructionError
from .settings import AdapterSettings

__all__ = ["Attention", "DQFormer"]


class Attention(nn.Module):
    """Multi-head attention, projections without bias but the last.

    width: of queries and result. context: width of what is attended to. operations: the library of layers, ComfyUI's or
    torch.nn.
    """

    def __init__(
        self, width: int, context: int, heads: int, operations: Any, out_bias: bool = True, **factory: Any
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_k = operations.Linear(context, width, bias=False, **factory)
        self.to_v = operations.Linear(context, width, bias=False, **factory)
        self.to_out = operations.Linear(width, width, bias=out_bias, **factory)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, n, width]; context: [B, m, context], x itself if None. Returns [B, n, width]."""
        context = x if context is None else context
        result: Tensor = self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))
        return result


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by heads. q: [B, n, heads * d]; k, v: [B, m, heads * d]. Returns as q."""
    q, k, v = (rearrange(each, "b n (h d) -> b h n d", h=heads) for each in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class _FeedForward(nn.Module):
    def __init__(self, width: int, mult: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.add_module("in", operations.Linear(width, width * mult, **factory))  # a keyword of Python, a key of ours
        self.out = operations.Linear(width * mult, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(F.gelu(self.get_submodule("in")(x)))
        return result


class _UpperLayer(nn.Module):
    def __init__(self, settings: AdapterSettings, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, heads = settings.context_dim, settings.dq_heads
        self.self = Attention(width, width, heads, operations, **factory)
        self.cross = Attention(width, settings.vision_dim, heads, operations, **factory)
        self.ff = _FeedForward(width, settings.ff_mult, operations, **factory)
        self.norm1, self.norm2, self.norm3 = (operations.LayerNorm(width, **factory) for _ in range(3))

    def forward(self, x: Tensor, vision: Tensor) -> Tensor:
        x = x + self.self(self.norm1(x))
        x = x + self.cross(self.norm2(x), vision)
        result: Tensor = x + self.ff(self.norm3(x))
        return result


class _LowerLayer(nn.Module):
    def __init__(self, settings: AdapterSettings, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, heads = settings.context_dim, settings.dq_heads
        self.cross_text = Attention(width, width, heads, operations, **factory)
        self.cross_state = Attention(width, width, heads, operations, **factory)
        self.ff = _FeedForward(width, settings.ff_mult, operations, **factory)
        self.norm1, self.norm2, self.norm3 = (operations.LayerNorm(width, **factory) for _ in range(3))

    def forward(self, q: Tensor, text: Tensor, states: Tensor) -> Tensor:
        q = q + self.cross_text(self.norm1(q), text)
        q = q + self.cross_state(self.norm2(q), states)
        result: Tensor = q + self.ff(self.norm3(q))
        return result


class DQFormer(nn.Module):
    """MCondition of a clip. Call `initialise` before training: ComfyUI's layers leave their weights as memory was.

    settings: sizes and branches, see AdapterSettings. operations: library of layers. factory: dtype and device.
    """

    def __init__(self, settings: AdapterSettings, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.settings = settings
        width = settings.context_dim
        same_width = settings.text_dim == width
        self.text_in = None if same_width else operations.Linear(settings.text_dim, width, **factory)
        self.upper = self.lower = None
        if settings.branches in ("both", "upper"):
            self.norm_v = operations.LayerNorm(settings.vision_dim, **factory)
            self.upper = nn.ModuleList(_UpperLayer(settings, operations, **factory) for _ in range(settings.dq_layers))
            self.out_norm_upper = operations.LayerNorm(width, **factory)
        if settings.branches in ("both", "lower"):
            states = settings.num_states if settings.state_encoding == "separate" else 1
            self.query_token = nn.Parameter(torch.empty(settings.tokens_per_frame, width, **factory))
            self.query_frame = nn.Parameter(torch.empty(settings.num_frames, 1, width, **factory))
            self.state_embed = nn.Parameter(torch.empty(states, width, **factory))
            self.lower = nn.ModuleList(_LowerLayer(settings, operations, **factory) for _ in range(settings.dq_layers))
            self.out_norm_lower = operations.LayerNorm(width, **factory)
        both = self.upper is not None and self.lower is not None
        self.fuse = operations.Linear(2 * width, width, **factory) if both and settings.concat == "channel" else None

    def forward(
        self, text: Tensor, vision: Tensor, states: Tensor, frames: int | None = None, only: Tensor | None = None
    ) -> Tensor:
        """The condition of every frame.

        text: [B, tokens, text_dim], the instruction as the text encoder gives it. vision: [B, patches, vision_dim] of
        the first frame. states: [B, S, tokens, text_dim] encoded one by one, or [B, 1, tokens, text_dim] joined.
        frames: of the clip, those it was trained with if None; for others the frame queries are interpolated.
        only: indices [n] of frames that are wanted, all if None; frames do not depend on each other.

        Returns [B, n, tokens, context_dim], or twice the tokens with concat "token". Raises InstructionError for
        widths, tokens or a number of states that are not the adapter's.
        """
        self._check(text, vision, states)
        text, states = self._projected(text), self._projected(states)
        parts = []
        count = self.settings.num_frames if frames is None else frames
        chosen = torch.arange(count, device=text.device) if only is None else only
        if self.upper is not None:
            parts.append(repeat(self._upper(text, vision), "b l c -> b n l c", n=len(chosen)))
        if self.lower is not None:
            parts.append(self._lower(text, states, self._queries(count, text)[chosen]))
        if len(parts) == 1:
            return parts[0]
        if self.fuse is None:
            return torch.cat(parts, dim=2)
        fused: Tensor = self.fuse(torch.cat(parts, dim=3))
        return fused

    def _projected(self, tokens: Tensor) -> Tensor:
        return tokens if self.text_in is None else self.text_in(tokens)

    def _upper(self, text: Tensor, vision: Tensor) -> Tensor:
        assert self.upper is not None
        vision = self.norm_v(vision)
        for layer in self.upper:
            text = layer(text, vision)
        result: Tensor = self.out_norm_upper(text)
        return result

    def _lower(self, text: Tensor, states: Tensor, queries: Tensor) -> Tensor:
        """text: [B, l, C]; states: [B, S, l, C]; queries: [n, tokens, C]. Returns [B, n, tokens, C]."""
        assert self.lower is not None
        states = rearrange(states + self.state_embed[:, None].to(states), "b s l c -> b (s l) c")
        q = repeat(queries, "n l c -> b (n l) c", b=text.shape[0])
        for layer in self.lower:
            q = layer(q, text, states)
        return rearrange(self.out_norm_lower(q), "b (n l) c -> b n l c", n=len(queries))

    def _queries(self, frames: int, like: Tensor) -> Tensor:
        """Queries [frames, tokens, C] in the dtype and on the device of `like`."""
        of_frame = self.query_frame.to(like)
        if frames != len(of_frame):
            rows = rearrange(of_frame, "n 1 c -> 1 c n")
            of_frame = rearrange(F.interpolate(rows, frames, mode="linear", align_corners=True), "1 c n -> n 1 c")
        return of_frame + self.query_token.to(like)

    def _check(self, text: Tensor, vision: Tensor, states: Tensor) -> None:
        settings = self.settings
        if text.shape[-1] != settings.text_dim or states.shape[-1] != settings.text_dim:
            raise InstructionError(
                f"The text encoder gives {text.shape[-1]} numbers a word and the adapter reads {settings.text_dim}: "
                "load the text encoder that it was trained with."
            )
        if self.fuse is not None and text.shape[1] != settings.tokens_per_frame:
            raise InstructionError(
                f"The text encoder gives {text.shape[1]} tokens and the adapter has {settings.tokens_per_frame} of "
                "each frame: load the text encoder that it was trained with."
            )
        if self.upper is not None and vision.shape[-1] != settings.vision_dim:
            raise InstructionError(
                f"The vision encoder gives {vision.shape[-1]} numbers a patch and the adapter reads "
                f"{settings.vision_dim}: load the one that it was trained with."
            )
        if self.lower is not None and states.shape[1] != len(self.state_embed):
            raise InstructionError(
                f"There are {states.shape[1]} states and the adapter was trained with {len(self.state_embed)}: "
                "plan that many."
            )

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, empty_text: Tensor | None = None) -> None:
        """Set all weights for training.

        Every layer that ends a residual branch of the upper part is zero, so that the condition begins as the text
        encoder's own tokens; state order is zero. empty_text: [tokens, context_dim], the text encoder's tokens of an
        empty text, with which the queries begin; else small random numbers.
        """
        for name, value in self.named_parameters():
            if name.endswith("bias") or re.fullmatch(r"upper\.\d+\.(self\.to_out|cross\.to_out|ff\.out)\.weight", name):
                value.zero_()
            elif name.endswith("weight") and value.ndim == 1:
                value.fill_(1.0)
            elif name.endswith("weight"):
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5)
        if self.lower is not None:
            start = torch.randn(self.query_token.shape, generator=generator) * 0.02
            self.query_token.copy_(start if empty_text is None else empty_text)
            self.query_frame.copy_(torch.randn(self.query_frame.shape, generator=generator) * 0.02)
            self.state_embed.zero_()
        if self.fuse is not None:
            width = self.settings.context_dim
            # decoupled begins with an output of zero anyway: a second zero would only delay the lower branch.
            second = torch.eye(width) if self.settings.context_mode == "decoupled" else torch.zeros(width, width)
            self.fuse.weight.copy_(torch.cat([torch.eye(width), second], dim=1))
