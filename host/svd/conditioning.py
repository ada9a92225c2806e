"""What AID's UNet is conditioned with: known frames, the condition of every frame, SVD's own token and numbers.

Scales follow SVD: the latents that are denoised are scaled, those of known frames beside them are not. Micro-conditions
go to ComfyUI as they are; it subtracts 1 from fps itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...film.instruction import InstructionError, States, fallback_states
from ...film.instruction.settings import AdapterSettings, Fill
from .adapters import IMAGE_TOKENS, AdapterFile

__all__ = ["Conditioning", "Sight", "condition", "condition_words", "encode_text", "known_latents", "look_at"]

_CELL = 64
_TOKENS = 75


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The three passes of guidance as ComfyUI's CONDITIONING, and its LATENT.

    positive: words and frames. no_text: frames, and the words of an empty text. negative: neither; zeros, as SVD's own.
    """

    positive: list[Any]
    no_text: list[Any]
    negative: list[Any]
    latent: dict[str, Tensor]

    @property
    def conds(self) -> dict[str, list[Any]]:
        """By the names of SpatioTemporalGuidance's passes."""
        return {"negative": self.negative, "no_text": self.no_text, "positive": self.positive}


@dataclass(frozen=True, eq=False)
class Sight:
    """The vision encoder's output. token: [1, 1, C], SVD's own condition. patches: [1, L, d], for the DQFormer."""

    token: Tensor
    patches: Tensor


def condition(
    file: AdapterFile,
    clip: CLIP,
    clip_vision: Any,
    vae: VAE,
    frames: Tensor,
    instruction: str,
    states: States | None = None,
    *,
    size: tuple[int, int] | None = None,
    video_frames: int | None = None,
    fps: int | None = None,
    motion_bucket_id: int | None = None,
    augmentation: float | None = None,
    seed: int = 0,
    keep_known: bool = False,
    resample: bool = False,
    anchor: Tensor | None = None,
) -> Conditioning:
    """Everything that a clip is sampled with.

    frames: the first K, [K, H, W, 3] in 0..1. states: as planned; the instruction itself in their place if None. size:
    (width, height) in pixels. augmentation: standard deviation of noise on the known frames in [-1, 1], drawn from
    `seed`. None of these takes what the adapter was trained with. keep_known: the known frames come out as they went
    in. resample: allow another number of frames than the adapter's, with queries in between. anchor: [1, H, W, 3], the
    first frame of the whole film for SVD's own token; the first of `frames` if None.

    Raises InstructionError for frames, sizes, words or encoders that do not fit.
    """
    settings = file.settings
    width, height = size or (settings.width, settings.height)
    count = settings.num_frames if video_frames is None else video_frames
    check_clip(settings, len(frames), count, (width, height), keep_known=keep_known, resample=resample)
    level = settings.augmentation if augmentation is None else augmentation
    known = known_latents(vae, frames, (width, height))
    noisy = known if level == 0 else known_latents(vae, frames, (width, height), level, seed)
    shown = fill_rows(noisy, count, settings.fill, vae, (width, height))
    if settings.mask_channel:
        mask = torch.zeros_like(shown[:, :1])
        mask[: len(frames)] = 1
        shown = torch.cat([shown, mask], dim=1)
    sight = look_at(clip_vision, frames[:1])
    token = sight.token if anchor is None else look_at(clip_vision, anchor).token
    with_words, without = (
        context_rows(file, clip, sight.patches, token, words, plan, count)
        for words, plan in ((instruction, states), ("", None))
    )
    numbers = {
        "fps": settings.fps if fps is None else fps,
        "motion_bucket_id": settings.motion_bucket_id if motion_bucket_id is None else motion_bucket_id,
        "augmentation_level": level,
    }
    seen = {**numbers, "concat_latent_image": shown}
    unseen = {**numbers, "concat_latent_image": torch.zeros_like(shown)}
    if settings.time_context == "image":
        seen["time_conditioning"], unseen["time_conditioning"] = token, torch.zeros_like(token)
    samples = torch.zeros(count, *known.shape[1:])
    latent = {"samples": samples}
    if keep_known:
        samples[: len(known)] = known
        latent["noise_mask"] = torch.ones(count, 1, *known.shape[2:])
        latent["noise_mask"][: len(known)] = 0
    return Conditioning(
        [[with_words, dict(seen)]], [[without, dict(seen)]], [[torch.zeros_like(without), unseen]], latent
    )


def check_clip(
    settings: AdapterSettings, known: int, frames: int, size: tuple[int, int], *, keep_known: bool, resample: bool
) -> None:
    """Raises InstructionError for numbers of frames or a size that the adapter cannot film."""
    if not 1 <= known < frames:
        raise InstructionError(
            f"{known} of {frames} frames are given: give at least 1 and fewer than the clip has, so that some are left "
            "to predict."
        )
    if frames != settings.num_frames and not resample:
        raise InstructionError(
            f"The adapter films {settings.num_frames} frames and {frames} are asked for: set {settings.num_frames}, or "
            "switch resample on to stretch it."
        )
    if known > settings.k_max and not keep_known:
        raise InstructionError(
            f"The adapter was trained with at most {settings.k_max} known frames and {known} are given: give fewer, or "
            "switch keep_known on."
        )
    for name, pixels in zip(("width", "height"), size):
        if pixels < _CELL or pixels % _CELL:
            near = max(1, round(pixels / _CELL)) * _CELL
            raise InstructionError(f"A {name} of {pixels} does not fit: set a multiple of {_CELL} such as {near}.")


# Known frames


def known_latents(vae: VAE, frames: Tensor, size: tuple[int, int], augmentation: float = 0.0, seed: int = 0) -> Tensor:
    """Frames [K, H, W, 3] in 0..1, cropped to (width, height), as latents [K, C, h, w], unscaled.

    augmentation: standard deviation of noise in [-1, 1], half of it in 0..1; core's own node adds the whole. seed: of
    that noise.
    """
    width, height = size
    pixels = comfy.utils.common_upscale(frames[..., :3].movedim(-1, 1), width, height, "bilinear", "center")
    pixels = pixels.movedim(1, -1)
    if augmentation > 0:
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        pixels = pixels + noise * (augmentation / 2)
    return encode_frames(vae, pixels)


def encode_frames(vae: VAE, pixels: Tensor) -> Tensor:
    """Each frame for itself, [K, H, W, 3] to [K, C, h, w]; a video VAE is given one frame at a time."""
    if vae.latent_dim == 2:
        encoded: Tensor = vae.encode(pixels)
        return encoded
    return torch.cat([vae.encode(frame[None])[:, :, 0] for frame in pixels])


def fill_rows(known: Tensor, count: int, fill: Fill, vae: VAE, size: tuple[int, int]) -> Tensor:
    """Rows [count, C, h, w]: the known ones, then what stands for unknown frames."""
    if fill == "repeat":
        row = known[-1:]
    elif fill == "zero":
        row = torch.zeros_like(known[:1])
    else:
        row = encode_frames(vae, torch.full((1, size[1], size[0], 3), 0.5)).to(known)
    return torch.cat([known, row.expand(count - len(known), -1, -1, -1)])


# Words and picture


def look_at(clip_vision: Any, picture: Tensor) -> Sight:
    """picture: [1, H, W, 3] in 0..1. Raises InstructionError without a vision encoder."""
    if clip_vision is None:
        raise InstructionError(
            "There is no vision encoder: connect the one of the SVD checkpoint (Image Only Checkpoint Loader)."
        )
    seen = clip_vision.encode_image(picture[..., :3])
    return Sight(seen["image_embeds"][:, None].float(), seen["penultimate_hidden_states"].float())


def encode_text(clip: CLIP, text: str, *, cut: bool = True) -> Tensor:
    """Tokens [1, n, d] of a text: brackets are no weights, and of a CLIP's chunks of 77 only the first is kept.

    cut: whether a longer text is cut; False raises InstructionError for one.
    """
    tokens = clip.tokenize(text, disable_weights=True)
    if any(len(chunks) > 1 for chunks in tokens.values()):
        if not cut:
            raise InstructionError(
                f"The instruction is longer than the {_TOKENS} tokens that the text encoder reads: shorten it to a "
                "sentence."
            )
        logging.info("Longreel, instruction: a state longer than %d tokens is cut.", _TOKENS)
        tokens = {name: chunks[:1] for name, chunks in tokens.items()}
    encoded = clip.encode_from_tokens(tokens)
    return (encoded[0] if isinstance(encoded, tuple) else encoded).float()


def encode_states(clip: CLIP, states: States, settings: AdapterSettings) -> Tensor:
    """Tokens [1, S, n, d] of states one by one, or [1, 1, n, d] of all of them in one numbered text."""
    if settings.state_encoding == "joined":
        return encode_text(clip, " ".join(states.to_text().splitlines()))[:, None]
    return torch.stack([encode_text(clip, text) for text in states.texts], dim=1)


def context_rows(
    file: AdapterFile, clip: CLIP, patches: Tensor, token: Tensor, words: str, states: States | None, count: int
) -> Tensor:
    """The context [count, n, C] of every frame: SVD's own token, the instruction's, or both.

    Raises InstructionError for words or states that the adapter cannot read.
    """
    settings = file.settings
    if not settings.has_text:
        return token.expand(count, -1, -1)
    text = encode_text(clip, words, cut=False)
    if states is None:
        plan = fallback_states(words, settings.num_states) if words else None
        encoded = encode_states(clip, plan, settings) if plan else text[:, None].expand(-1, _rows(settings), -1, -1)
    else:
        encoded = encode_states(clip, states, settings)
    rows = condition_words(file, text, patches, encoded, count)
    return joined(settings, token, rows)


def _rows(settings: AdapterSettings) -> int:
    return settings.num_states if settings.state_encoding == "separate" else 1


def joined(settings: AdapterSettings, token: Tensor, words: Tensor) -> Tensor:
    """The context of frames: in decoupled mode SVD's token [1, 1, C] stands before the words [N, n, C]."""
    if settings.context_mode != "decoupled":
        return words
    assert token.shape[1] == IMAGE_TOKENS
    return torch.cat([token.to(words).expand(len(words), -1, -1), words], dim=1)


@torch.no_grad()
def condition_words(file: AdapterFile, text: Tensor, patches: Tensor, states: Tensor, count: int) -> Tensor:
    """MCondition [count, n, C] on the CPU. text: [1, l, d]; patches: [1, L, v]; states: [1, S, l, d]."""
    former = file.adapter.dqformer
    assert former is not None
    comfy.model_management.load_models_gpu([file.patcher])
    device = file.patcher.load_device
    given = (each.to(device=device, dtype=torch.float32) for each in (text, patches, states))
    rows: Tensor = former(*given, frames=count)[0]
    return rows.float().cpu()
