"""Text generation about one picture by a vision-language model of ComfyUI (that of core's Generate Text)."""

from __future__ import annotations

import comfy.model_management
from comfy.sd import CLIP
from torch import Tensor

_LONGEST = 768


def ask_about_picture(clip: CLIP, question: str, picture: Tensor, seed: int) -> str:
    """The model's answer. picture: [H, W, 3] in 0..1. Seed 0 takes the likeliest words, others are drawn.

    Raises ComfyUI's interrupt before it starts.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    tokens = clip.tokenize(question, image=picture[None], skip_template=False, min_length=1, thinking=False)
    words = clip.generate(tokens, do_sample=seed > 0, max_length=_LONGEST, temperature=0.7, top_k=64, top_p=0.95,
                          min_p=0.05, repetition_penalty=1.05, presence_penalty=0.0, seed=seed)  # fmt: skip
    answer: str = clip.decode(words)
    return answer
