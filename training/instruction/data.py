"""Clips and sentences to what AID learns from: latents, known frames, tokens, once encoded and kept.

A folder holds videos, each with a text file of the same name: the first line is the instruction, further lines, if any,
are its states. N frames are taken evenly from the whole clip, nearest frames without blending. Everything that
encoders make is kept beside the run, a file a clip, so that training needs neither VAE nor text encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...film.instruction import States, fallback_states, parse_states
from ...film.instruction.settings import AdapterSettings
from ...film.reel.atomic import whole_file
from ...film.video_reader import VIDEOS, VideoReader, list_videos

__all__ = [
    "AUGMENTATIONS",
    "Clip",
    "Encoders",
    "Example",
    "InstructionDataError",
    "InstructionDataset",
    "architecture_of",
    "encode_clips",
    "encoders_of",
    "list_clips",
]

AUGMENTATIONS = (0.0, 0.02, 0.1)
"""Standard deviations of noise on known frames that a clip is encoded with; training draws one."""


_SHAPE = ("num_frames", "k_max", "width", "height", "num_states", "state_encoding")
"""What of an architecture decides how a clip is encoded."""


class InstructionDataError(ValueError):
    """A folder or clip that cannot be learned from; the message is one sentence that says what to change."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip to learn. frames: [N, H, W, 3] in 0..1. states: None where nobody told any."""

    name: str
    frames: Tensor
    instruction: str
    states: States | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """An encoded clip, fp32 on the CPU.

    latents: [N, C, h, w], scaled as the network has them. known: [levels, K, C, h, w] unscaled, with the noise of
    AUGMENTATIONS. grey: [C, h, w], the latent of a grey frame. token: [1, C]; patches: [L, d]. text: [l, d] of the
    instruction; states: [S, l, d]; empty: [l, d] of an empty text.
    """

    name: str
    latents: Tensor
    known: Tensor
    grey: Tensor
    token: Tensor
    patches: Tensor
    text: Tensor
    states: Tensor
    empty: Tensor


@dataclass(frozen=True, eq=False)
class InstructionDataset:
    """Encoded clips, all of one shape. architecture: an adapter's that fits them and their model."""

    architecture: AdapterSettings
    examples: Sequence[Example]

    def split(self, held_out: float) -> tuple[Sequence[Example], Sequence[Example]]:
        """Examples to learn from and to judge by, the last ones; held_out: share of the latter, two at least, as each
        is also judged with another's words. Fewer than four clips are all learned from.
        """
        count = len(self.examples)
        held = max(2, round(count * held_out)) if held_out > 0 and count > 3 else 0
        return self.examples[: count - held], self.examples[count - held :]


@dataclass(frozen=True, eq=False)
class Encoders:
    """As ComfyUI's loaders give them. latent_format: the model's. fingerprint: of them all."""

    clip: Any
    clip_vision: Any
    vae: Any
    latent_format: Any
    fingerprint: str


def encoders_of(model: Any, clip: Any, clip_vision: Any, vae: Any) -> Encoders:
    """Encoders as loaders give them. Raises InstructionDataError where the checkpoint lacks one."""
    from ...host.model_fingerprint import fingerprint_clip, fingerprint_model, fingerprint_vae

    if vae is None or clip_vision is None:
        raise InstructionDataError(
            "The checkpoint lacks its VAE or vision encoder: take the whole svd.safetensors or svd_xt.safetensors."
        )
    marks = f"{fingerprint_clip(clip)} {fingerprint_vae(vae)} {fingerprint_model(clip_vision.patcher)}"
    return Encoders(clip, clip_vision, vae, model.model.latent_format, marks)


def architecture_of(model: Any, encoders: Encoders, **settings: Any) -> AdapterSettings:
    """An adapter's architecture that fits the model and its encoders. settings: fields of AdapterSettings, such as
    frames, size and states.

    Raises InstructionError for a model that is not Stable Video Diffusion, or for settings that cannot be.
    """
    from ...host.model_fingerprint import fingerprint_model
    from ...host.svd.adapters import check_svd, sites_of, transformer_at
    from ...host.svd.conditioning import encode_text

    unet = check_svd(model)
    sites = sites_of(unet)
    empty = encode_text(encoders.clip, "")
    return AdapterSettings(
        sites=sites,
        tokens_per_frame=empty.shape[1],
        context_dim=transformer_at(unet, sites[0]).transformer_blocks[0].attn2.to_k.in_features,
        text_dim=empty.shape[2],
        vision_dim=int(encoders.clip_vision.config["hidden_size"]),
        base=fingerprint_model(model),
        **settings,
    )


def list_clips(
    folder: Path,
    settings: AdapterSettings,
    plan: Callable[[Tensor, str], States] | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Clip]:
    """The clips of a folder, in the order of their names, one in memory at a time; one that cannot be read is left out
    and named.

    plan: makes states of the first frame [H, W, 3] and the instruction, for clips whose text has none. Raises
    InstructionDataError if nothing is left.
    """
    files = list_videos(folder)
    if not files:
        raise InstructionDataError(f"{folder} holds no videos ({', '.join(VIDEOS)}): put clips and text files there.")
    used = 0
    for path in files:
        try:
            clip = _read(path, settings, plan)
        except InstructionDataError as error:
            say(f"Left out {path.name}: {error}")
            continue
        except (OSError, ValueError) as error:
            say(f"Left out {path.name}: it cannot be read ({error}).")
            continue
        used += 1
        yield clip
    if not used:
        raise InstructionDataError(f"None of the {len(files)} videos in {folder} can be used: see the lines above.")


def _read(path: Path, settings: AdapterSettings, plan: Callable[[Tensor, str], States] | None) -> Clip:
    text = path.with_suffix(".txt")
    lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()] if text.is_file() else []
    lines = [line for line in lines if line]
    if not lines:
        raise InstructionDataError(f"write its instruction into {text.name}.")
    frames = read_frames(path, settings.num_frames, settings.width, settings.height)
    states: States | None
    if len(lines) > 1:
        states = parse_states("\n".join(lines[1:]), lines[0], settings.num_states, strict=False)
    else:
        states = None if plan is None else plan(frames[0], lines[0])
    return Clip(path.name, frames, lines[0], states)


def read_frames(path: Path, count: int, width: int, height: int) -> Tensor:
    """`count` frames [count, height, width, 3] spread over a video from first to last, covering the size and cropped.

    Raises InstructionDataError for a video with fewer frames than two, VideoReadError for a file that is none.
    """
    from ...host.families.family import fit

    with VideoReader(path) as video:
        shown = list(video.at_rate())
    if len(shown) < 2:
        raise InstructionDataError(f"it has {len(shown)} frames and nothing can happen in them.")
    chosen = torch.linspace(0, len(shown) - 1, count).round().long().tolist()
    return fit(torch.stack([shown[number].pixels() for number in chosen]), width, height)


def encode_clips(
    clips: Iterable[Clip],
    settings: AdapterSettings,
    encoders: Encoders,
    folder: Path,
    say: Callable[[str], None] = print,
) -> list[Example]:
    """Encode clips, or take what `folder` has of them: a file for each, named by what it was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, clip in enumerate(clips, start=1):
        path = folder / f"{_mark(clip, settings, encoders)}.safetensors"
        if not path.exists():
            example = _encoded(clip, settings, encoders)
            tensors = {name: value.contiguous() for name, value in vars(example).items() if name != "name"}
            with whole_file(path) as part:
                save_file(tensors, part)
            if number % 20 == 0:
                say(f"encoded {number} clips")
        examples.append(Example(name=clip.name, **load_file(path)))
    return examples


def _mark(clip: Clip, settings: AdapterSettings, encoders: Encoders) -> str:
    states = "" if clip.states is None else clip.states.to_json()
    shape = [getattr(settings, name) for name in _SHAPE]
    told = f"{encoders.fingerprint}|{shape}|{AUGMENTATIONS}|{clip.instruction}|{states}"
    digest = hashlib.sha256(told.encode())
    digest.update((clip.frames * 255).round().byte().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _encoded(clip: Clip, settings: AdapterSettings, encoders: Encoders) -> Example:
    from ...host.svd import conditioning

    size = (settings.width, settings.height)
    latents = conditioning.known_latents(encoders.vae, clip.frames, size)
    first = clip.frames[: settings.k_max]
    known = [
        conditioning.known_latents(encoders.vae, first, size, level, seed=number)
        for number, level in enumerate(AUGMENTATIONS)
    ]
    grey = conditioning.encode_frames(encoders.vae, torch.full((1, size[1], size[0], 3), 0.5))[0]
    sight = conditioning.look_at(encoders.clip_vision, clip.frames[:1])
    text = conditioning.encode_text(encoders.clip, clip.instruction)
    states = clip.states or fallback_states(clip.instruction, settings.num_states)
    return Example(
        clip.name,
        encoders.latent_format.process_in(latents).float().cpu(),
        torch.stack(known).float().cpu(),
        grey.float().cpu(),
        sight.token[0].cpu(),
        sight.patches[0].cpu(),
        text[0].cpu(),
        conditioning.encode_states(encoders.clip, states, settings)[0].cpu(),
        conditioning.encode_text(encoders.clip, "")[0].cpu(),
    )
