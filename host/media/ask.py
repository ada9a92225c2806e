"""Text generation about one picture by a vision-language model of ComfyUI (that of core's Generate Text)."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.model_management
from comfy.sd import CLIP
from torch import Tensor

__all__ = ["ask_about_picture"]

_LONGEST = 768


def ask_about_picture(clip: CLIP, question: str, picture: Tensor, seed: int) -> str:
    """The model's answer. picture: [H, W, 3] in 0..1. Seed 0 takes the likeliest words, others are drawn.

    The picture goes under the name that the model's tokenizer has for it: `image` in most, `images` (a list) in some
    that do not know the first; one that knows neither answers from the question alone. Raises ComfyUI's interrupt
    before it starts, and whatever a text encoder that cannot write raises.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    tokens = clip.tokenize(question, **_picture(clip, picture), skip_template=False, min_length=1, thinking=False)
    words = clip.generate(tokens, do_sample=seed > 0, max_length=_LONGEST, temperature=0.7, top_k=64, top_p=0.95,
                          min_p=0.05, repetition_penalty=1.05, presence_penalty=0.0, seed=seed)  # fmt: skip
    answer: str = clip.decode(words)
    return answer


def _picture(clip: CLIP, picture: Tensor) -> dict[str, Any]:
    names = inspect.signature(clip.tokenizer.tokenize_with_weights).parameters
    batch = picture[None, ..., :3]
    if "image" in names or "images" not in names:
        return {"image": batch}
    # Qwen3-VL and Qwen3.5 read either; Qwen2.5-VL, as Qwen-Image's text encoder, only the list.
    return {"images": [batch]}
