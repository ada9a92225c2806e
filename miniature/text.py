"""The words of the small world and the small transformer that reads them.

The vocabulary is closed: a prompt with another word is refused with a sentence that names the word and the nearest
known ones.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .world import ACTIONS, BODIES, CAMERAS, COLOURS, HEADGEAR, POSITIONS

LENGTH = 48
"""Rows of an encoded prompt; rows past its end are zero, as in Wan's text encoding."""

_PHRASES = (*COLOURS, *BODIES, *HEADGEAR, *ACTIONS, *CAMERAS, *POSITIONS)
_FUNCTION_WORDS = (
    "a an the same character and with at in on to is are camera place "
    "beach forest city desert mountains night it then . ,"
)
WORDS = tuple(sorted({word for phrase in (*_PHRASES, _FUNCTION_WORDS) for word in phrase.split()}))
"""The vocabulary; a token is the index of its word plus one, and 0 fills up."""

_INDEX = {word: index + 1 for index, word in enumerate(WORDS)}


class UnknownWordError(ValueError):
    """A prompt uses words that the small world does not have."""


def tokenize(prompt: str) -> list[int]:
    """Token numbers of a prompt, at most `LENGTH`.

    Raises UnknownWordError: for words outside `WORDS`, all named at once, or for a prompt longer than `LENGTH` words.
    """
    words = re.findall(r"[^\s.,;:!?]+|[.,]", prompt.lower())
    unknown = [word for word in dict.fromkeys(words) if word not in _INDEX]
    if unknown:
        hints = []
        for word in unknown:
            near = difflib.get_close_matches(word, WORDS, n=2, cutoff=0.6)
            hints.append(f"'{word}'" + (f" (nearest: {', '.join(near)})" if near else ""))
        known = " ".join(word for word in WORDS if word.isalpha())
        raise UnknownWordError(f"The miniature does not know {', '.join(hints)}; its words are: {known}.")
    if len(words) > LENGTH:
        raise UnknownWordError(f"The miniature reads {LENGTH} words and marks at most; this prompt has {len(words)}.")
    return [_INDEX[word] for word in words]


def pad(tokens: list[int]) -> torch.Tensor:
    """[LENGTH] token numbers, filled up with 0."""
    return torch.tensor([*tokens, *[0] * (LENGTH - len(tokens))])


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, operations: Any, **factory: Any):
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.qkv = operations.Linear(dim, dim * 3, **factory)
        self.out = operations.Linear(dim, dim, **factory)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.up = operations.Linear(dim, dim * 4, **factory)
        self.down = operations.Linear(dim * 4, dim, **factory)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        b, n, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])
        x = x + self.out(y.transpose(1, 2).reshape(b, n, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TextEncoder(nn.Module):
    """Tokens [B, LENGTH] to rows [B, LENGTH, dim]; rows past a prompt's end are zero.

    `operations` is `torch.nn` in training and tests and one of ComfyUI's `comfy.ops` classes inside it.
    """

    def __init__(self, dim: int = 128, layers: int = 2, heads: int = 4, operations: Any = nn, **factory: Any):
        super().__init__()
        self.words = operations.Embedding(len(WORDS) + 1, dim, **factory)
        self.places = operations.Embedding(LENGTH, dim, **factory)
        self.blocks = nn.ModuleList([_Block(dim, heads, operations, **factory) for _ in range(layers)])
        self.norm = operations.LayerNorm(dim, **factory)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        keep = tokens > 0
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, keep)
        return self.norm(x) * keep[..., None]
