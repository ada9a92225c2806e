"""CLIP for keyframes and prompts: any open_clip model from a local file, under ComfyUI's memory management.

ComfyUI's own CLIP objects give no text vector in the space of their image vectors, so a whole CLIP is loaded through
open_clip. The package is optional and imported here only. Nothing is ever downloaded.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...film.decode import DecodeError, Value, parse_file
from ...film.dual_cache import split_sentences
from ...film.weights_file import weights_fault
from ..model_fingerprint import fingerprint_model

__all__ = ["DEFAULT_ARCHITECTURE", "Embedder", "EmbedderError", "load_embedder"]

DEFAULT_ARCHITECTURE = "ViT-L-14"
CONFIG_FILE = "open_clip_config.json"
_PICTURES_AT_ONCE = 16
_MAX_DESCRIPTION, _MAX_SIZE, _MAX_LIST = 1 << 20, 1_000_000, 1000


class EmbedderError(ValueError):
    """A CLIP model that cannot be loaded; the message is one sentence that says what to change."""


class Embedder:
    """Pictures and sentences as unit vectors of one space."""

    def __init__(self, name: str, model: torch.nn.Module, transform: Any, tokenizer: Any) -> None:
        """name: for messages. transform: PIL picture to the model's input; tokenizer: sentences to tokens."""
        self.name = name
        self.patcher = ModelPatcher(
            model.eval().requires_grad_(False),
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )
        self._transform, self._tokenizer = transform, tokenizer

    def get_models(self) -> list[ModelPatcher]:
        """ComfyUI asks this of values that hold models."""
        return [self.patcher]

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that identify a CLIP."""
        return fingerprint_model(self.patcher)

    def images(self, pictures: Tensor) -> Tensor:
        """[n, H, W, 3] in 0..1 to [n, d] fp32 on the CPU, each of length 1. Prepared as open_clip prepares pictures."""
        model = self._loaded()
        rows: list[Tensor] = []
        for few in pictures.split(_PICTURES_AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bytes_ = few[..., :3].detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
            batch = torch.stack([self._transform(Image.fromarray(picture)) for picture in bytes_])
            with torch.no_grad():
                rows.append(model.encode_image(batch.to(self.patcher.load_device)).float().cpu())
        return F.normalize(torch.cat(rows), dim=-1)

    def text(self, prompt: str, whole: bool = False) -> Tensor:
        """A prompt's sentences, each for itself (CLIP reads 77 tokens), as [sentences, d] fp32 on the CPU.

        whole: all of it as one text instead, [1, d], cut off where CLIP stops reading.
        """
        model = self._loaded()
        tokens = self._tokenizer([prompt] if whole else list(split_sentences(prompt)) or [prompt])
        with torch.no_grad():
            embedded = model.encode_text(tokens.to(self.patcher.load_device)).float().cpu()
        return F.normalize(embedded, dim=-1)

    def _loaded(self) -> Any:
        # open_clip's layers do not cast weights that lie elsewhere: whole or not at all.
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.patcher.model


def load_embedder(path: Path, architecture: str = DEFAULT_ARCHITECTURE) -> Embedder:
    """A CLIP from a weights file (.safetensors, .pt, .bin) of that architecture.

    A file in a folder that also holds open_clip_config.json (how open_clip publishes models) is read by it, and
    `architecture` does not count. Loaded in fp32, pickles with weights only. Raises EmbedderError.
    """
    open_clip = _open_clip()
    if fault := weights_fault(path):
        raise EmbedderError(fault)
    described = path.parent / CONFIG_FILE
    if described.is_file():
        source, config = f"local-dir:{path.parent}", _description(described)
    elif ":" in architecture:
        raise EmbedderError(
            f"{architecture!r} would be downloaded: write the name of an architecture, such as ViT-L-14."
        )
    else:
        source, config = architecture, open_clip.get_model_config(architecture)
    if config is None:
        raise EmbedderError(
            f"open_clip knows no architecture {architecture!r}: write one of its names, such as ViT-L-14 or ViT-B-32."
        )
    local = described.is_file() and (path.parent / "tokenizer.json").is_file()
    if _from_hub(config) and not local:
        raise EmbedderError(
            f"{source} reads text with a tokenizer that would have to be downloaded: choose another CLIP, "
            "or put its folder with open_clip_config.json and tokenizer.json into models/open_clip."
        )
    try:
        model = open_clip.create_model(
            source,
            pretrained=None if described.is_file() else str(path),
            pretrained_text=False,
            weights_only=True,
            require_pretrained=True,
        )
        transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # open_clip builds whatever a description says, and fails as it may
        raise EmbedderError(
            f"{path.name} does not hold the weights of {source}: choose the architecture that the file was made for."
        ) from error
    return Embedder(path.name, model, transform, tokenizer)


def _description(path: Path) -> dict[str, Any]:
    """The model of a stranger's open_clip_config.json, within bounds, that asks for nothing from the network."""
    try:
        described = parse_file(path, _MAX_DESCRIPTION)
        config = described["model_cfg"]
        _check_sizes(config)
        for part in ("vision_cfg", "text_cfg"):
            config[part].object()
    except DecodeError as error:
        raise EmbedderError(f"{path} does not describe a CLIP: {error}; download it again.") from error
    text, vision = config["text_cfg"].object(), config["vision_cfg"].object()
    wanted = [text.get("hf_model_name"), vision.get("timm_model_name") if vision.get("timm_model_pretrained") else None]
    named = str(vision.get("timm_model_name") or "")
    if found := [name for name in (*wanted, named if ":" in named or "/" in named else None) if name]:
        raise EmbedderError(
            f"{path} builds on {str(found[0])[:80]!r}, which would have to be downloaded: choose another CLIP, such as "
            "ViT-L-14."
        )
    return config.object()


def _check_sizes(value: Value) -> None:
    """Raises DecodeError for a size that would fill the memory before a weight is read."""
    if isinstance(value.raw, dict):
        for field in value.object():
            if value.raw[field] is not None:
                _check_sizes(value[field])
    elif isinstance(value.raw, list):
        for item in value.list(_MAX_LIST):
            _check_sizes(item)
    elif isinstance(value.raw, int | float) and not isinstance(value.raw, bool):
        value.number(-_MAX_SIZE, _MAX_SIZE)


def _from_hub(config: dict[str, Any]) -> bool:
    text = config.get("text_cfg", {})
    return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise EmbedderError(
            "Keyframes are chosen with open_clip, which is not installed: run `pip install open_clip_torch` in "
            "ComfyUI's environment."
        ) from error
    module: ModuleType = open_clip
    return module
