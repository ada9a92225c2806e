"""The miniature's text encoder as a CLIP object, so that any node that takes CLIP takes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ..film.weights_file import weights_fault
from ..miniature.text import TextEncoder, pad, tokenize

Tokens = dict[str, list[list[tuple[int, float]]]]


class _Tokenizer:
    """ComfyUI's tokenizer interface over the small world's words; weights in a prompt ("(red:1.2)") are not a thing
    here.
    """

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> Tokens:
        """Raises `UnknownWordError` (a ValueError) for words outside the small world."""
        return {"miniature": [[(token, 1.0) for token in tokenize(text)]]}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}


class _TextModel(TextEncoder):
    """The text encoder with the methods that `comfy.sd.CLIP` calls."""

    def __init__(
        self,
        dim: int,
        layers: int,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ):
        # Small and exact: float32 whatever the device prefers, as a few hundred thousand parameters cost nothing.
        super().__init__(dim, layers, operations=comfy.ops.manual_cast, device=device, dtype=torch.float32)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Nothing of it applies: there is one layer to read and no projection."""

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""

    def encode_token_weights(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [B, 48, dim] and, as the pooled output, their mean [B, dim]."""
        numbers = torch.stack([pad([token for token, _ in prompt]) for prompt in tokens["miniature"]])
        rows = self(numbers.to(self.words.weight.device))
        return rows, rows.mean(dim=1)

    def load_sd(self, state: dict[str, torch.Tensor]) -> Any:
        return self.load_state_dict(state, strict=False)


def load_miniature_clip(path: str) -> comfy.sd.CLIP:
    """Open the miniature's text encoder as a CLIP.

    Raises ValueError: the file is not a text encoder of the miniature.
    """
    if fault := weights_fault(Path(path)):
        raise ValueError(fault)
    state = comfy.utils.load_torch_file(path, safe_load=True)
    if "words.weight" not in state or "places.weight" not in state:
        raise ValueError(f"'{path}' is not the miniature's text encoder: choose longreel-miniature-text.safetensors.")
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    sizes = {"dim": state["words.weight"].shape[1], "layers": layers}
    target = SimpleNamespace(params=sizes, clip=_TextModel, tokenizer=_Tokenizer)
    return comfy.sd.CLIP(target, parameters=sum(tensor.numel() for tensor in state.values()), state_dict=state)
