"""What an AID adapter is: its architecture, its sites, and what it was trained to be given. The file's metadata.

AID adapts the UNet of Stable Video Diffusion at every layer that has a spatial and a temporal transformer (16 of them).
Nothing was released with the paper (arXiv 2406.06465), so where it is silent these are our own choices; each says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..decode import quoted
from .planner import DEFAULT_STATES, InstructionError, check_count

__all__ = ["FORMAT", "FORMAT_VERSION", "PARTS", "AdapterSettings", "Branches", "ContextMode", "Fill", "Part", "Site"]

FORMAT = "aid-svd"
FORMAT_VERSION = 1
Part = Literal["spatial", "short", "long"]
PARTS: tuple[Part, ...] = ("spatial", "short", "long")
Branches = Literal["both", "upper", "lower", "none"]
ContextMode = Literal["decoupled", "lora", "full"]
Fill = Literal["repeat", "grey", "zero"]


@dataclass(frozen=True)
class Site:
    """A layer of the UNet that is adapted.

    name: as ComfyUI names the block, such as "input_blocks.1" or "middle_block". width: channels. heads: attention
    heads.
    """

    name: str
    width: int
    heads: int

    @property
    def block(self) -> tuple[str, int]:
        """The block as ComfyUI's transformer_options name it while it runs."""
        room, _, number = self.name.partition(".")
        return room.split("_", 1)[0], int(number or 0)


@dataclass(frozen=True)
class AdapterSettings:
    """All that tensors do not say. Raises InstructionError for values that cannot be.

    Architecture: sites: where the UNet is adapted, in the order in which it runs. num_frames: frames of a clip (12 to
    16 in the paper). context_dim: width of the UNet's cross-attention. text_dim, vision_dim: width of the text
    encoder's tokens and of the vision encoder's patch tokens. tokens_per_frame: queries of a frame, the text encoder's
    tokens. num_states, state_encoding: states of an instruction, "separate"ly encoded or "joined" in one text.
    dq_layers, dq_heads, ff_mult: of the DQFormer. branches: of it (table 2 of the paper); "none" has no text at all.
    concat: the two branches side by side in "channel"s and fused, or as "token"s. context_mode: the text attends in a
    layer of its own that is added ("decoupled"), or in the UNet's own cross-attention, tuned by "lora" or in "full" as
    in the paper. cross_rank: of the LoRA. adapters: which there are (table 3). ratio: width of a site over that of its
    adapter. st_kernel: frames, rows and columns that the short-term adapter's convolution covers. lt_head_width: of the
    long-term adapter's attention. mask_channel: the UNet's input marks which frames are known.

    Conditioning:
    k_max: known frames it was trained with, 1..k_max. width, height: pixels. fps, motion_bucket_id, augmentation: as
    SVD reads them; augmentation is the standard deviation of noise on known frames in [-1, 1]. fill: what stands in the
    rows of unknown frames: the last known one, grey, or zeros. time_context: what the temporal cross-attention reads,
    SVD's "image" token or "frame0" of the context. base: fingerprint or name of the model it was trained on.
    """

    sites: tuple[Site, ...]
    num_frames: int = 16
    context_dim: int = 1024
    text_dim: int = 1024
    vision_dim: int = 1280
    tokens_per_frame: int = 77
    num_states: int = DEFAULT_STATES
    state_encoding: Literal["separate", "joined"] = "separate"
    dq_layers: int = 1
    dq_heads: int = 16
    ff_mult: int = 4
    branches: Branches = "both"
    concat: Literal["channel", "token"] = "channel"
    context_mode: ContextMode = "decoupled"
    cross_rank: int = 32
    adapters: tuple[Part, ...] = PARTS
    ratio: int = 4
    st_kernel: int = 3
    lt_head_width: int = 40
    mask_channel: bool = False
    k_max: int = 1
    width: int = 256
    height: int = 256
    fps: int = 7
    motion_bucket_id: int = 127
    augmentation: float = 0.02
    fill: Fill = "repeat"
    time_context: Literal["image", "frame0"] = "image"
    base: str = ""

    def __post_init__(self) -> None:
        check_count(self.num_states)
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise InstructionError(
                    f"The adapter's {name} is {quoted(getattr(self, name))}: choose {' or '.join(get_args(kind))}."
                )
        if not self.sites:
            raise InstructionError("The adapter has no sites: load a Stable Video Diffusion model.")
        if self.num_frames < 2 or not 1 <= self.k_max < self.num_frames:
            raise InstructionError(
                f"{self.k_max} known of {self.num_frames} frames cannot be: know at least 1 and fewer than there are."
            )
        if self.context_dim % self.dq_heads:
            raise InstructionError(
                f"{self.dq_heads} heads do not divide a width of {self.context_dim}: choose another number."
            )
        if set(self.adapters) - set(PARTS):
            raise InstructionError(f"The adapter has unknown parts {self.adapters}: choose of {', '.join(PARTS)}.")

    @property
    def has_text(self) -> bool:
        """Whether an instruction reaches the UNet at all."""
        return self.branches != "none"

    def inner(self, site: Site) -> int:
        """Width of the adapters at a site."""
        return max(8, site.width // self.ratio)

    def to_metadata(self, notes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Safetensors metadata, all strings. notes: what else the file shall say (steps, dataset, licence, ...)."""
        values = {name: _to_string(value) for name, value in asdict(self).items()}
        own = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
        return {**(notes or {}), **values, **own, "sites": json.dumps([asdict(site) for site in self.sites])}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> AdapterSettings:
        """Inverse of to_metadata; entries that are no fields are notes and passed over.

        Raises InstructionError for a file of another kind, a newer format, or values that are damaged.
        """
        if metadata.get("format") != FORMAT:
            raise InstructionError(
                "This is no AID adapter: choose a file made by Longreel's instruction trainer (format aid-svd)."
            )
        version = metadata.get("format_version", "")
        if version != str(FORMAT_VERSION):
            raise InstructionError(
                f"The adapter has format version {version or 'unknown'} and this Longreel knows {FORMAT_VERSION}: "
                "update Longreel, or train the adapter again."
            )
        try:
            values: dict[str, Any] = {
                field.name: _from_string(field.name, metadata[field.name]) for field in fields(cls)
            }
        except (KeyError, TypeError, ValueError) as error:
            raise InstructionError("The adapter's metadata is damaged: use another copy of the file.") from error
        return cls(**values)


def _to_string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _from_string(name: str, text: str) -> Any:
    kind = get_type_hints(AdapterSettings)[name]
    if kind is str or get_origin(kind) is Literal:
        return text
    value = json.loads(text)
    if name == "sites":
        return tuple(Site(str(row["name"]), int(row["width"]), int(row["heads"])) for row in value)
    if name == "adapters":
        return tuple(value)
    if kind is float and isinstance(value, int | float):
        return float(value)
    if not isinstance(value, kind):
        raise ValueError(name)
    return value
